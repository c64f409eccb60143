import errno
import io
import json
import os
import re
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.errors import ConnectionFailed, ConnectionLimit, NotHttp2, ProxyFault, UpstreamUnavailable
from rawgrpc_proxy.http2.events import StreamReset
from rawgrpc_proxy.observe import line_writer
from rawgrpc_proxy.observe.call_log import CallLog, LogFormat
from rawgrpc_proxy.observe.line_writer import unbuffered
from rawgrpc_proxy.observe.record import CallRecord

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z "


def record(
    method: str = "/p.S/Get",
    *,
    detail: str = "",
    status: Status = Status.OK,
    upstream: str | None = "10.0.0.2:50051",
) -> CallRecord:
    return CallRecord(
        method=method,
        peer="10.0.0.1:4711",
        upstream=upstream,
        status=status,
        origin="upstream",
        detail=detail,
        request_bytes=12,
        response_bytes=345,
        request_messages=1,
        response_messages=20,
        duration_s=0.0123,
    )


class CountingFile(io.StringIO):
    """Counts how often it is written to, and tells each time."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def write(self, text: str, /) -> int:
        self.writes += 1
        return super().write(text)


def lines_of(log_format: LogFormat, happens: Callable[[CallLog], None]) -> list[str]:
    file = io.StringIO()
    happens(CallLog(log_format, file))
    written = file.getvalue()
    assert written.endswith("\n") or not written
    return written.split("\n")[:-1]


# ------------------------------------------------------------------------ lines


def test_a_text_line_tells_all_of_a_call() -> None:
    [line] = lines_of("text", lambda log: log.call_ended(record()))
    stamp = re.match(STAMP, line)
    assert stamp
    assert line[stamp.end() :] == (
        "/p.S/Get 10.0.0.1:4711 -> 10.0.0.2:50051 OK (upstream) in 1 msg/12 B out 20 msg/345 B 12.3 ms"
    )


def test_a_text_line_shows_the_detail_and_that_no_upstream_was_reached() -> None:
    failed = record(upstream=None, status=Status.UNAVAILABLE, detail="refused 'it'")
    [line] = lines_of("text", lambda log: log.call_ended(failed))
    assert "10.0.0.1:4711 -> - UNAVAILABLE (upstream) \"refused 'it'\" in 1 msg" in line


def test_a_json_line_tells_all_of_a_call() -> None:
    [line] = lines_of("json", lambda log: log.call_ended(record(detail="é")))
    fields = json.loads(line)
    assert isinstance(fields.pop("time"), float)
    assert fields == {
        "event": "call",
        "method": "/p.S/Get",
        "peer": "10.0.0.1:4711",
        "upstream": "10.0.0.2:50051",
        "status": "OK",
        "origin": "upstream",
        "detail": "é",
        "request_bytes": 12,
        "request_messages": 1,
        "response_bytes": 345,
        "response_messages": 20,
        "duration_ms": 12.3,
    }


@pytest.mark.parametrize(
    ("log_format", "told"), [("text", "out 20+ msg/"), ("json", '"messages_are_exact": false')]
)
def test_a_count_that_is_the_least_there_were_says_so(log_format: LogFormat, told: str) -> None:
    of_many = record()
    [exact] = lines_of(log_format, lambda log: log.call_ended(of_many))
    of_many.messages_are_exact = False
    [least] = lines_of(log_format, lambda log: log.call_ended(of_many))
    assert told in least
    assert told not in exact


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize(
    "evil", ["\n", "\r", "\x85", "\u2028", "\x1b[2K", "\x9b2K", "\x00", "\u202e", "\udc80"]
)
def test_nothing_of_a_peer_forges_a_line_or_moves_the_cursor(log_format: LogFormat, evil: str) -> None:
    text = f"x{evil}2026-01-01T00:00:00.000Z /p.S/Paid 10.0.0.9:1 -> - OK"

    def happens(log: CallLog) -> None:
        log.call_ended(record(method=f"/p.S/{text}", detail=text))
        log.stream_refused("10.0.0.1:1", StreamReset(1, ErrorCode.PROTOCOL_ERROR, True, text))
        log.connection_failed("10.0.0.1:1", ConnectionFailed(text, error_code=1))
        log.notice("note", text)

    lines = lines_of(log_format, happens)
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)
    assert all(json.loads(line) for line in lines if log_format == "json")


def test_a_method_with_spaces_stays_one_field() -> None:
    [line] = lines_of("text", lambda log: log.call_ended(record(method="/p.S/Get 10.0.0.9:1 -> - OK")))
    assert line.split(" ")[1:3] == [r"/p.S/Get\x2010.0.0.9:1\x20->\x20-\x20OK", "10.0.0.1:4711"]


def failure(text: str) -> Exception:
    try:
        raise RuntimeError(text)
    except RuntimeError as error:
        return error


def test_the_traceback_of_a_handler_is_indented_under_its_line() -> None:
    forged = "boom\n2026-01-01T00:00:00.000Z /p.S/Paid 10.0.0.9:1 -> - OK"
    first, *rest = lines_of("text", lambda log: log.call_failed(record(), failure(forged)))
    assert re.fullmatch(STAMP + r"/p\.S/Get 10\.0\.0\.1:4711 the handler raised:", first)
    assert any("RuntimeError: boom" in line for line in rest)
    assert all(line.startswith("    ") for line in rest)


def test_a_traceback_is_one_field_in_json() -> None:
    [line] = lines_of("json", lambda log: log.call_failed(record(), failure("boom")))
    fields = json.loads(line)
    assert fields["event"] == "handler_error"
    assert fields["method"] == "/p.S/Get"
    assert "RuntimeError: boom" in fields["traceback"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NotHttp2("a TLS handshake, not HTTP/2"), "a TLS handshake, not HTTP/2"),
        (
            ConnectionFailed("no TLS: wrong version number", error_code=ErrorCode.INADEQUATE_SECURITY),
            "INADEQUATE_SECURITY: no TLS: wrong version number",
        ),
    ],
)
def test_what_never_became_http2_is_told_once_a_minute_for_each_host(
    error: ConnectionFailed, text: str
) -> None:
    """A health check, a scanner, or a client with the wrong configuration comes back again and again."""

    def happens(log: CallLog) -> None:
        for port in range(500):
            log.connection_failed(f"10.0.0.1:{port}", error)
        log.connection_failed("10.0.0.2:1", error)
        log.connection_failed("10.0.0.1:1", ConnectionFailed("too much", error_code=11))

    told = [line.split("Z ", 1)[1] for line in lines_of("text", happens)]

    assert told == [
        f"- 10.0.0.1:0 connection closed: {text}",
        f"- 10.0.0.2:1 connection closed: {text}",
        "- 10.0.0.1:1 connection closed: ENHANCE_YOUR_CALM: too much",
    ]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_connections_turned_away_are_told_of_once_a_second_at_the_most(log_format: LogFormat) -> None:
    def happens(log: CallLog) -> None:
        for _ in range(3):
            log.accept_failed(OSError("no more files"))

    [line] = lines_of(log_format, happens)
    assert "cannot accept: no more files" in line


def test_a_limit_on_files_is_told_with_its_number_and_the_remedy() -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    [line] = lines_of("text", lambda log: log.accept_failed(error))
    assert "cannot accept: [Errno 24] Too many open files; " in line
    assert f"may have {limit} files open; raise that with `ulimit -n` or systemd's LimitNOFILE=" in line


def test_connections_that_were_turned_away_are_counted_from_line_to_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def happens(log: CallLog) -> None:
        nonlocal now
        log.accept_failed(ConnectionLimit("7 connections are open"))
        for _ in range(4):
            now += 0.3
            log.accept_failed(ConnectionLimit("7 connections are open"))

    first, second = lines_of("text", happens)
    assert first.endswith("- 1 connection turned away: 7 connections are open")
    assert second.endswith("- 4 connections turned away: 7 connections are open")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_same_trouble_with_an_upstream_is_told_of_once_a_second_with_the_number_left_out(
    log_format: LogFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def happens(log: CallLog) -> None:
        nonlocal now
        for _ in range(5):
            log.upstream_failed("10.0.0.2:50051", UpstreamUnavailable("cannot connect"))
        log.upstream_failed("10.0.0.3:50051", UpstreamUnavailable("cannot connect"))
        log.upstream_failed("10.0.0.2:50051", UpstreamUnavailable("no TLS"))
        now += 1.1
        log.upstream_failed("10.0.0.2:50051", UpstreamUnavailable("cannot connect"))

    lines = lines_of(log_format, happens)
    assert len(lines) == 4
    if log_format == "json":
        assert [json.loads(line).get("left_out") for line in lines] == [None, None, None, 4]
        assert json.loads(lines[0])["upstream"] == "10.0.0.2:50051"
    else:
        assert lines[0].endswith("- upstream 10.0.0.2:50051 (upstream): UNAVAILABLE: cannot connect")
        assert lines[3].endswith("cannot connect (4 more of these since the last line)")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_limit_that_a_peer_runs_into_with_every_call_is_told_of_once_a_second(
    log_format: LogFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def happens(log: CallLog) -> None:
        nonlocal now
        for number in range(5):
            log.limit_reached("10.0.0.1:4711", "max_header_list_bytes", f"stream {number}")
        log.limit_reached("10.0.0.1:4712", "max_header_list_bytes", "stream 1")
        log.limit_reached("10.0.0.1:4711", "max_concurrent_streams", "1024 calls")
        now += 1.1
        log.limit_reached("10.0.0.1:4711", "max_header_list_bytes", "stream 9")

    lines = lines_of(log_format, happens)
    if log_format == "json":
        assert [json.loads(line).get("left_out") for line in lines] == [None, None, None, 4]
    else:
        assert [line.partition(" - ")[2] for line in lines] == [
            "10.0.0.1:4711 max_header_list_bytes: stream 0",
            "10.0.0.1:4712 max_header_list_bytes: stream 1",
            "10.0.0.1:4711 max_concurrent_streams: 1024 calls",
            "10.0.0.1:4711 max_header_list_bytes: stream 9 (4 more of these since the last line)",
        ]


def test_causes_of_trouble_with_upstreams_are_remembered_within_bounds() -> None:
    log = CallLog("text", io.StringIO())
    for number in range(1000):
        log.upstream_failed("10.0.0.2:50051", UpstreamUnavailable(f"cause {number}"))
    assert len(log._upstream_causes._told) <= 256


def test_a_fault_met_by_an_upstream_connection_is_told_with_its_traceback() -> None:
    fault = ProxyFault(failure("a fault of ours"))
    lines = lines_of("text", lambda log: log.upstream_failed("10.0.0.2:50051", fault))
    assert lines[0].endswith("INTERNAL_ERROR: internal error in the proxy")
    assert lines[-1] == "    RuntimeError: a fault of ours"
    [line] = lines_of("json", lambda log: log.upstream_failed("10.0.0.2:50051", fault))
    assert "a fault of ours" in json.loads(line)["traceback"]


def test_refused_streams_failed_connections_and_notices_are_events_in_json() -> None:
    def happens(log: CallLog) -> None:
        log.stream_refused("10.0.0.1:1", StreamReset(7, 1, True, "no :path"))
        log.connection_failed("10.0.0.1:1", ConnectionFailed("too much", error_code=11))
        log.notice("draining", "draining, 2 calls", calls=2)

    refused, failed, notice = (json.loads(line) for line in lines_of("json", happens))
    for fields in (refused, failed, notice):
        del fields["time"]
    assert refused == {
        "event": "refused",
        "peer": "10.0.0.1:1",
        "stream_id": 7,
        "error_code": 1,
        "reason": "no :path",
    }
    assert failed == {
        "event": "connection_error",
        "peer": "10.0.0.1:1",
        "error_code": 11,
        "reason": "too much",
    }
    assert notice == {"event": "draining", "calls": 2}


# ---------------------------------------------------------------------- writing


def test_without_run_each_line_is_written_at_once() -> None:
    file = CountingFile()
    log = CallLog("text", file)
    for written in (1, 2, 3):
        log.call_ended(record())
        assert file.writes == written
        assert file.getvalue().count("\n") == written


def test_with_run_the_lines_of_a_quarter_second_are_written_together() -> None:
    class TellingFile(CountingFile):
        """Tells the loop when it has been written to."""

        def flush(self) -> None:
            assert token is not None
            trio.from_thread.run_sync(written.set, trio_token=token)

    written = trio.Event()
    token: trio.lowlevel.TrioToken | None = None
    file = TellingFile()

    async def main() -> None:
        nonlocal token
        token = trio.lowlevel.current_trio_token()
        log = CallLog("text", file)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(100):
                log.call_ended(record())
            assert file.writes == 0
            before = trio.current_time()
            with trio.fail_after(60):
                await written.wait()
            assert trio.current_time() - before >= 0.2
            assert file.writes == 1
            assert file.getvalue().count("\n") == 100
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_what_was_collected_when_run_was_cancelled_is_written_by_flush_in_order() -> None:
    file = CountingFile()
    log = CallLog("text", file)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            await trio.testing.wait_all_tasks_blocked()
            log.call_ended(record("/p.S/First"))
            nursery.cancel_scope.cancel()
        assert file.writes == 0
        log.call_ended(record("/p.S/Second"))

    trio.run(main)
    log.flush()
    assert [line.split()[1] for line in file.getvalue().splitlines()] == ["/p.S/First", "/p.S/Second"]


class StuckFile(io.StringIO):
    """A pipe that nobody empties until `read_on`."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck, self.read_on = threading.Event(), threading.Event()

    def write(self, text: str, /) -> int:
        self.stuck.set()
        assert self.read_on.wait(60)
        return super().write(text)


