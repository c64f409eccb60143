"""Spans on their way to a collector, and collectors that are away, slow, silent or of another opinion."""

import itertools
import socket

import pytest
import trio
from hyperframe.frame import SettingsFrame

from rawgrpc_proxy import ConfigError, LoopGuard, RpcError, Status
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.observe.record import CallRecord
from rawgrpc_proxy.observe.trace_context import SAMPLED, Trace
from rawgrpc_proxy.observe.tracing import BATCH, Tracing
from rawgrpc_proxy.proxy.otlp_exporter import ExportTimes, OtlpExporter
from tests.observe.otlp_messages import attributes_of, otlp
from tests.proxy.collector import Collector, a_collector

QUICK = ExportTimes(every_s=0.01, timeout_s=0.5, flush_s=0.5)
PATIENCE_S = 30.0
NUMBERS = itertools.count(1)


def make_calls(tracing: Tracing, number: int = 1) -> None:
    """So many calls end, each with one span."""
    for _ in range(number):
        trace = Trace(b"a trace's 16 B..", b"", next(NUMBERS).to_bytes(8), b"client's", SAMPLED, "", "", 0)
        tracing.ended(trace, CallRecord(method="/p.S/M", peer="unix:", status=Status.OK))


def test_spans_leave_in_batches_and_the_rest_at_the_end() -> None:
    async def main() -> None:
        tracing = Tracing()
        async with a_collector() as collector:
            exporter = OtlpExporter(
                tracing,
                collector.address,
                service_name="edge",
                resource={"x.y": "z"},
                times=ExportTimes(every_s=600.0),
            )
            async with exporter:
                make_calls(tracing, BATCH)
                await collector.spans_of(BATCH)  # without waiting for more
                make_calls(tracing, 3)
            assert len(collector.spans) == BATCH + 3
            assert (tracing.exported, tracing.dropped, tracing.waiting) == (BATCH + 3, 0, 0)
            resource = collector.requests[-1].resource_spans[0].resource
            assert attributes_of(resource) == {"service.name": "edge", "x.y": "z"}

    trio.run(main)


def test_spans_that_are_few_leave_after_a_while() -> None:
    async def main() -> None:
        tracing = Tracing()
        async with a_collector() as collector, OtlpExporter(tracing, collector.address, times=QUICK):
            make_calls(tracing)
            await collector.spans_of(1)

    trio.run(main)


def test_a_collector_that_comes_late_gets_what_has_waited_and_the_operator_hears_of_both() -> None:
    otlp()  # skips it without protobuf

    async def main() -> None:
        tracing, told = Tracing(max_queued_spans=10), list[str]()
        failed = trio.Event()

        def tell(text: str) -> None:
            told.append(text)
            failed.set()

        collector = Collector()
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{sock.getsockname()[1]}"
            async with trio.open_nursery() as nursery:
                async with OtlpExporter(tracing, address, times=QUICK, tell=tell):
                    make_calls(tracing, 2)
                    with trio.fail_after(PATIENCE_S):
                        await failed.wait()
                    make_calls(tracing, 50)
                    assert (tracing.waiting, tracing.dropped) == (10, 40)
                    sock.listen()
                    nursery.start_soon(collector.server().serve, sock)
                    await collector.spans_of(12)
                nursery.cancel_scope.cancel()
        assert "takes no spans" in told[0]
        assert address in told[0]
        assert "takes spans again; 40 were dropped" in told[1]
        assert len(told) == 2
        assert tracing.exported == 12

    trio.run(main)


