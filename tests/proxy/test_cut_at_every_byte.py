"""A call is severed at every byte that one of its peers sends or reads: nobody is told of a success that is none.

The call is played once for each offset, until it is over before the cut. However far it came, what the caller has got
is a beginning of what there was, its status is OK only if all of it is there, a request that was cut off has no end for
the backend, nothing hangs, nothing is left behind, and the next call goes through.
"""

import itertools
import socket
import struct
from contextlib import suppress
from functools import partial
from typing import Literal

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import Status
from rawgrpc_proxy.config import Engine
from tests.proxy.house import House, a_proxy, on_every_engine, streams_of, until
from tests.proxy.raw_peers import (
    OK,
    RESPONSE,
    Answer,
    Data,
    PeerStream,
    RawPeer,
    connected,
    message,
    request_fields,
)

pytestmark = [
    on_every_engine,
    pytest.mark.parametrize(("kind", "end"), [("unary", "FIN"), ("unary", "RST"), ("stream", "FIN")]),
]

Kind = Literal["unary", "stream"]
MESSAGES = [message(f"message {number}".encode()) for number in range(2)]
WHOLE = (b"x-whole", b"yes")
"""Stands in the trailers, which nobody else can make up."""
BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)


class Severed(trio.abc.Stream):
    """A stream that ends, for both sides, when so many bytes have been sent or received on it."""

    def __init__(
        self, stream: trio.SocketStream, end: str, *, sent: int | None = None, received: int | None = None
    ) -> None:
        self._stream, self._end = stream, end
        self._may_send, self._may_receive = sent, received
        self.is_severed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._may_send is None:
            await self._stream.send_all(data)
            return
        piece = data[: self._may_send]
        self._may_send -= len(piece)
        await self._stream.send_all(piece)
        if len(piece) < len(data):
            self._sever()

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._may_receive is None:
            return await self._stream.receive_some(max_bytes)
        if not self._may_receive:
            # What comes now is cut off. Nothing more may be coming.
            await trio.lowlevel.wait_readable(self._stream.socket)
            self._sever()
        data = await self._stream.receive_some(self._may_receive)
        self._may_receive -= len(data)
        return data

    def _sever(self) -> None:
        self.is_severed = True
        if self._end == "RST":
            linger = struct.pack("ii", 1, 0)
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._stream.socket.close()
        raise trio.BrokenResourceError

    async def aclose(self) -> None:
        await self._stream.aclose()


class Cut:
    """What becomes of the next connection to the backend of a house: it is severed. Those after it are healthy."""

    def __init__(self, house: House, end: str, way: str, size: int) -> None:
        self._house, self._end = house, end
        self._at = {"sent" if way == "answers" else "received": size}
        self._streams: list[Severed] = []

    async def serve(self, stream: trio.SocketStream) -> None:
        backend = self._house.backend
        backend.raw_script = None
        self._streams.append(Severed(stream, self._end, **self._at))
        await RawPeer(self._streams[0], client_side=False, on_request=backend._requests_in.send_nowait).run()

    def stream(self) -> Severed:
        """It."""
        return self._streams[0]


async def serve(served: PeerStream, seen: list[PeerStream]) -> None:
    """The backend's part of the call: answer each message with itself, and the end with OK."""
    seen.append(served)
    with suppress(*BROKEN):
        await served.headers(RESPONSE)
        ended = served.request.end_stream
        while not ended:
            event = await served.next()
            if not isinstance(event, Data):
                return
            ended = event.end_stream
            await served.data(event.data)
        await served.headers([*OK, WHOLE], end=True)


async def play(client: RawPeer, kind: Kind) -> Answer:
    """The caller's part of the call, from its headers to its end, whatever that is."""
    call = client.new_stream()
    with suppress(*BROKEN):
        await call.headers(request_fields())
        if kind == "unary":
            await call.data(MESSAGES[0], end=True)
        else:
            for each in MESSAGES:
                await call.data(each)
            await call.data(b"", end=True)
    return await call.answer()


def check(answer: Answer, kind: Kind) -> bool:
    """Whether it is a success, which has to be whole."""
    whole = MESSAGES[0] if kind == "unary" else b"".join(MESSAGES)
    assert whole.startswith(answer.body)
    if answer.status == Status.OK:
        assert answer.body == whole
        assert answer.get(WHOLE[0]) == WHOLE[1]
        return True
    assert answer.lost or answer.reset is not None or answer.status == Status.UNAVAILABLE, answer
    return False


async def settled(house: House) -> None:
    """Nothing of the call is left."""
    await until(lambda: house.server.open_calls == 0, "a call is open")
    await until(lambda: streams_of(house.pool) == 0, "a place is held")


def check_requests(seen: list[PeerStream], kind: Kind) -> None:
    """A request has ended for the backend only if it came whole."""
    size = len(MESSAGES[0]) if kind == "unary" else len(b"".join(MESSAGES))
    for served in seen:
        ends = f"DATA {served.id} END_STREAM" in served.peer.log or served.request.end_stream
        assert served.received_bytes == size or not ends, served.peer.log


@pytest.mark.parametrize("way", ["answers", "requests"])
@trio_test
async def test_an_upstream_that_is_cut_off_gives_no_success(
    engine: Engine, kind: Kind, end: str, way: str
) -> None:
    size = 0
    is_over = False
    while not is_over:
        async with a_proxy(engine, pool={"connect_wait_s": 0.0}) as house, trio.open_nursery() as nursery:
            seen: list[PeerStream] = []
            nursery.start_soon(house.backend.answer_all, partial(serve, seen=seen))
            client = await house.client()
            while not is_over:
                cut = Cut(house, end, way, size)
                house.backend.raw_script = cut.serve
                succeeded = check(await play(client, kind), kind)
                await settled(house)
                check_requests(seen, kind)
                size += 1
                is_over = not cut.stream().is_severed
                assert succeeded or not is_over
                if is_over:
                    break
                after = await play(client, kind)
                if not check(after, kind):
                    # It was the dial that was cut off, so that the next one has to wait. Another proxy need not.
                    assert b"is lost" not in (after.message or b""), after
                    break
                for peer in house.backend.peers:
                    await peer.aclose()
                await until(
                    lambda: not any(stats.with_room or stats.busy for stats in house.pool.stats().values())
                )
            nursery.cancel_scope.cancel()
    assert size > 100


@pytest.mark.parametrize("way", ["requests", "answers"])
@trio_test
async def test_a_caller_who_is_cut_off_ends_no_request(
    engine: Engine, kind: Kind, end: str, way: str
) -> None:
    seen: list[PeerStream] = []
    async with a_proxy(engine) as house, trio.open_nursery() as nursery:
        nursery.start_soon(house.backend.answer_all, lambda served: serve(served, seen))
        other = await house.client()
        for size in itertools.count():
            stream = await connected(house.address)
            succeeded = False
            severed = Severed(stream, end, **{"sent" if way == "requests" else "received": size})
            client = RawPeer(severed, client_side=True)
            async with trio.open_nursery() as calling:
                with suppress(RuntimeError):  # it has not got as far as to say hello
                    await calling.start(client.run)
                    succeeded = check(await play(client, kind), kind)
                is_over = not severed.is_severed
                calling.cancel_scope.cancel()
            await trio.aclose_forcefully(severed)
            await settled(house)
            check_requests(seen, kind)
            assert check(await play(other, kind), kind)
            assert succeeded or not is_over
            if is_over:
                assert size > 100
                break
        nursery.cancel_scope.cancel()
