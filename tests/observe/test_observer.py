"""What observers hear of calls, connections, TLS and dials, in whole proxies on real sockets."""

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trustme
from trio.testing import trio_test

from rawgrpc_proxy import (
    CallContext,
    Health,
    Http2Settings,
    Pool,
    Server,
    Status,
    Target,
    transparent_handler,
)
from rawgrpc_proxy.net.tls import TlsContext
from rawgrpc_proxy.observe.tell import EVENTS
from tests.proxy.house import until
from tests.proxy.raw_peers import Backend, RawPeer, connect

CHECK = "/grpc.health.v1.Health/Check"
PATIENCE_S = 30.0
UNKNOWN_FRAME = b"\x00\x00\x00\x42\x00\x00\x00\x00\x00"


class Everything:
    """Keeps all that it hears, with the facts."""

    def __init__(self, wanted: Callable[[str], bool] = lambda event: event != "calls_ended") -> None:
        self.heard: list[tuple[str, tuple[Any, ...]]] = []
        for event in filter(wanted, EVENTS):
            setattr(self, event, self._hears(event))

    def _hears(self, event: str) -> Callable[..., None]:
        return lambda *facts: self.heard.append((event, facts))

    @property
    def events(self) -> list[str]:
        return [event for event, _ in self.heard]

    def facts(self, event: str) -> tuple[Any, ...]:
        [facts] = [facts for name, facts in self.heard if name == event]
        return facts


@asynccontextmanager
async def a_watched_proxy(
    address: str, *, ssl_context: ssl.SSLContext | None = None, **pool: Any
) -> AsyncIterator[tuple[RawPeer, Everything, Everything, trio.Nursery]]:
    """A client of a proxy to this address, what its server and its pool tell, and a nursery."""
    of_server, of_pool = Everything(), Everything()
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery, Pool(observer=of_pool, **pool) as upstreams:  # type: ignore[arg-type]

            def director(context: CallContext, method: str) -> tuple[CallContext, Target]:
                return context, upstreams.target(address, ssl_context=ssl_context)

            server = Server(unknown_service_handler=transparent_handler(director), observer=of_server)  # type: ignore[arg-type]
            where = await nursery.start(server.serve, "127.0.0.1:0")
            client = await connect(where, nursery)
            yield client, of_server, of_pool, nursery
            await client.aclose()
            await until(lambda: not server.open_connections)
            server.stop()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def a_health_server(observer: object, ssl_context: TlsContext | None = None) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        server = Server(observer=observer)  # type: ignore[arg-type]
        for path, method in Health().methods().items():
            server.add_method(path, method)

        async def serve(task_status: trio.TaskStatus[str]) -> None:
            await server.serve("127.0.0.1:0", ssl_context=ssl_context, task_status=task_status)

        yield await nursery.start(serve)
        nursery.cancel_scope.cancel()


@trio_test
async def test_a_call_and_its_connections_are_told_from_the_first_to_the_last() -> None:
    backend = Backend(None)
    async with trio.open_nursery() as backends:
        await backends.start(backend.run)
        async with a_watched_proxy(backend.address) as (client, of_server, of_pool, _):
            for _ in range(2):
                call = await client.request("/a.B/C")
                await (await backend.request()).respond()
                assert (await call.answer()).status == Status.OK
        assert of_server.events == [
            "connection_opened",
            *["call_begun", "response_begun", "call_ended"] * 2,
            "connection_closed",
        ]
        records = [facts[0] for event, facts in of_server.heard if event.startswith("call_")]
        assert records[0] is records[1]
        assert records[0].method == "/a.B/C"
        _, tls = of_server.facts("connection_opened")
        assert tls is None
        peer, error, age_s, calls = of_server.facts("connection_closed")
        assert peer == records[0].peer
        assert (error.why, calls) == ("closed_by_peer", 2)
        assert 0 < age_s < PATIENCE_S

        assert of_pool.events == [
            "dial_started",
            "call_waits",
            "dial_succeeded",
            "upstream_opened",
            "call_placed",
            "call_placed",
            "upstream_closed",
        ]
        address, duration_s = of_pool.facts("dial_succeeded")
        assert address == backend.address
        assert 0 < duration_s < PATIENCE_S
        assert of_pool.facts("call_waits") == (backend.address, 0)
        address, error, _, calls = of_pool.facts("upstream_closed")
        assert (error.why, calls) == ("closed_by_proxy", 2)
        backends.cancel_scope.cancel()


