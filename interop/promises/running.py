"""Child processes beside trio tasks: starting and ending them takes time, and the tasks have to go on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from interop.shared.processes import Listener


@asynccontextmanager
async def running(listener: Listener) -> AsyncIterator[Listener]:
    """The process, started and ended in a thread; a cancelled task waits for its end, too."""
    await trio.to_thread.run_sync(listener.__enter__)
    try:
        yield listener
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(listener.__exit__, None, None, None)
