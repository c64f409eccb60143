"""Child processes of the promises: the backend that soak and faults share, and any process beside trio tasks."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from interop.shared.processes import Listener


def backend(port: int = 0, on_line: Callable[[str], None] | None = None) -> Listener:
    """The process of bytes_server.py; `on_line` is told what it prints, in a thread of its own."""
    command = [sys.executable, "-m", "interop.promises.bytes_server", f"--port={port}"]
    return Listener("the backend", command, on_line=on_line)


@asynccontextmanager
async def running(listener: Listener) -> AsyncIterator[Listener]:
    """The process, started and ended in a thread, since both take time; a cancelled task waits for its end, too."""
    await trio.to_thread.run_sync(listener.__enter__)
    try:
        yield listener
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(listener.__exit__, None, None, None)
