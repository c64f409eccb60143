"""`Stopping`: whether a server stops, for what would otherwise go on as long as its peers like.

What it does not do: end anything by itself. The invariant: once set, it stays set.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Stopping:
    """Set when a server begins to stop (`Server.stop`)."""

    __slots__ = ("_event", "_scopes")

    def __init__(self) -> None:
        self._event = trio.Event()
        self._scopes: set[trio.CancelScope] = set()

    def is_set(self) -> bool:
        """Whether the server stops."""
        return self._event.is_set()

    def set(self) -> None:
        """The server stops from now on."""
        self._event.set()
        for scope in self._scopes:
            scope.cancel()

    async def wait(self) -> None:
        """Wait until the server stops."""
        await self._event.wait()

    @contextmanager
    def ends(self) -> Iterator[trio.CancelScope]:
        """A scope that is cancelled when the server stops, at once if it stops already: `with stopping.ends(): …`."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            if self.is_set():
                scope.cancel()
            try:
                yield scope
            finally:
                self._scopes.discard(scope)
