"""What is written at the end of a turn: all that one round of reads, or a call's first steps, have caused.

A connection that is touched while a turn collects is only noted, and written to once when the turn ends, however many
streams have said something: that is one system call instead of many. Outside a turn its writer is woken.
"""

from collections.abc import Callable
from typing import Protocol

import trio


class Flushable(Protocol):
    """A connection, as a turn sees it."""

    def flush(self) -> None:
        """Write without waiting what the socket takes. Must not raise: this is anybody's task."""


class Turn:
    """The connections that have something to write when a turn ends. One for each trio run."""

    __slots__ = ("_first", "collecting", "dirty", "looks")

    def __init__(self) -> None:
        self.dirty: list[Flushable] = []
        self._first: list[Callable[[], None]] = []
        self.collecting = False
        self.looks = 0
        """How often whoever reads may look at once whether there is more to read: a read has brought much lately."""

    def __enter__(self) -> None:
        """A turn by itself begins."""
        self.collecting = True

    def __exit__(self, *_: object) -> None:
        self.flush()
        self.collecting = False

    def before_writing(self, do: Callable[[], None]) -> None:
        """Call `do` when the turn ends, before anything is written; at once if none collects. It must not raise."""
        if self.collecting:
            self._first.append(do)
        else:
            do()

    def flush(self) -> None:
        """Write on every dirty connection what its socket takes; credit that comes of it makes others dirty."""
        dirty, first = self.dirty, self._first
        if not dirty and not first:
            return
        was_collecting, self.collecting = self.collecting, True
        try:
            while True:
                while first:
                    first.pop()()
                if not dirty:
                    break
                dirty.pop().flush()
        finally:
            self.collecting = was_collecting


_turn_of_run: trio.lowlevel.RunVar[Turn] = trio.lowlevel.RunVar("rawgrpc_proxy.turn")


def current_turn() -> Turn:
    """The turn of this trio run."""
    try:
        return _turn_of_run.get()
    except LookupError:
        turn = Turn()
        _turn_of_run.set(turn)
        return turn
