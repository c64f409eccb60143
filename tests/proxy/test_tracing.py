"""What callers say of traces goes on as it came; of calls that are traced, the upstream is told the client span."""

import pytest
import trio

from rawgrpc_proxy import Status
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.observe.trace_context import parse_traceparent
from rawgrpc_proxy.observe.tracing import Tracing
from rawgrpc_proxy.proxy.otlp_exporter import OtlpExporter
from tests.observe.otlp_messages import attributes_of
from tests.proxy.collector import a_collector
from tests.proxy.house import a_proxy, on_every_engine
from tests.proxy.raw_peers import Field, message

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = (b"traceparent", f"00-{TRACE}-{SPAN}-01".encode())
NOT_SAMPLED = (b"traceparent", f"00-{TRACE}-{SPAN}-00".encode())
OTHERS = [
    (b"tracestate", b"congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"),
    (b"tracestate", b"later=1"),
    (b"grpc-trace-bin", b"AAAK92UZFs1D3YRI6yEcgDGcAbetaw"),
    (b"b3", b"80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1-05e3ac9a4f6e3b90"),
    (b"x-b3-traceid", b"80F198EE56343BA864FE8B2A57D3EFF7"),
    (b"x-cloud-trace-context", b"105445aa7843bc8bf206b12000100000/1;o=1"),
]
STRANGE: list[list[Field]] = [
    [SAMPLED, SAMPLED],
    [(b"traceparent", b"")],
    [(b"traceparent", b"ff" + SAMPLED[1][2:])],
    [(b"traceparent", SAMPLED[1] + b"-more")],
    [(b"traceparent", b"00-" + b"a" * 16_000)],
    [(b"traceparent", b"\xff\xfe"), (b"b3", b"\xff")],
]


async def seen_by_upstream(
    engine: Engine, fields: list[Field], tracing: Tracing | None = None
) -> list[Field]:
    """What of a call's custom metadata arrives."""
    async with a_proxy(engine, tracing=tracing) as house:
        client = await house.client()
        call = await client.request("/a.B/C", *fields, body=b"?")
        served = await house.backend.request()
        await served.respond(b"!")
        assert (await call.answer()).status == 0
        names = {name for name, _ in fields} | {b"traceparent", b"tracestate"}
        return [field for field in served.request.fields if field[0] in names]


@on_every_engine
@pytest.mark.parametrize("fields", [[SAMPLED, *OTHERS], [NOT_SAMPLED, *OTHERS], OTHERS, *STRANGE])
def test_what_callers_say_of_traces_goes_on_byte_for_byte(engine: Engine, fields: list[Field]) -> None:
    assert trio.run(seen_by_upstream, engine, fields) == fields


@on_every_engine
@pytest.mark.parametrize("fields", [[NOT_SAMPLED, *OTHERS], OTHERS, *STRANGE])
def test_with_tracing_what_is_not_sampled_goes_on_byte_for_byte(engine: Engine, fields: list[Field]) -> None:
    tracing = Tracing()
    assert trio.run(seen_by_upstream, engine, fields, tracing) == fields
    assert tracing.waiting == 0


@on_every_engine
def test_of_a_sampled_call_nothing_but_the_parent_changes(engine: Engine) -> None:
    tracing = Tracing()
    [*others, (name, value)] = trio.run(seen_by_upstream, engine, [SAMPLED, *OTHERS], tracing)
    assert others == OTHERS
    parent = parse_traceparent(value)
    assert name == b"traceparent"
    assert parent is not None
    assert (parent.trace_id.hex(), parent.sampled) == (TRACE, True)
    assert parent.parent_id.hex() != SPAN
    assert tracing.waiting == 2


@on_every_engine
def test_the_upstream_s_parent_is_the_client_span_whose_parent_is_the_server_span(engine: Engine) -> None:
    async def main() -> None:
        tracing = Tracing()
        async with a_proxy(engine, tracing=tracing) as house, a_collector() as collector:
            async with OtlpExporter(tracing, collector.address):
                client = await house.client()
                call = await client.request("/a.B/C", SAMPLED, (b"tracestate", b"a=1"), body=b"?")
                served = await house.backend.request()
                parent = parse_traceparent(dict(served.request.fields)[b"traceparent"])
                await served.respond(trailers=[(b"grpc-status", b"5"), (b"grpc-message", b"no such order")])
                assert (await call.answer()).status == 5
                record = await house.record()
            server, client_span = await collector.spans_of(2)
            assert parent is not None
            assert server.trace_id.hex() == client_span.trace_id.hex() == TRACE
            assert server.parent_span_id.hex() == SPAN
            assert client_span.parent_span_id == server.span_id
            assert client_span.span_id == parent.parent_id
            assert server.trace_state == client_span.trace_state == "a=1"
            assert client_span.start_time_unix_nano >= server.start_time_unix_nano
            assert client_span.end_time_unix_nano == server.end_time_unix_nano
            # NOT_FOUND is no failure of a server; of a client it is.
            assert (server.status.code, client_span.status.code) == (0, 2)
            assert client_span.status.message == "no such order"
            assert attributes_of(server)["server.address"] == "backend.example"
            host, _, port = house.backend.address.rpartition(":")
            assert attributes_of(client_span)["server.address"] == host
            assert attributes_of(client_span)["server.port"] == int(port)
            assert record.trace is not None
            assert (tracing.exported, tracing.dropped) == (2, 0)

    trio.run(main)