def methods_of(file: io.StringIO) -> list[str]:
    return [line.split()[1] for line in file.getvalue().splitlines()]


def test_a_reader_who_stopped_reading_holds_up_nobody_and_costs_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = StuckFile()
    log = CallLog("text", file)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            await trio.testing.wait_all_tasks_blocked()
            log.call_ended(record("/p.S/M0"))
            await trio.to_thread.run_sync(file.stuck.wait, 60)
            # What is being written has not left the memory: ten more of these lines, and no eleventh.
            monkeypatch.setattr(line_writer, "_MAX_WAITING", 11 * log._writer._added)
            for number in range(1, 10):
                log.call_ended(record(f"/p.S/M{number}"))
            log.call_ended(record("/p.S/Ma"))
            for _ in range(3):
                log.call_ended(record("/p.S/Mb"))
            nursery.cancel_scope.cancel()

    trio.run(main)
    log.flush(timeout_s=0)
    file.read_on.set()
    log.flush(timeout_s=60)
    assert methods_of(file)[:-1] == [*(f"/p.S/M{number}" for number in range(10)), "/p.S/Ma"]
    assert file.getvalue().endswith("- 3 lines are missing here\n")


def test_the_missing_are_told_of_where_they_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_writer, "_MAX_WAITING", 300)
    file = io.StringIO()
    log = CallLog("text", file)
    log.collect()
    log.call_ended(record("/p.S/First"))
    log.call_ended(record("/p.S/Dropped"))
    monkeypatch.setattr(line_writer, "_MAX_WAITING", 1000)
    log.call_ended(record("/p.S/Second"))
    log.flush()
    assert methods_of(file) == ["/p.S/First", "-", "/p.S/Second"]
    assert "- 1 lines are missing here" in file.getvalue()


