"""What was recorded is played again byte for byte, as client and as server, and what differs is told."""

import contextlib
import math
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import hpack
import pytest
import trio
import trio.testing
from trio.testing import MockClock, memory_stream_pair, trio_test

from rawgrpc_proxy import RpcError, ServedCall, Status, identity_codec, unary_unary
from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.errors import ConfigError, Side
from rawgrpc_proxy.http2 import frames as h2
from rawgrpc_proxy.lab.events import Sender
from rawgrpc_proxy.lab.recorder import Recorder
from rawgrpc_proxy.lab.recording import Bytes, Entry, Frame, RecordedLink, read
from rawgrpc_proxy.lab.replaying import Played, play, play_to
from rawgrpc_proxy.proxy.transparent import transparent_handler
from rawgrpc_proxy.server.server import Server
from rawgrpc_proxy.upstream.pool import Pool
from rawgrpc_proxy.upstream.target import Target
from tests.client.grpcio_server import SERVER as GRPCIO_SERVER
from tests.processes import program

CLIENT, SERVER = Sender.CLIENT, Sender.SERVER
GRPCIO_CLIENT = """
import sys
import grpc
channel = grpc.insecure_channel(sys.argv[1])
metadata = (("x-user", "bob"), ("x-blob-bin", b"\\x00\\xff"))
print(channel.unary_unary("/a.B/Unary")(b"abc" * 30000, metadata=metadata)[:3])
print(len(list(channel.unary_stream("/a.B/ServerStream")(b"300"))))
print(channel.stream_unary("/a.B/ClientStream")(iter([b"a" * 100000, b"b", b""]))[-3:])
print(list(channel.stream_stream("/a.B/Bidi")(iter([b"1", b"2", b"3"]))))
try:
    channel.unary_unary("/a.B/Fail")(b"")
except grpc.RpcError as error:
    print(error.details())
channel.close()
"""


@contextlib.asynccontextmanager
async def grpcio_recorded(path: Path) -> AsyncIterator[str]:
    """A recording of grpcio's client and server through the proxy; answers where the server is."""
    async with program(python=["-c", GRPCIO_SERVER]) as server:
        upstream = await server.address()
        with Recorder(path) as recorder:
            async with Pool(tap=recorder) as pool, trio.open_nursery() as nursery:

                def director(context: CallContext, _method: str) -> tuple[CallContext, Target]:
                    return context, pool.target(upstream)

                proxy = Server(unknown_service_handler=transparent_handler(director), tap=recorder)
                address: str = await nursery.start(proxy.serve, "127.0.0.1:0")
                async with program(python=["-c", GRPCIO_CLIENT, address]) as client:
                    assert await client.exit_code() == 0, client.stderr
                    assert client.stdout[1] == "300"
                proxy.stop(grace_s=1)
        yield upstream


