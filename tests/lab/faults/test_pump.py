"""Faults on real links: of a server's callers, and of a pool's upstreams, on both engines."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

import pytest
import trio
from hyperframe.frame import PingFrame
from trio.testing import MockClock, memory_stream_pair, trio_test, wait_all_tasks_blocked

from rawgrpc_proxy import Status
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.lab.faults.actions import (
    Action,
    AnswerHttp,
    AnswerStatus,
    Bandwidth,
    ChangeSettings,
    Cut,
    CutMessage,
    Delay,
    DoubleMessage,
    DropTrailers,
    Goaway,
    HalfClose,
    Latency,
    PadFrame,
    PingFlood,
    Reset,
    Silence,
    SplitFrame,
    TrailersBeforeData,
    UnknownFrame,
)
from rawgrpc_proxy.lab.faults.fault import Fault
from rawgrpc_proxy.lab.faults.places import AfterMessage, AtConnect, BeforeHeaders, Part, Place
from rawgrpc_proxy.lab.faults.pump import with_faults
from rawgrpc_proxy.net.tapped import Link, LinkTap
from rawgrpc_proxy.net.transport import Transport
from tests.lab.faults.talk import Scripted
from tests.net.test_tls import Certificates
from tests.proxy.house import House, a_proxy, on_every_engine, until
from tests.proxy.raw_peers import (
    OK,
    RESPONSE,
    Answer,
    PeerStream,
    RawPeer,
    message,
    request_fields,
    start_client,
)
from tests.proxy.raw_peers import (
    Reset as ResetFrame,
)

ONE = "/one.S/M"
LARGE = bytes(range(256)) * 8000
RESPONSE_PART = Part.RESPONSE


def callers(*faults: Fault, active: bool = True) -> dict[str, Any]:
    """What `a_proxy` takes, for faults on the connections of callers."""
    return {"wrap": with_faults(Scripted(faults, active=active))}


def upstreams(*faults: Fault, active: bool = True) -> dict[str, Any]:
    """The same for those to upstreams."""
    return {"pool": {"wrap": with_faults(Scripted(faults, active=active))}}


async def call_through(house: House, client: RawPeer, path: str = "/a.B/C", body: bytes = b"x") -> Answer:
    call = await client.request(path, body=body)
    served = await house.backend.request()
    assert await served.request_body() == message(body)
    await served.respond(body)
    return await call.answer()


@on_every_engine
@pytest.mark.parametrize("active", [True, False])
@trio_test
async def test_without_faults_all_passes_in_both_directions(engine: Engine, active: bool) -> None:
    async with a_proxy(engine, **callers(active=active), **upstreams(active=active)) as house:
        client = await house.client()
        for body in (b"", b"x", LARGE):
            answer = await call_through(house, client, body=body)
            assert (answer.status, answer.body) == (Status.OK, message(body))


@on_every_engine
@trio_test
async def test_many_calls_at_once_pass_beside_faults(engine: Engine) -> None:
    fault = Fault(method=ONE, where=AfterMessage(number=1), do=Reset(code="INTERNAL_ERROR"))
    async with a_proxy(engine, **callers(fault)) as house:
        client = await house.client()
        answers: dict[str, list[Answer]] = {ONE: [], "/a.B/C": []}

        async def one(path: str) -> None:
            call = await client.request(path, body=b"x" * 30_000)
            answers[path].append(await call.answer())

        async def serve(stream: Any) -> None:
            await stream.request_body()
            await stream.respond(b"y" * 30_000)

        house.nursery.start_soon(house.backend.answer_all, serve)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one, ONE)
                nursery.start_soon(one, "/a.B/C")
        assert {answer.reset for answer in answers[ONE]} == {2}
        assert {answer.body for answer in answers["/a.B/C"]} == {message(b"y" * 30_000)}


# ------------------------------------------------------------------ on callers


@on_every_engine
@pytest.mark.parametrize(
    ("where", "do", "frames"),
    [
        (BeforeHeaders(), AnswerStatus(status=14), ["HEADERS END_STREAM"]),
        (BeforeHeaders(of=RESPONSE_PART), AnswerHttp(status=502, body="<p>"), ["HEADERS", "DATA END_STREAM"]),
        (AfterMessage(number=1), AnswerStatus(status=14), ["HEADERS", "DATA", "HEADERS END_STREAM"]),
        (AfterMessage(number=1), Reset(), ["HEADERS", "DATA", "RST_STREAM"]),
        (AfterMessage(number=1), Cut(), ["HEADERS", "DATA", "lost"]),
        (AfterMessage(number=1), Cut(reset=True), ["HEADERS", "DATA", "lost"]),
        (AfterMessage(number=1), HalfClose(), ["HEADERS", "DATA", "lost"]),
        (AfterMessage(number=1), Goaway(), ["HEADERS", "DATA", "HEADERS END_STREAM"]),
        (AfterMessage(number=1), PingFlood(count=50), ["HEADERS", "DATA", "HEADERS END_STREAM"]),
        (AfterMessage(number=1), DoubleMessage(), ["HEADERS", "DATA", "DATA", "HEADERS END_STREAM"]),
        (AfterMessage(number=1), CutMessage(), ["HEADERS", "DATA", "HEADERS END_STREAM"]),
        (
            BeforeHeaders(of=RESPONSE_PART),
            SplitFrame(at=2),
            ["HEADERS", "DATA", "DATA", "HEADERS END_STREAM"],
        ),
        (BeforeHeaders(of=RESPONSE_PART), PadFrame(), ["HEADERS", "DATA", "HEADERS END_STREAM"]),
        (BeforeHeaders(), DropTrailers(), ["HEADERS", "DATA", "DATA END_STREAM"]),
        (BeforeHeaders(), TrailersBeforeData(), ["HEADERS", "HEADERS", "DATA END_STREAM"]),
        (BeforeHeaders(of=RESPONSE_PART), UnknownFrame(), ["HEADERS", "DATA", "HEADERS END_STREAM"]),
        (BeforeHeaders(), ChangeSettings(settings={"MAX_CONCURRENT_STREAMS": 1}), None),
        (BeforeHeaders(), Delay(seconds=0.01), None),
        (BeforeHeaders(of=RESPONSE_PART), Bandwidth(bytes_per_s=1e6), None),
        (BeforeHeaders(of=RESPONSE_PART), Latency(seconds=0.01), None),
    ],
    ids=str,
)
@trio_test
async def test_the_caller_gets_what_the_fault_says_and_the_proxy_goes_on(
    engine: Engine, where: Place, do: Action, frames: Sequence[str] | None
) -> None:
    async with a_proxy(engine, **callers(Fault(method=ONE, where=where, do=do))) as house:
        client = await house.client()
        call = await client.request(ONE, body=b"hello")
        if where != BeforeHeaders() or not isinstance(do, AnswerStatus):
            served = await house.backend.request()
            await served.headers(RESPONSE)
            await served.body(message(b"hello"))
            await until(lambda: not call.nothing_came() or isinstance(do, TrailersBeforeData))
            await served.headers(OK, end=True)
        assert (await call.answer()).frames == (frames or ["HEADERS", "DATA", "HEADERS END_STREAM"])
        # The illegal ones, too, have not hurt the proxy's own session.
        assert house.observer.connections_failed == [] or isinstance(do, Cut | HalfClose)
        other = await house.client()
        assert (await call_through(house, other)).status == Status.OK


@on_every_engine
@trio_test
async def test_the_proxy_takes_a_call_that_was_reset_here_for_cancelled(engine: Engine) -> None:
    fault = Fault(where=BeforeHeaders(of=RESPONSE_PART), do=Reset(code="REFUSED_STREAM"))
    async with a_proxy(engine, **callers(fault)) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.headers(RESPONSE)
        assert (await call.answer()).reset == 7
        assert (await served.expect_data()).end_stream
        assert isinstance(await served.next(), ResetFrame)
        assert (await house.record()).status == Status.CANCELLED


@on_every_engine
@trio_test
async def test_a_silent_connection_ends_when_its_caller_gives_it_up(engine: Engine) -> None:
    async with a_proxy(engine, **callers(Fault(where=AfterMessage(number=1), do=Silence()))) as house:
        client = await house.client()
        call = await client.request()
        served = await house.backend.request()
        await served.headers(RESPONSE)
        await served.body(message(b"first"))
        await call.expect_headers()
        await call.expect_data()
        await served.body(message(b"second"))
        await served.reset(0)
        await client.send(PingFrame(0, b"anybody?"))
        await wait_all_tasks_blocked(0.05)
        assert not any(line.startswith("PING") for line in client.log)
        assert call.nothing_came()
        await client.aclose()


@on_every_engine
@trio_test
async def test_a_connection_that_is_cut_at_once_is_nobodys_fault(engine: Engine) -> None:
    async with a_proxy(engine, **callers(Fault(where=AtConnect(), do=Cut(reset=True)))) as house:
        host, _, port = house.address.rpartition(":")
        stream = await trio.open_tcp_stream(host, int(port))
        with pytest.raises(trio.BrokenResourceError, match="reset"):
            await stream.receive_some(100)
        await stream.aclose()


# ---------------------------------------------------------------- on upstreams


@on_every_engine
@pytest.mark.parametrize(
    ("do", "status"),
    [
        (AnswerStatus(status="UNAVAILABLE"), Status.UNAVAILABLE),
        (AnswerHttp(status=502, body="<p>"), Status.UNAVAILABLE),
        (Reset(code="INTERNAL_ERROR"), Status.INTERNAL),
        (Cut(), Status.UNAVAILABLE),
        (Cut(reset=True), Status.UNAVAILABLE),
    ],
    ids=str,
)
@trio_test
async def test_the_proxy_has_an_upstream_with_the_fault(engine: Engine, do: Action, status: Status) -> None:
    fault = Fault(side=Side.UPSTREAM, method=ONE, where=BeforeHeaders(of=RESPONSE_PART), do=do)
    async with a_proxy(engine, **upstreams(fault)) as house:
        client = await house.client()
        call = await client.request(ONE)
        served = await house.backend.request()
        await served.headers(RESPONSE)
        answer = await call.answer()
        assert (await house.record()).status == status
        assert answer.http_status == (b"502" if isinstance(do, AnswerHttp) else b"200")
        assert (await call_through(house, client)).status == Status.OK


@on_every_engine
@trio_test
async def test_an_upstream_that_allows_one_call_gets_one_on_each_connection(engine: Engine) -> None:
    fault = Fault(
        side=Side.UPSTREAM, where=AtConnect(), do=ChangeSettings(settings={"MAX_CONCURRENT_STREAMS": 1})
    )
    async with a_proxy(engine, **upstreams(fault)) as house:
        client = await house.client()
        calls = [await client.request() for _ in range(3)]
        served = [await house.backend.request() for _ in range(3)]
        assert len({stream.peer for stream in served}) == 3
        for stream in served:
            await stream.respond()
        for call in calls:
            assert (await call.answer()).status == Status.OK


@on_every_engine
@trio_test
async def test_a_refused_goaway_sends_the_call_again(engine: Engine) -> None:
    """GOAWAY below the call: it was not processed, so the proxy may try another connection."""
    fault = Fault(
        side=Side.UPSTREAM, method=ONE, do=Goaway(below=1), where=AfterMessage(number=1, of=Part.REQUEST)
    )

    class Once(Scripted):
        def call_begun(self, link: Link, method: str, headers: Sequence[tuple[bytes, bytes]]) -> Any:
            return [] if self.done else super().call_begun(link, method, headers)

    async with a_proxy(engine, pool={"wrap": with_faults(Once([fault]))}) as house:
        client = await house.client()
        call = await client.request(ONE)
        await house.backend.request()
        again = await house.backend.request()
        await again.respond(b"second try")
        assert (await call.answer()).body == message(b"second try")


# ------------------------------------------------------------------- the links


@on_every_engine
@trio_test
async def test_tls_links_have_faults_as_others_do(engine: Engine) -> None:
    certificates = Certificates()
    for context in (certificates.client, certificates.server):
        context.set_alpn_protocols(["h2"])
    async with a_proxy(engine, **callers(Fault(method=ONE, where=AfterMessage(number=1), do=Cut()))) as house:
        address = await house.nursery.start(
            lambda task_status: house.server.serve(
                "127.0.0.1:0", ssl_context=certificates.server, task_status=task_status
            )
        )
        host, _, port = address.rpartition(":")
        stream = await trio.open_tcp_stream(host, int(port))
        tls = trio.SSLStream(stream, certificates.client, server_hostname="backend")
        client = await start_client(tls, house.nursery)
        house.clients.append(client)
        answer = await call_through(house, client, body=LARGE)
        assert (answer.status, answer.body) == (Status.OK, message(LARGE))
        call = await client.request(ONE)
        served = await house.backend.request()
        await served.respond(b"x")
        answer = await call.answer()
        assert (answer.body, answer.lost) == (message(b"x"), True)


@on_every_engine
@trio_test
async def test_a_caller_that_does_not_read_stops_its_upstream(engine: Engine) -> None:
    async with a_proxy(engine, **callers(), **upstreams()) as house:
        client = await house.client({4: 2**31 - 1})
        await client.credit(None, 2**30)
        call = await client.request()
        served = await house.backend.request()
        client.stop_reading()
        body = bytes(50_000_000)
        await served.headers(RESPONSE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: served.body(body, end=True))
            await served.blocked.wait()
            await wait_all_tasks_blocked(0.1)
            assert served.sent_bytes < 20_000_000
            client.go_on_reading()
            assert (await call.answer()).body == body


@on_every_engine
@trio_test
async def test_a_peer_that_asks_and_does_not_read_is_not_read_either(engine: Engine) -> None:
    """Answers that a fault has made wait for their reader within bounds."""
    async with a_proxy(engine, **callers(Fault(do=AnswerHttp(status=502, body="x" * 16_000)))) as house:
        client = await house.client({4: 2**31 - 1})
        await client.credit(None, 2**30)
        client.credits = False  # it does not write while it reads
        client.stop_reading()
        asked: list[PeerStream] = []

        async def ask() -> None:
            for _ in range(1000):
                call = await client.request("/a.B/C", (b"x-large", b"x" * 16_000), body=None)
                asked.append(call)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await wait_all_tasks_blocked(0.1)
            assert len(asked) < 1000
            client.go_on_reading()
        for call in asked:
            assert (await call.answer()).http_status == b"502"


@on_every_engine
@trio_test
async def test_an_upstream_that_does_not_read_is_heard_all_the_same(engine: Engine) -> None:
    async with a_proxy(engine, backend={4: 2**30}, **callers(), **upstreams()) as house:
        client = await house.client()
        call = await client.open(request_fields())
        served = await house.backend.request()
        await served.peer.credit(None, 2**30)
        await served.peer.ping()
        served.peer.stop_reading()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call.body, bytes(50_000_000))
            await call.blocked.wait()
            await served.respond(b"enough")
            assert (await call.answer()).status == Status.OK
            served.peer.go_on_reading()
            nursery.cancel_scope.cancel()


@on_every_engine
@trio_test
async def test_an_upstream_that_speaks_something_else_is_told_by_its_first_bytes(engine: Engine) -> None:
    async def alert(stream: trio.SocketStream) -> None:
        await stream.send_all(bytes.fromhex("15030100020246"))  # of TLS, and less than a frame's header
        await stream.receive_some()

    async with a_proxy(engine, **upstreams()) as house:
        house.backend.raw_script = alert
        client = await house.client()
        call = await client.request()
        answer = await call.answer()
        assert answer.status == Status.UNAVAILABLE
        assert b"TLS" in (answer.message or b"")


@on_every_engine
@pytest.mark.parametrize("side", [Side.DOWNSTREAM, Side.UPSTREAM])
@trio_test
async def test_a_peer_that_is_gone_in_the_middle_ends_its_calls_with_its_cause(
    engine: Engine, side: Side
) -> None:
    async with a_proxy(engine, **callers(), **upstreams()) as house:
        client = await house.client()
        call = await client.open(request_fields())
        served = await house.backend.request()
        await served.headers(RESPONSE)
        await call.expect_headers()
        gone = client if side is Side.DOWNSTREAM else served.peer
        # With bytes unread its end is a reset, and comes in the middle of what is written to it.
        gone.stop_reading()
        other = call if side is Side.UPSTREAM else served
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await other.body(bytes(3_000_000))

            nursery.start_soon(send)
            await wait_all_tasks_blocked(0.05)
            await gone.aclose()
            record = await house.record()
            origin = "downstream" if side is Side.DOWNSTREAM else "lost"
            assert (record.status, record.origin, record.cause) == (Status.UNAVAILABLE, origin, "RST")
            nursery.cancel_scope.cancel()


@on_every_engine
@trio_test
async def test_a_tap_sees_the_fault_that_is_on_the_wire(engine: Engine) -> None:
    class Tap:
        def __init__(self) -> None:
            self.data, self.link_seen, self.ends = b"", None, 0

        def link(self, link: Link) -> LinkTap:
            self.link_seen = link  # type: ignore[assignment]
            return self

        def received(self, data: Data) -> None:
            pass

        def sent(self, data: Data) -> None:
            self.data += data

        def closed(self) -> None:
            self.ends += 1

    tap = Tap()
    fault = Fault(
        do=UnknownFrame(type=0xBB, payload=b"seen by the tap"), where=BeforeHeaders(of=RESPONSE_PART)
    )
    async with a_proxy(engine, tap=tap, **callers(fault)) as house:
        client = await house.client()
        assert (await call_through(house, client)).status == Status.OK
    assert b"seen by the tap" in tap.data
    assert tap.ends == 1


@on_every_engine
@trio_test
async def test_what_cannot_wrap_is_reported_and_nothing_is_in_between(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: reported.append(str(raised.exc_value)))

    def broken(transport: Transport, link: Link, nursery: trio.Nursery) -> Transport:
        raise RuntimeError("no faults today")

    async with a_proxy(engine, wrap=broken) as house:
        client = await house.client()
        assert (await call_through(house, client)).status == Status.OK
        [connection] = house.server._connections
        assert type(connection.transport).__module__ == "rawgrpc_proxy.net.transport"
    assert reported == ["no faults today"]


@on_every_engine
@trio_test
async def test_a_server_that_stops_says_farewell_through_the_pump(engine: Engine) -> None:
    async with a_proxy(engine, **callers()) as house:
        client = await house.client()
        assert (await call_through(house, client)).status == Status.OK
        house.server.stop()
        await client.expect_goaway()
        await client.closed()


@on_every_engine
@trio_test
async def test_a_peer_that_breaks_the_rules_is_told_so_through_the_pump(engine: Engine) -> None:
    async with a_proxy(engine, **callers()) as house:
        for _ in range(8):
            client = await house.client()
            await client.send_bytes(bytes([0, 0, 1, 6, 0, 0, 0, 0, 0, 0]))  # a PING of one byte
            began = trio.current_time()
            assert (await client.expect_goaway()).code == 6
            await client.closed()
            await until(lambda: house.server.open_connections == 0)
            assert trio.current_time() - began < 0.9, "the pump waits for nothing when the peer is gone"
        house.observer.connections_failed.clear()


@on_every_engine
@trio_test
async def test_cancelling_leaves_nothing_of_a_pump(engine: Engine) -> None:
    faults = [Fault(where=AtConnect(), do=Latency(seconds=30))]
    async with a_proxy(engine, **callers(*faults), **upstreams(*faults)) as house:
        async with trio.open_nursery() as nursery:
            address = await nursery.start(house.server.serve, "127.0.0.1:0")
            host, _, port = address.rpartition(":")
            streams = [await trio.open_tcp_stream(host, int(port)) for _ in range(3)]
            await until(lambda: len(house.server._connections) == 3)
            nursery.cancel_scope.cancel()
        for stream in streams:
            await stream.aclose()


def test_in_memory_delays_take_no_time() -> None:
    """Nothing of a pump is a socket of the system's: virtual time passes as it should."""

    async def main() -> float:
        fault = Fault(do=[Delay(seconds=40), AnswerStatus(status=4)])
        async with a_proxy("relay", **callers(fault)) as house:
            ours, theirs = memory_stream_pair()
            house.nursery.start_soon(house.server.serve_stream, theirs)
            client = await start_client(ours, house.nursery)
            house.clients.append(client)
            call = client.new_stream()
            await call.headers(request_fields(), end=True)
            await trio.sleep(39)
            assert call.nothing_came()
            assert (await call.answer()).status == Status.DEADLINE_EXCEEDED
            return trio.current_time()

    began = perf_counter()
    assert trio.run(main, clock=MockClock(autojump_threshold=0)) >= 40
    assert perf_counter() - began < 20