def test_flush_waits_for_a_reader_who_does_not_read_no_longer_than_it_is_told() -> None:
    file = StuckFile()
    log = CallLog("text", file)
    log.collect()
    log.call_ended(record("/p.S/First"))
    before = time.monotonic()
    log.flush(timeout_s=0.2)
    assert 0.2 <= time.monotonic() - before < 10
    # Nor does anybody wait after that.
    log.call_ended(record("/p.S/Second"))
    file.read_on.set()
    log.flush(timeout_s=60)
    assert methods_of(file) == ["/p.S/First", "/p.S/Second"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_is_absurdly_long_is_cut(log_format: LogFormat) -> None:
    long = "x" * 60_000

    def happens(log: CallLog) -> None:
        log.call_ended(record(f"/p.S/{long}", detail=long))
        log.call_failed(record(f"/p.S/{long}"), RuntimeError(long * 2))
        log.stream_refused("10.0.0.1:1", StreamReset(1, ErrorCode.PROTOCOL_ERROR, True, long))
        log.connection_failed("10.0.0.1:1", ConnectionFailed(long, error_code=1))

    lines = lines_of(log_format, happens)
    assert all(len(line) < 40_000 for line in lines)
    assert len(lines[0]) < 10_000
    assert "characters" in lines[0]


def test_lines_go_to_the_descriptor_of_a_stream_and_past_its_buffer(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", encoding="ascii") as stream:
        file = unbuffered(stream)
        stream.write("kept in the buffer")
        file.write("é\n")
        assert (tmp_path / "log").read_text(encoding="ascii") == "\\xe9\n"
    assert unbuffered(None).write("nothing") == 7
    text = io.StringIO()
    assert unbuffered(text) is text


def test_a_descriptor_that_somebody_has_made_non_blocking_gets_it_all(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    text = "x" * 1_000_000
    with os.fdopen(reader) as received, os.fdopen(writer, "w") as stream:

        def write() -> None:
            unbuffered(stream).write(text)
            stream.close()

        thread = threading.Thread(target=write)
        thread.start()
        assert received.read() == text
        thread.join()


def test_a_file_that_cannot_be_written_hurts_nobody() -> None:
    class BrokenPipe(io.StringIO):
        def write(self, _text: str, /) -> int:
            raise BrokenPipeError

    CallLog("text", BrokenPipe()).call_ended(record())
    closed = io.StringIO()
    closed.close()
    CallLog("json", closed).call_ended(record())


def test_lines_go_to_standard_error_unless_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    CallLog().call_ended(record())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