async def both_parts(link: RecordedLink) -> tuple[Played, Played]:
    """The connection with both of its ends played, by sockets."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    played: dict[Sender, Played] = {}

    async def serve() -> None:
        stream = await listener.accept()
        played[SERVER] = await play(link, SERVER, stream, speed=math.inf)

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        stream = await trio.open_tcp_stream(*listener.socket.getsockname()[:2])
        played[CLIENT] = await play(link, CLIENT, stream, speed=math.inf)
    return played[CLIENT], played[SERVER]


def test_a_recording_of_grpcio_is_played_as_client_and_as_server_with_every_byte_the_same(
    tmp_path: Path,
) -> None:
    pytest.importorskip("grpc")
    path = tmp_path / "grpcio.jsonl"

    async def main() -> None:
        async with grpcio_recorded(path) as upstream:
            recording = read(path)
            assert {link.side for link in recording.links} == {Side.DOWNSTREAM, Side.UPSTREAM}
            for link in recording.links:
                # Both ends played: what either has sent is what was recorded, seen at the other end.
                as_client, as_server = await both_parts(link)
                for played in (as_client, as_server):
                    assert played.problem is None
                    for sender in (CLIENT, SERVER):
                        assert played.bytes_of(sender) == link.bytes_of(sender)
                assert as_client.differences() == []
                # To grpcio's own server: the same bytes, and answers that mean the same.
                assert len(link.bytes_of(CLIENT)) > 190_000
                live = await play_to(link, upstream, speed=math.inf)
                assert live.differences() == []
                assert len(live.calls) == 5
                assert live.bytes_of(CLIENT).startswith(h2.PREFACE)
                theirs = [raw for raw in frames_of(live.bytes_of(CLIENT)) if of_a_call(raw)]
                assert theirs == [raw for raw in frames_of(link.bytes_of(CLIENT)) if of_a_call(raw)]

    trio.run(main)


def frames_of(data: bytes) -> list[bytes]:
    frames, offset = [], len(h2.PREFACE)
    while offset < len(data):
        end = offset + h2.HEADER_BYTES + int.from_bytes(data[offset : offset + 3])
        frames.append(data[offset:end])
        offset = end
    return frames


def of_a_call(raw: bytes) -> bool:
    return raw[3] in (h2.HEADERS, h2.DATA, h2.CONTINUATION)


# ------------------------------------------------------------------- by hand, in no time

REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/p.S/Do"),
    (":authority", "a"),
    ("content-type", "application/grpc"),
]
RESPONSE = [(":status", "200"), ("content-type", "application/grpc")]


def headers(fields: list[tuple[str, str]], stream: int = 1, *, end: bool = False) -> bytes:
    block = hpack.Encoder().encode([(name, value, True) for name, value in fields])
    flags = h2.END_HEADERS | (h2.END_STREAM if end else 0)
    return h2.frame_header(h2.HEADERS, flags, stream, len(block)) + block


def data(payload: bytes, stream: int = 1, *, end: bool = False) -> bytes:
    return h2.frame_header(h2.DATA, h2.END_STREAM if end else 0, stream, len(payload)) + payload


def message(payload: bytes) -> bytes:
    return b"\0" + len(payload).to_bytes(4) + payload


def trailers(status: int = 0) -> bytes:
    return headers([("grpc-status", str(status))], end=True)


def a_link(*said: tuple[float, Sender, bytes]) -> RecordedLink:
    entries: list[Entry] = [Bytes(1, 0.0, CLIENT, h2.PREFACE)]
    entries += [Frame(1, at, sender, raw) for at, sender, raw in said]
    return RecordedLink(
        number=1,
        side=Side.DOWNSTREAM,
        peer="p",
        tls=None,
        opened_at=0.0,
        closed_at=99.0,
        entries=tuple(entries),
    )


@pytest.fixture
def autojump_clock() -> MockClock:
    return MockClock(autojump_threshold=0)


EMPTY = h2.settings({})
CALL = a_link(
    (0.0, CLIENT, EMPTY),
    (0.0, SERVER, EMPTY),
    (0.0, CLIENT, h2.SETTINGS_ACK),
    (0.0, SERVER, h2.SETTINGS_ACK),
    (1.0, CLIENT, headers(REQUEST)),
    (1.0, CLIENT, data(message(b"ask"), end=True)),
    (3.0, SERVER, headers(RESPONSE) + b""),
    (3.0, SERVER, data(message(b"one"))),
    (5.0, SERVER, trailers()),
    (5.5, CLIENT, h2.window_update(0, 8)),
)


async def played_to(link: RecordedLink, answers: RecordedLink, *, speed: float = 1.0) -> Played:
    """The client's part of one connection, to somebody who plays the server's part of another."""
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(play, answers, SERVER, theirs)
        return await play(link, CLIENT, ours, speed=speed)


def changed(link: RecordedLink, old: bytes, *new: bytes) -> RecordedLink:
    """The same, with these frames in place of this one."""
    entries: list[Entry] = []
    for entry in link.entries:
        entries += [attrs.evolve(entry, raw=raw) for raw in new] if entry.raw == old else [entry]
    assert entries != list(link.entries)
    return attrs.evolve(link, entries=tuple(entries))


@trio_test
async def test_frames_go_out_when_they_did(autojump_clock: MockClock) -> None:
    played = await played_to(CALL, CALL)
    assert played.differences() == []
    times = [(round(at, 3), raw) for at, sender, raw in played.passed if sender is CLIENT]
    assert times == [(entry.at, entry.raw) for entry in CALL.entries if entry.sender is CLIENT]


@trio_test
async def test_twice_the_speed_takes_half_the_time(autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: play(CALL, SERVER, theirs, speed=2))
        played = await play(CALL, CLIENT, ours, speed=2)
    assert [round(at, 3) for at, sender, _ in played.passed if sender is CLIENT][-1] == 2.75


@trio_test
async def test_a_frame_that_came_behind_an_answer_waits_for_a_peer_that_is_later(
    autojump_clock: MockClock,
) -> None:
    late = attrs.evolve(
        CALL,
        entries=tuple(
            attrs.evolve(entry, at=entry.at + 4) if entry.sender is SERVER and entry.at > 1 else entry
            for entry in CALL.entries
        ),
    )
    played = await played_to(CALL, late)
    assert played.differences() == []
    assert played.differences(slower_s=1) == ["/p.S/Do (stream 1): 8.000 s instead of 4.000 s"]
    # The client's last frame keeps its half second behind the end of the call.
    assert round(next(at for at, sender, raw in played.passed if raw == h2.window_update(0, 8)), 3) == 9.5


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (trailers(), [trailers(13)], "grpc-status 13 instead of grpc-status 0"),
        (trailers(), [h2.rst_stream(1, 8)], "RST_STREAM 8 instead of grpc-status 0"),
        (
            data(message(b"one")),
            [data(message(b"one")), data(message(b"two"))],
            "2 messages instead of 1",
        ),
        (data(message(b"one")), [data(message(b"onE"))], "message 0 has other bytes (the first at byte 2)"),
        (
            data(message(b"one")),
            [data(message(b"three"))],
            "message 0 has other bytes (5 bytes instead of 3)",
        ),
    ],
)
@trio_test
async def test_what_differs_is_told(
    old: bytes, new: list[bytes], told: str, autojump_clock: MockClock
) -> None:
    played = await played_to(CALL, changed(CALL, old, *new))
    assert played.differences() == [f"/p.S/Do (stream 1): {told}"]


@trio_test
async def test_the_same_answer_in_other_frames_is_no_difference(autojump_clock: MockClock) -> None:
    one = message(b"one")
    other = changed(CALL, data(one), data(one[:2]), h2.ping(b"12345678"), data(one[2:]))
    played = await played_to(CALL, other)
    assert played.differences() == []
    # And a PING that nobody has recorded is answered all the same.
    assert h2.ping(b"12345678", ack=True) in [raw for _, sender, raw in played.passed if sender is CLIENT]


@trio_test
async def test_an_answer_longer_than_the_recorded_one_gets_credit(autojump_clock: MockClock) -> None:
    pieces = [data(message(b"x" * 99_995)[start : start + 10_000]) for start in range(0, 100_000, 10_000)]
    played = await played_to(CALL, changed(CALL, data(message(b"one")), *pieces))
    assert played.differences() == [
        "/p.S/Do (stream 1): message 0 has other bytes (99995 bytes instead of 3)"
    ]


@trio_test
async def test_a_peer_that_is_silent_or_gone_is_told_of_and_waited_for_no_longer(
    autojump_clock: MockClock,
) -> None:
    silent = a_link(*[(e.at, e.sender, e.raw) for e in CALL.entries[1:] if e.at < 3 or e.sender is CLIENT])
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: play(silent, SERVER, theirs, patience_s=1000))
        played = await play(CALL, CLIENT, ours)
        nursery.cancel_scope.cancel()
    assert played.problem == "the peer did not send HEADERS of stream 1 within 12 s"
    ours, theirs = memory_stream_pair()
    await theirs.aclose()
    assert str((await play(CALL, CLIENT, ours)).problem).startswith("the connection broke: ")


@trio_test
async def test_settings_that_nobody_has_recorded_are_acknowledged(autojump_clock: MockClock) -> None:
    again = h2.settings({h2.Setting.MAX_CONCURRENT_STREAMS: 7})
    played = await played_to(CALL, changed(CALL, data(message(b"one")), again, data(message(b"one"))))
    assert played.differences() == []
    assert played.bytes_of(CLIENT).count(h2.SETTINGS_ACK) == 2


AGAIN = h2.settings({h2.Setting.INITIAL_WINDOW_SIZE: 100_000})
MEASURED = a_link(
    *[(entry.at, entry.sender, entry.raw) for entry in CALL.entries[1:8]],
    (2.5, SERVER, AGAIN),
    (2.5, CLIENT, h2.SETTINGS_ACK),
    *[(entry.at, entry.sender, entry.raw) for entry in CALL.entries[8:]],
)
"""A server that has changed its window by what it has measured."""


@trio_test
async def test_later_settings_are_sent_when_a_server_likes_and_are_not_waited_for(
    autojump_clock: MockClock,
) -> None:
    played = await played_to(MEASURED, CALL)
    assert played.differences() == []
    assert played.bytes_of(CLIENT) == CALL.bytes_of(CLIENT)


@pytest.mark.parametrize("at", [2.7, 4.5])
@trio_test
async def test_later_settings_that_are_later_than_they_were_are_acknowledged_once(
    at: float, autojump_clock: MockClock
) -> None:
    """Within a second, and after the acknowledgement was left out."""
    others = [(entry.at, entry.sender, entry.raw) for entry in CALL.entries[1:]]
    server = a_link(*sorted([*others, (at, SERVER, AGAIN)], key=lambda said: said[0]))
    played = await played_to(MEASURED, server)
    assert played.differences() == []
    assert played.bytes_of(CLIENT).count(h2.SETTINGS_ACK) == 2


@trio_test
async def test_behind_a_reset_of_ours_nothing_more_of_the_call_is_waited_for(
    autojump_clock: MockClock,
) -> None:
    begun = [(entry.at, entry.sender, entry.raw) for entry in CALL.entries[1:8]]
    cancelled = a_link(
        *begun,
        (3.5, CLIENT, h2.rst_stream(1, 8)),
        (3.5, SERVER, data(message(b"one"))),  # on its way when the reset was sent
        (4.0, CLIENT, h2.ping(b"12345678")),
        (4.0, SERVER, h2.ping(b"12345678", ack=True)),
    )
    obedient = attrs.evolve(
        cancelled, entries=tuple(each for each in cancelled.entries if each.raw != data(message(b"one")))
    )
    played = await played_to(cancelled, obedient)
    assert played.problem is None
    assert played.bytes_of(CLIENT) == cancelled.bytes_of(CLIENT)


@trio_test
async def test_data_wait_for_room_in_the_windows_of_this_peer(autojump_clock: MockClock) -> None:
    small = h2.settings({h2.Setting.INITIAL_WINDOW_SIZE: 2})
    server = a_link(
        (0.0, CLIENT, EMPTY),
        (0.0, SERVER, small),
        (0.0, CLIENT, h2.SETTINGS_ACK),
        (0.0, SERVER, h2.SETTINGS_ACK),
        (1.0, CLIENT, headers(REQUEST)),
        (2.5, SERVER, h2.window_update(1, 100)),
        (2.5, CLIENT, data(message(b"ask"), end=True)),
        (3.0, SERVER, headers(RESPONSE)),
        (3.0, SERVER, data(message(b"one"))),
        (5.0, SERVER, trailers()),
    )
    played = await played_to(CALL, server, speed=math.inf)
    assert played.differences() == []
    asked = next(at for at, _, raw in played.passed if raw == data(message(b"ask"), end=True))
    assert round(asked, 3) == 2.5


@trio_test
async def test_a_connection_that_was_not_recorded_to_its_end_is_not_played() -> None:
    ours, _ = memory_stream_pair()
    with pytest.raises(ConfigError, match="link 1 cannot be played: the disk was too slow"):
        await play(attrs.evolve(CALL, lost="the disk was too slow"), CLIENT, ours)


@trio_test
async def test_a_recorded_failure_is_a_unit_test_that_takes_no_time(autojump_clock: MockClock) -> None:
    # The answer took two seconds, and came with status 9; a server that still does so differs in nothing.
    failure = changed(changed(CALL, trailers(), trailers(9)), data(message(b"one")))

    async def fail(request: bytes, _call: ServedCall) -> bytes:
        await trio.sleep(2)
        raise RpcError(Status(statuses.pop(0)), "" if request == b"ask" else "what?")

    statuses = [9, 0x0E]
    server = Server(codec=identity_codec())
    server.add_method("/p.S/Do", unary_unary(fail, bytes))
    async with trio.open_nursery() as nursery:
        address: str = await nursery.start(server.serve, "127.0.0.1:0")
        assert (await play_to(failure, address)).differences() == []
        assert (await play_to(failure, address)).differences() == [
            "/p.S/Do (stream 1): grpc-status 14 instead of grpc-status 9"
        ]
        nursery.cancel_scope.cancel()
