"""`serve` with a table `tracing`, beside a collector that reads what it exports."""

import contextlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from rawgrpc_proxy import Pool
from rawgrpc_proxy.grpc.messages import encode_message
from rawgrpc_proxy.net.local_sender import LocalSender
from tests.command.test_cli import backends, settings_in
from tests.observe.otlp_messages import attributes_of
from tests.processes import TIMEOUT_S, Program, program
from tests.proxy.collector import a_collector

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HOUSE = """
log = {{ format = "json", fields = ["method", "trace_id"] }}
{more}
[[listeners]]
address = "127.0.0.1:0"
[clusters.a]
endpoints = ["{a}"]
[[routes]]
cluster = "a"
[tracing]
otlp = "http://{collector}"
service_name = "edge"
resource = {{ "deployment.environment.name" = "test" }}
"""


@contextlib.asynccontextmanager
async def serving(folder: Path, collector: str, more: str = "") -> AsyncIterator[tuple[Program, str]]:
    async with backends("127.0.0.1:0") as [a]:
        file = folder / "proxy.toml"
        file.write_text(HOUSE.format(a=a, collector=collector, more=more))
        async with program("serve", "--config", str(file)) as proxy:
            yield proxy, await proxy.address()


async def make_call(address: str, traceparent: str | None = f"00-{TRACE}-{SPAN}-01") -> None:
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/p.S/M"),
        (b":authority", address.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]
    if traceparent is not None:
        fields.append((b"traceparent", traceparent.encode()))
    async with Pool() as client:
        conn = await client.get_conn(address)
        stream = conn.open_stream(fields)
        await LocalSender(stream).send(encode_message(b"?"), end_stream=True)
        while await stream.inbox.receive() is not None:
            pass
        assert dict(stream.inbox.trailers_received or ())[b"grpc-status"] == b"0"
        conn.close()


def test_spans_of_sampled_calls_are_with_the_collector_when_serve_has_ended(tmp_path: Path) -> None:
    async def main() -> None:
        async with a_collector() as collector, serving(tmp_path, collector.address) as (proxy, address):
            await make_call(address)
            await make_call(address, None)
            await make_call(address, f"00-{TRACE}-{SPAN}-00")
            proxy.signal(signal.SIGTERM)
            assert await proxy.exit_code() == 0
            server, client = collector.spans
            assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE, SPAN)
            assert client.parent_span_id == server.span_id
            assert attributes_of(server)["server.port"] == int(address.rpartition(":")[2])
            assert attributes_of(collector.requests[0].resource_spans[0].resource) == {
                "service.name": "edge",
                "deployment.environment.name": "test",
            }

    trio.run(main)


def test_a_reload_loses_no_span_of_the_worker_that_goes(tmp_path: Path) -> None:
    async def main() -> None:
        async with a_collector() as collector, serving(tmp_path, collector.address) as (proxy, address):
            await make_call(address)
            proxy.signal(signal.SIGHUP)
            await collector.spans_of(2)
            await make_call(address)
            proxy.signal(signal.SIGTERM)
            assert await proxy.exit_code() == 0
            assert len(collector.spans) == 4
            # Whichever process: no two spans are the same.
            assert len({span.span_id for span in collector.spans}) == 4

    trio.run(main)


def test_a_collector_that_is_away_or_silent_keeps_neither_calls_nor_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with a_collector() as collector, serving(tmp_path, collector.address) as (proxy, address):

            async def for_ever(_asked: int) -> None:
                await trio.sleep_forever()

            collector.before = for_ever
            await make_call(address)
            proxy.signal(signal.SIGTERM)
            with trio.fail_after(TIMEOUT_S):
                assert await proxy.exit_code() == 0
            assert any("2 spans are lost" in line for line in proxy.stderr), proxy.stderr

    trio.run(main)


def test_a_trace_that_begins_here_is_in_the_log(tmp_path: Path) -> None:
    async def main() -> None:
        async with a_collector() as collector:
            async with serving(tmp_path, collector.address) as (proxy, address):
                file = tmp_path / "proxy.toml"
                file.write_text(file.read_text() + "sample = 1.0\n")
                proxy.signal(signal.SIGHUP)
                await proxy.line("stopped")  # the worker that did not know of it
                await make_call(address, None)
                proxy.signal(signal.SIGTERM)
                assert await proxy.exit_code() == 0
            server, _client = collector.spans
            calls = [json.loads(line) for line in proxy.stderr if "p.S/M" in line]
            assert [call["trace_id"] for call in calls] == [server.trace_id.hex()]

    trio.run(main)


def test_a_collector_that_is_the_proxy_itself_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        file = tmp_path / "proxy.toml"
        text = HOUSE.format(a="127.0.0.1:1", collector="127.0.0.1:COLLECTOR", more="")
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        await listener.aclose()
        file.write_text(text.replace("COLLECTOR", str(port)).replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        async with program("serve", "--config", str(file)) as proxy:
            assert await proxy.exit_code() == 2
            assert any("tracing.otlp: " in line and "this proxy itself" in line for line in proxy.stderr)

    trio.run(main)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({}, r"tracing\.otlp is missing"),
        ({"otlp": "collector"}, r"tracing\.otlp: .* is no address"),
        ({"otlp": "h:1", "sample": 2}, r"tracing\.sample is 2.0; it must be .*between 0 and 1"),
        ({"otlp": "h:1", "sample": "always"}, r'tracing\.sample is \'always\'; it must be .*"parent"'),
        ({"otlp": "h:1", "max_queued_spans": 1}, r"tracing\.max_queued_spans is 1; it must be 2 or more"),
        ({"otlp": "h:1", "resource": {"a": 1}}, r"tracing\.resource\.a is 1; it must be text"),
        ({"otlp": "h:1", "tls": {"key": "k"}}, r"tracing\.tls\.certificate is missing"),
    ],
)
def test_what_cannot_work_is_said(table: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        settings_in({"tracing": table})


@pytest.mark.parametrize(
    ("table", "address", "tls"),
    [
        ({"otlp": "http://h:4317"}, "h:4317", False),
        ({"otlp": "https://h:4317/"}, "h:4317", True),
        ({"otlp": "unix:/run/otel.sock"}, "unix:/run/otel.sock", False),
        ({"otlp": "h:4317", "tls": {}}, "h:4317", True),
    ],
)
def test_the_address_is_as_opentelemetry_writes_it_or_as_elsewhere_here(
    table: dict[str, object], address: str, tls: bool
) -> None:
    tracing = settings_in({"tracing": table}).tracing
    assert tracing is not None
    assert (tracing.address, tracing.speaks_tls) == (address, tls)
