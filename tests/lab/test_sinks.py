"""A slow reader loses events, knows how many, and slows nobody."""

import pytest
from trio.testing import trio_test

from rawgrpc_proxy.errors import ConfigError, Side
from rawgrpc_proxy.lab.events import Event, FrameSeen, LinkClosed, LinkOpened, Sender
from rawgrpc_proxy.lab.sinks import QueueSink, several
from rawgrpc_proxy.net.tapped import Link

LINK = Link(number=1, side=Side.UPSTREAM, peer="a:1", tls=None)


@trio_test
async def test_beyond_its_bound_events_are_dropped_and_counted() -> None:
    sink = QueueSink(max_events=2)
    for at in range(5):
        sink(LinkOpened(LINK, at))
    assert sink.dropped == 3
    sink.close()
    assert [event.at async for event in sink] == [0, 1]
    sink(LinkClosed(LINK, 9))
    assert sink.dropped == 4


@trio_test
async def test_of_a_payload_that_is_valid_for_a_moment_a_copy_is_kept() -> None:
    data = bytearray(b"hello")
    async with QueueSink(payload_bytes=3) as sink:
        sink(FrameSeen(LINK, 0, Sender.CLIENT, 0, 0, 1, 5, memoryview(data)))
        data[:] = b"XXXXX"
        async for event in sink:
            assert isinstance(event, FrameSeen)
            assert (event.payload, event.length) == (b"hel", 5)
            break


def test_several_sinks_hear_the_same() -> None:
    first: list[Event] = []
    second: list[Event] = []
    several(first.append, second.append)(LinkOpened(LINK, 1))
    assert first == second == [LinkOpened(LINK, 1)]


def test_a_sink_for_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one event"):
        QueueSink(max_events=0)
