"""The state of the proxy, once a second, to all who watch: server-sent events (HTML §9.2).

One event is made for all watchers, and none while nobody watches. Each event is the whole state, so who cannot keep
up misses some and is never behind; who takes nothing for a while loses the connection (`Limits.send_timeout_s` in
`http.py`), and a browser comes back by itself. The invariant: what watching costs the workers does not grow with the
number of watchers.
"""

from collections.abc import Awaitable, Callable

import trio

from rawgrpc_proxy.command.admin.messages import OnFault, Refused, Stream

MOST_WATCHERS = 16
_INTERVAL_S = 1.0
_HEARTBEAT_S = 5.0
"""Without an event. A proxy in between may give up a connection on which nothing comes."""
_RETRY_MS = 2000
_PATIENCE_S = 10.0
"""With whoever makes an event. Workers have a second each."""


class Feed:
    """Makes events while somebody watches."""

    def __init__(self, make: Callable[[], Awaitable[bytes]], on_fault: OnFault) -> None:
        """`make` answers the data of one event, on one line. What it raises is told once, until it works again."""
        self._make = make
        self._on_fault = on_fault
        self._watchers: set[_Watcher] = set()
        self._watched = trio.Event()
        self._news = trio.Event()
        self._failing = False
        self.event = b""
        """The latest one, no older than a second; empty if there is none."""
        self.number = 0
        """Of the latest event."""

    async def run(self) -> None:
        """Make events until cancelled."""
        while True:
            await self._watched.wait()
            due = trio.current_time()
            while self._watchers:
                await self._make_event()
                due = max(due + _INTERVAL_S, trio.current_time())
                await trio.sleep_until(due)
            self.event = b""  # the next one who comes shall not see the past
            self._watched = trio.Event()

    async def _make_event(self) -> None:
        try:
            with trio.fail_after(_PATIENCE_S):
                data = await self._make()
        except Exception as error:  # noqa: BLE001  # the next one may be better
            if not self._failing:
                self._on_fault("making the state for /events failed", error)
            self._failing = True
            return
        self._failing = False
        self.event = b"event: state\ndata: " + data + b"\n\n"
        self.number += 1
        self._news.set()
        self._news = trio.Event()

    def watch(self) -> Stream:
        """Take a place among those who watch, until the stream is closed. Raises `Refused` if there is none."""
        if len(self._watchers) >= MOST_WATCHERS:
            raise Refused(
                503,
                f"{MOST_WATCHERS} are watching already; close a page, or try later",
                **{"Retry-After": "5"},
            )
        watcher = _Watcher(self)
        self._watchers.add(watcher)
        self._watched.set()
        return watcher

    def leave(self, watcher: "_Watcher") -> None:
        """Give the place back."""
        self._watchers.discard(watcher)

    async def next_event(self) -> None:
        """Wait until there is another one."""
        await self._news.wait()


class _Watcher:
    """One who watches."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    async def run(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        feed, seen = self._feed, 0
        await send(b"retry: %d\n\n" % _RETRY_MS)
        while True:
            if feed.event and feed.number != seen:
                seen = feed.number
                await send(feed.event)
                continue
            with trio.move_on_after(_HEARTBEAT_S) as patience:
                await feed.next_event()
            if patience.cancelled_caught:
                await send(b": nothing new\n\n")

    def close(self) -> None:
        self._feed.leave(self)
