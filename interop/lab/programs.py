"""The proxy's commands as processes beside trio tasks."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from contextvars import ContextVar
from typing import TypeVar

import trio

from interop.shared.processes import Listener, Trouble
from interop.shared.running import running

T = TypeVar("T")
SECONDS = 120.0
ENGINE: ContextVar[str | None] = ContextVar("engine", default=None)
"""Of the commands that are proxies; None: their own choice."""
_PROXIES = ("record", "lint", "tap", "faults")


def command_line(*arguments: str) -> list[str]:
    """Of the proxy."""
    engine = ENGINE.get()
    more = [] if engine is None or arguments[0] not in _PROXIES else [f"--engine={engine}"]
    return [sys.executable, "-m", "rawgrpc_proxy", *arguments, *more]


@asynccontextmanager
async def command(*arguments: str) -> AsyncIterator[str]:
    """A command of the proxy that listens until it is ended, and its address."""
    async with running(Listener(arguments[0], command_line(*arguments))) as listener:
        yield listener.target


async def run(*arguments: str) -> tuple[int, str]:
    """A command of the proxy that ends by itself: its exit code, and what it says."""
    with trio.move_on_after(SECONDS):
        done = await trio.run_process(
            command_line(*arguments), capture_stdout=True, capture_stderr=True, check=False
        )
        return done.returncode, (done.stdout + done.stderr).decode(errors="replace")
    raise Trouble(f"rawgrpc-proxy {' '.join(arguments)} does not end")


@asynccontextmanager
async def in_thread(manager: AbstractContextManager[T]) -> AsyncIterator[T]:
    """What takes time to be entered and left, without keeping the other tasks waiting."""
    entered = await trio.to_thread.run_sync(manager.__enter__)
    try:
        yield entered
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(manager.__exit__, None, None, None)


def tail(text: str) -> str:
    """Its last lines, as one."""
    return " / ".join(text.splitlines()[-6:])