@trio_test
async def test_a_dial_that_fails_is_told_with_its_cause_and_the_call_is_refused() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        async with a_watched_proxy(address, connect_wait_s=0) as (client, of_server, of_pool, _):
            assert (await (await client.request("/a.B/C")).answer()).status == Status.UNAVAILABLE
            assert "response_begun" not in of_server.events
        failed = [facts for event, facts in of_pool.heard if event == "dial_failed"]
        assert failed[0][0] == address
        assert "refused" in str(failed[0][2])
        told, refusal = of_pool.facts("call_refused")
        assert (told, refusal.status) == (address, Status.UNAVAILABLE)
        assert "call_placed" not in of_pool.events


@trio_test
async def test_handshakes_of_tls_are_told_on_both_sides_with_their_time_and_version() -> None:
    authority = trustme.CA()
    of_server = Everything()
    theirs, ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    authority.configure_trust(ours)
    for context in (theirs, ours):
        context.set_alpn_protocols(["h2"])
    async with (
        a_health_server(of_server, theirs) as address,
        a_watched_proxy(address, ssl_context=ours) as (client, _, of_pool, _),
    ):
        assert (await (await client.request(CHECK)).answer()).status == Status.OK
        assert of_pool.facts("upstream_opened") == (address, "TLSv1.3")
        told, duration_s = of_pool.facts("upstream_tls_done")
        assert told == address
        assert 0 < duration_s <= of_pool.facts("dial_succeeded")[1]
        peer, duration_s = of_server.facts("tls_handshake_done")
        assert 0 < duration_s < PATIENCE_S
        assert of_server.facts("connection_opened") == (peer, "TLSv1.3")


@trio_test
async def test_a_handshake_of_tls_that_fails_is_told_on_both_sides() -> None:
    of_server = Everything()
    theirs, ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    trustme.CA().issue_cert("127.0.0.1").configure_cert(theirs)
    theirs.set_alpn_protocols(["h2"])
    async with (
        a_health_server(of_server, theirs) as address,
        a_watched_proxy(address, ssl_context=ours, connect_wait_s=0) as (client, _, of_pool, _),
    ):
        assert (await (await client.request(CHECK)).answer()).status == Status.UNAVAILABLE
        await until(lambda: "tls_handshake_failed" in of_server.events)
        assert "connection_opened" not in of_server.events
        failed = [facts for event, facts in of_pool.heard if event == "upstream_tls_failed"]
        assert failed[0][0] == address
        assert isinstance(failed[0][2], ssl.SSLError)


@pytest.mark.parametrize("wanted", ["call_begun", "response_begun", "call_placed"])
@trio_test
async def test_nothing_of_a_call_is_looked_up_that_nobody_wants(wanted: str) -> None:
    """Neither is a method asked for in a call: an observer that gets it only later is not heard."""
    backend = Backend(None)
    async with trio.open_nursery() as backends:
        await backends.start(backend.run)
        async with a_watched_proxy(backend.address) as (client, of_server, of_pool, _):
            for observer in (of_server, of_pool):
                setattr(observer, wanted, lambda *_facts: pytest.fail("asked in the middle of a call"))
            call = await client.request("/a.B/C")
            await (await backend.request()).respond()
            assert (await call.answer()).status == Status.OK
        backends.cancel_scope.cancel()


@trio_test
async def test_a_limit_that_ends_a_connection_is_named_by_its_error() -> None:
    of_server = Everything()
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            server = Server(observer=of_server, settings=Http2Settings(abuse_budget=100.0))  # type: ignore[arg-type]
            client = await connect(await nursery.start(server.serve, "127.0.0.1:0"), nursery)
            await client.send_bytes(1000 * UNKNOWN_FRAME)
            await until(lambda: "connection_closed" in of_server.events)
            _, error, _, _ = of_server.facts("connection_closed")
            assert (error.why, error.limit) == ("abuse", "abuse_budget")
            await client.aclose()
            nursery.cancel_scope.cancel()
