"""Child processes beside trio tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from interop.shared.processes import Listener

L = TypeVar("L", bound=Listener)


@asynccontextmanager
async def running(listener: L) -> AsyncIterator[L]:
    """The process, started and ended in a thread, since both take time; a cancelled task waits for its end, too."""
    await trio.to_thread.run_sync(listener.__enter__)
    try:
        yield listener
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(listener.__exit__, None, None, None)