@on_every_engine
def test_a_call_that_is_sent_once_more_has_one_client_span(engine: Engine) -> None:
    async def main() -> None:
        tracing = Tracing()
        async with a_proxy(engine, tracing=tracing) as house, a_collector() as collector:
            async with OtlpExporter(tracing, collector.address):
                client = await house.client()
                call = await client.request("/a.B/C", SAMPLED, body=b"?")
                refused = await house.backend.request()
                await refused.reset(7)  # REFUSED_STREAM
                served = await house.backend.request()
                assert served.request.get(b"traceparent") == refused.request.get(b"traceparent")
                await served.respond()
                assert (await call.answer()).status == 0
                await house.record()
            await collector.spans_of(2)

    trio.run(main)


@on_every_engine
@pytest.mark.parametrize("path", ["/not.There/Method", "/no.method/at/all?x=1"])
def test_a_call_that_goes_nowhere_has_a_server_span_alone(engine: Engine, path: str) -> None:
    async def main() -> None:
        tracing = Tracing()
        async with a_proxy(engine, unknown=False, tracing=tracing) as house, a_collector() as collector:
            async with OtlpExporter(tracing, collector.address):
                client = await house.client()
                call = await client.request(path, SAMPLED)
                assert (await call.answer()).status == Status.UNIMPLEMENTED
                await house.record()
            [server] = await collector.spans_of(1)
            assert server.parent_span_id.hex() == SPAN
            assert server.status.code == 2
            assert attributes_of(server)["rpc.method"] == "_OTHER"

    trio.run(main)


@on_every_engine
def test_a_caller_that_gives_up_leaves_spans_that_are_cancelled(engine: Engine) -> None:
    async def main() -> None:
        tracing = Tracing()
        async with a_proxy(engine, tracing=tracing) as house, a_collector() as collector:
            async with OtlpExporter(tracing, collector.address):
                client = await house.client()
                call = await client.request("/a.B/C", SAMPLED)
                served = await house.backend.request()
                await served.request_body()
                await call.reset(8)
                assert await served.expect_reset() == 8
                await house.record()
            server, client_span = await collector.spans_of(2)
            assert attributes_of(server)["rpc.response.status_code"] == "CANCELLED"
            assert (server.status.code, client_span.status.code) == (0, 2)

    trio.run(main)


@on_every_engine
def test_a_trace_that_begins_here_is_the_upstream_s_and_the_log_s(engine: Engine) -> None:
    async def main() -> None:
        tracing = Tracing(sample=1.0)
        async with a_proxy(engine, tracing=tracing) as house:
            client = await house.client()
            # A state without a parent belongs to no trace.
            call = await client.request("/a.B/C", (b"tracestate", b"stray=1"))
            served = await house.backend.request()
            fields = dict(served.request.fields)
            parent = parse_traceparent(fields[b"traceparent"])
            assert b"tracestate" not in fields
            await served.respond()
            assert (await call.answer()).status == 0
            record = await house.record()
            assert parent is not None
            assert record.trace is not None
            assert record.trace.trace_id == parent.trace_id
            assert parent.flags == 3

    trio.run(main)


@on_every_engine
def test_a_caller_cannot_say_otherwise_in_the_trailers_of_its_request(engine: Engine) -> None:
    async def main() -> None:
        async with a_proxy(engine, tracing=Tracing()) as house:
            client = await house.client()
            call = await client.open([*_request(), SAMPLED])
            served = await house.backend.request()
            await call.data(message(b"?"))
            await call.headers([(b"traceparent", b"00-" + b"1" * 32), (b"x-kept", b"1")], end=True)
            [trailers] = [(await served.answer()).headers]
            assert trailers is not None
            assert trailers.fields == [(b"x-kept", b"1")]
            await served.respond()
            await call.answer()
            await house.record()

    trio.run(main)


def _request() -> list[Field]:
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/a.B/C"),
        (b":authority", b"backend.example"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]
