"""Where events go: to several callables, or to a task that takes them when it can.

A synchronous sink is any callable that takes an `Event`. `QueueSink` is one for code that waits: it is bounded, and
counts what it had to drop, so that whoever is slow loses events and slows nobody.
"""

from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

import attrs
import trio

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.lab.events import Event, FrameSeen

Sink = Callable[[Event], None]


def several(*sinks: Sink) -> Sink:
    """One sink that tells all of these, in order. What one raises goes through: the others are not told then."""

    def tell(event: Event) -> None:
        for sink in sinks:
            sink(event)

    return tell


class QueueSink:
    """Holds up to `max_events` events for `async for event in sink`; beyond that the newest are dropped, and counted.

    Of payloads of frames it keeps copies of the first `payload_bytes`. Its iteration ends behind `close()`, when all
    that it holds is taken. To call it never waits.
    """

    def __init__(self, *, max_events: int = 10_000, payload_bytes: int = 0) -> None:
        if max_events < 1:
            raise ConfigError(f"max_events is {max_events}; a sink holds at least one event")
        self._send, self._receive = trio.open_memory_channel[Event](max_events)
        self._payload_bytes = payload_bytes
        self.dropped = 0
        """Events that found no room, since the start."""

    def __call__(self, event: Event) -> None:
        """Take it, or drop it."""
        if isinstance(event, FrameSeen):
            event = attrs.evolve(event, payload=bytes(event.payload[: self._payload_bytes]))
        try:
            self._send.send_nowait(event)
        except (trio.WouldBlock, trio.ClosedResourceError):
            self.dropped += 1

    def close(self) -> None:
        """No more events come."""
        self._send.close()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._receive.__aiter__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self._receive.close()