@pytest.mark.parametrize("kind", ["silent", "never reads", "away"])
def test_a_collector_without_an_answer_delays_neither_calls_nor_the_end(kind: str) -> None:
    async def main() -> None:
        tracing, told = Tracing(), list[str]()
        async with a_collector() as collector, trio.open_nursery() as nursery:
            collector.before = _for_ever
            address = collector.address
            if kind == "never reads":
                [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
                address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
                nursery.start_soon(trio.serve_listeners, _deaf, [listener])
            elif kind == "away":
                address = "unix:/nowhere/at/all.sock"
            with trio.fail_after(PATIENCE_S):
                async with OtlpExporter(tracing, address, times=QUICK, tell=told.append):
                    make_calls(tracing, 4000)
                    assert tracing.waiting <= tracing.max_queued_spans
                    if kind == "silent":
                        await collector.until(lambda: collector.asked > 0)
            # Each span is counted once.
            assert (tracing.exported, tracing.dropped, tracing.waiting) == (0, 4000, 0)
            assert "spans are lost" in told[-1]
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_whoever_gives_up_waits_for_nothing() -> None:
    async def main() -> None:
        tracing = Tracing()
        async with a_collector() as collector:
            collector.before = _for_ever
            patient = ExportTimes(every_s=0.01, timeout_s=600.0, flush_s=600.0)
            with trio.fail_after(PATIENCE_S):
                async with OtlpExporter(tracing, collector.address, times=patient) as exporter:
                    make_calls(tracing)
                    await collector.until(lambda: collector.asked > 0)
                    exporter.give_up()
        assert (tracing.exported, tracing.dropped) == (0, 1)

    trio.run(main)


@pytest.mark.parametrize(("status", "tries"), [(Status.UNAVAILABLE, 2), (Status.INVALID_ARGUMENT, 1)])
def test_a_batch_is_tried_again_where_it_may_do_better(status: Status, tries: int) -> None:
    async def main() -> None:
        tracing = Tracing()

        async def first_time(asked: int) -> None:
            if asked == 1:
                raise RpcError(status, "not now")

        async with a_collector() as collector:
            collector.before = first_time
            async with OtlpExporter(tracing, collector.address, times=QUICK):
                make_calls(tracing)
                await collector.until(lambda: collector.asked == 1)
                if tries > 1:
                    await collector.spans_of(1)
            assert collector.asked == tries
        assert (tracing.exported, tracing.dropped) == ((1, 0) if tries > 1 else (0, 1))

    trio.run(main)


def test_what_a_collector_does_not_take_of_a_batch_is_counted_and_told() -> None:
    async def main() -> None:
        tracing, told = Tracing(), list[str]()
        response = otlp().ExportTraceServiceResponse()
        response.partial_success.rejected_spans = 2
        response.partial_success.error_message = "too old\nreally"
        async with a_collector() as collector:
            collector.answer = response.SerializeToString()
            async with OtlpExporter(tracing, collector.address, times=QUICK, tell=told.append):
                make_calls(tracing, 5)
                await collector.spans_of(5)
                make_calls(tracing, 1)
                await collector.spans_of(6)
        # The collector says two of the one.
        assert (tracing.exported, tracing.dropped) == (3, 3)
        assert told == [f"tracing: {collector.address} has not taken 2 spans: 'too old\\nreally'"]

    trio.run(main)


def test_a_response_that_never_ends_is_no_collector_s() -> None:
    async def main() -> None:
        tracing, told = Tracing(), list[str]()
        async with a_collector() as collector:
            collector.answer = b"x" * 100_000
            async with OtlpExporter(tracing, collector.address, times=QUICK, tell=told.append):
                make_calls(tracing)
        assert tracing.dropped == 1
        assert "64 KiB" in told[0] or "65536" in told[0]

    trio.run(main)


def test_spans_do_not_go_to_the_proxy_itself() -> None:
    async def main() -> None:
        tracing, told, guard = Tracing(), list[str](), LoopGuard()
        async with a_collector() as collector:
            guard.listens_on(Address.parse(collector.address))
            async with OtlpExporter(
                tracing, collector.address, times=QUICK, loop_guard=guard, tell=told.append
            ):
                make_calls(tracing)
            assert collector.asked == 0
        assert "this proxy itself" in told[0]

    trio.run(main)


def test_what_is_no_address_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="no address"):
            async with OtlpExporter(Tracing(), "collector"):
                pass

    trio.run(main)


async def _for_ever(_asked: int) -> None:
    await trio.sleep_forever()


async def _deaf(stream: trio.SocketStream) -> None:
    await stream.send_all(SettingsFrame(0).serialize())
    await trio.sleep_forever()
