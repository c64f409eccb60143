"""Whoever taps a connection sees each of its bytes once, in order, and nobody else is the worse for it."""

import sys

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import Status
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.http2.frames import PREFACE, Data, FrameSplitter
from rawgrpc_proxy.net.tapped import Link, LinkTap
from tests.proxy.house import a_proxy, on_every_engine
from tests.proxy.raw_peers import message, request_fields

DATA, HEADERS = 0, 1
LARGE = 3 << 20


class Seen:
    """Keeps what passes on one connection."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.received_bytes = bytearray()
        self.sent_bytes = bytearray()
        self.ends = 0

    def received(self, data: Data) -> None:
        self.received_bytes += data

    def sent(self, data: Data) -> None:
        self.sent_bytes += data

    def closed(self) -> None:
        self.ends += 1


class All:
    def __init__(self) -> None:
        self.links: list[Seen] = []

    def link(self, link: Link) -> LinkTap:
        self.links.append(Seen(link))
        return self.links[-1]


def data_in(stream: bytearray, *, preface: bool) -> bytes:
    """The payloads of all DATA frames in what has passed in one direction."""
    splitter = FrameSplitter(1 << 24, expect_preface=preface)
    return b"".join(bytes(payload) for kind, _, _, payload in splitter.split(bytes(stream)) if kind == DATA)


@on_every_engine
@trio_test
async def test_both_sides_of_a_call_are_seen_byte_for_byte(engine: Engine) -> None:
    tap = All()
    async with a_proxy(engine, tap=tap, pool={"tap": tap}) as house:
        client = await house.client()
        call = await client.request(body=b"x" * LARGE)
        served = await house.backend.request()
        await served.request_body()
        await served.respond(b"y" * LARGE)
        assert (await call.answer()).status == Status.OK
    down, up = tap.links
    assert (down.link.side, up.link.side) == (Side.DOWNSTREAM, Side.UPSTREAM)
    assert (down.link.peer != up.link.peer, up.link.peer) == (True, house.backend.address)
    assert down.link.number != up.link.number
    assert bytes(down.received_bytes).startswith(PREFACE)
    # A socket that is full takes a part, and the rest later: nothing is seen twice.
    assert data_in(down.received_bytes, preface=True) == message(b"x" * LARGE)
    assert data_in(up.sent_bytes, preface=True) == message(b"x" * LARGE)
    assert data_in(up.received_bytes, preface=False) == message(b"y" * LARGE)
    assert data_in(down.sent_bytes, preface=False) == message(b"y" * LARGE)
    assert (down.ends, up.ends) == (1, 1)


class Broken:
    """Raises at the first bytes, or when it is asked."""

    def __init__(self, *, at_once: bool) -> None:
        self._at_once = at_once
        self.asked = 0

    def link(self, link: Link) -> LinkTap:
        self.asked += 1
        if self._at_once:
            raise RuntimeError("no taps today")
        return self

    def received(self, data: Data) -> None:
        raise RuntimeError("the disk is full")

    def sent(self, data: Data) -> None:
        raise RuntimeError("the disk is full")

    def closed(self) -> None:
        raise AssertionError("it was let go")


@on_every_engine
@pytest.mark.parametrize("at_once", [True, False])
@trio_test
async def test_a_tap_that_raises_is_reported_once_and_the_call_goes_on(
    engine: Engine, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: reported.append(str(raised.exc_value)))
    tap = Broken(at_once=at_once)
    async with a_proxy(engine, tap=tap) as house:
        client = await house.client()
        for _ in range(3):
            call = await client.request(body=b"hello")
            await (await house.backend.request()).respond(b"there")
            assert (await call.answer()).status == Status.OK
    assert tap.asked == 1
    assert reported == ["no taps today" if at_once else "the disk is full"]


@on_every_engine
@trio_test
async def test_a_connection_that_nobody_wants_to_see_has_its_own_transport(engine: Engine) -> None:
    class Choosy:
        def link(self, link: Link) -> LinkTap | None:
            return None

    async with a_proxy(engine, tap=Choosy()) as house:
        client = await house.client()
        await client.open(request_fields())
        served = await house.backend.request()
        [connection] = house.server._connections
        assert type(connection.transport).__module__ == "rawgrpc_proxy.net.transport"
        await served.respond()
        with trio.fail_after(10):
            await house.record()
