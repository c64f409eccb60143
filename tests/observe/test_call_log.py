import errno
import io
import json
import os
import random
import re
import resource
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.errors import (
    ConfigError,
    ConnectionFailed,
    ConnectionLimit,
    NotHttp2,
    ProxyFault,
    UpstreamUnavailable,
)
from rawgrpc_proxy.http2.events import StreamReset
from rawgrpc_proxy.observe import line_writer
from rawgrpc_proxy.observe.call_log import CallLog, Level, LogFormat
from rawgrpc_proxy.observe.line_writer import unbuffered
from rawgrpc_proxy.observe.record import CallExtras, CallRecord
from rawgrpc_proxy.observe.tell import hearing

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z "


def record(
    method: str = "/p.S/Get",
    *,
    peer: str = "10.0.0.1:4711",
    detail: str = "",
    status: Status = Status.OK,
    upstream: str | None = "10.0.0.2:50051",
) -> CallRecord:
    return CallRecord(
        method=method,
        peer=peer,
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


def test_a_line_says_what_a_status_comes_of_behind_who_made_it() -> None:
    lost = record(status=Status.UNAVAILABLE)
    lost.origin, lost.cause = "lost", "FIN"
    left = record(status=Status.UNAVAILABLE)
    left.origin, left.cause = "lost", "GOAWAY NO_ERROR"

    def happens(log: CallLog) -> None:
        log.call_ended(lost)
        log.call_ended(left)

    first, second = lines_of("text", happens)
    assert " UNAVAILABLE (lost: FIN) in 1 msg" in first
    assert " UNAVAILABLE (lost: GOAWAY NO_ERROR) in 1 msg" in second
    first, second = lines_of("json", happens)
    assert (json.loads(first)["cause"], json.loads(second)["cause"]) == ("FIN", "GOAWAY NO_ERROR")


def test_an_origin_that_a_director_has_made_up_is_no_second_line() -> None:
    odd = record(status=Status.ABORTED)
    odd.origin, odd.cause = "a\nb", "c\rd"
    [line] = lines_of("text", lambda log: log.call_ended(odd))
    assert "(a\\nb: c\\rd)" in line


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


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_calls_of_many_callers_have_a_line_each_that_is_theirs(log_format: LogFormat) -> None:
    def happen(log: CallLog) -> None:
        for number in (*range(5000), *range(5000)):
            log.call_ended(record(f"/p.S/M{number % 7}", peer=f"10.0.0.1:{number}"))

    lines = lines_of(log_format, happen)
    assert len(lines) == 10_000
    for number, line in enumerate(lines):
        assert f"/p.S/M{number % 5000 % 7}" in line
        assert re.search(rf"10\.0\.0\.1:{number % 5000}\b", line)


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


def test_an_upstream_that_stays_down_does_not_fill_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def is_down_for_an_hour(log: CallLog) -> None:
        nonlocal now
        for _ in range(1000):
            log.upstream_failed("10.0.0.2:50051", UpstreamUnavailable("cannot connect"))
            now += 3.6

    assert len(lines_of("text", is_down_for_an_hour)) < 70


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


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_calls_told_together_have_the_lines_they_have_one_by_one(log_format: LogFormat) -> None:
    records = [
        record(),
        record(detail="so it is"),
        record("/p.S/Put", upstream=None),
        record(peer="10.0.0.9:1"),
    ]
    together = lines_of(log_format, lambda log: log.calls_ended(records))
    alone = [line for each in records for line in lines_of(log_format, methodcaller("call_ended", each))]
    assert [without_time(line) for line in together] == [without_time(line) for line in alone]
    assert len(together) == len(records)


def without_time(line: str) -> str:
    return re.sub(r"^\{\"time\": [0-9.]+, |^\S+ ", "", line)


def test_of_calls_told_together_those_that_find_no_room_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    [line] = lines_of("text", lambda log: log.call_ended(record("/p.S/M0")))
    monkeypatch.setattr(line_writer, "_MAX_WAITING", 3 * (len(line) + 1 + line_writer._LINE_OVERHEAD))
    file = io.StringIO()
    log = CallLog("text", file)
    log.collect()
    log.calls_ended([record(f"/p.S/M{number}") for number in range(5)])
    log.flush()
    assert methods_of(file)[:3] == ["/p.S/M0", "/p.S/M1", "/p.S/M2"]
    assert file.getvalue().endswith("- 2 lines are missing here\n")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_of_calls_told_together_only_those_are_written_that_shall_be(log_format: LogFormat) -> None:
    failed = record("/p.S/Failed", status=Status.UNAVAILABLE)
    file = io.StringIO()
    log = CallLog(log_format, file, only_errors=True)
    log.calls_ended([record(), failed, record()])
    log.calls_ended([record()])
    [line] = file.getvalue().splitlines()
    assert "/p.S/Failed" in line


def test_a_shorter_line_does_not_come_before_the_news_that_longer_ones_are_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = io.StringIO()
    log = CallLog("text", file)
    monkeypatch.setattr(line_writer, "_MAX_WAITING", 1000)
    log.collect()
    log.call_ended(record("/p.S/First"))
    log.call_ended(record("/p.S/" + "x" * 1000))
    log.call_ended(record("/p.S/Short"))
    log.flush()
    first, missing, last, _ = file.getvalue().split("\n")
    assert "/p.S/First" in first
    assert "1 lines are missing here" in missing
    assert "/p.S/Short" in last
    assert log.dropped_lines == 1


def test_a_reader_who_stopped_reading_holds_up_nobody_and_costs_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = StuckFile()
    log = CallLog("text", file)
    [line] = lines_of("text", lambda other: other.call_ended(record("/p.S/M0")))
    monkeypatch.setattr(line_writer, "_MAX_WAITING", 11 * (len(line) + 1 + line_writer._LINE_OVERHEAD))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            await trio.testing.wait_all_tasks_blocked()
            log.call_ended(record("/p.S/M0"))
            await trio.to_thread.run_sync(file.stuck.wait, 60)
            # What is being written has not left the memory: ten more of these lines, and no eleventh.
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


# ---------------------------------------------------------------------- choices


def seconds(duration_s: float, status: Status = Status.OK) -> CallRecord:
    of = record(status=status)
    of.duration_s = duration_s
    return of


def log_of(**choices: Any) -> tuple[CallLog, io.StringIO]:
    file = io.StringIO()
    return CallLog("text", file, **choices), file


def test_chosen_fields_are_all_there_is_behind_the_time() -> None:
    log, file = log_of(fields=["status", "method", "duration_ms"], worker=2)
    log.call_ended(record())
    stamp = re.match(STAMP, file.getvalue())
    assert stamp
    assert file.getvalue()[stamp.end() :] == "w2 status=OK method=/p.S/Get duration_ms=12.3\n"


def test_chosen_fields_in_json_are_members_behind_what_every_line_has() -> None:
    file = io.StringIO()
    CallLog("json", file, fields=["status", "attempts"], worker=2).call_ended(record())
    fields = json.loads(file.getvalue())
    assert list(fields) == ["time", "event", "worker", "status", "attempts"]
    assert (fields["event"], fields["worker"], fields["status"], fields["attempts"]) == (
        "call",
        2,
        "OK",
        None,
    )


def test_only_errors_leaves_out_what_ended_well_unless_it_was_slow() -> None:
    log, file = log_of(only_errors=True, slow_s=1.0)
    log.call_ended(seconds(0.999))
    assert not file.getvalue()
    log.call_ended(seconds(1.0))
    log.call_ended(seconds(0.001, Status.NOT_FOUND))
    assert [line.split()[5] for line in file.getvalue().splitlines()] == ["OK", "NOT_FOUND"]


def test_a_sample_is_a_share_of_what_ended_well_and_soon_and_errors_are_all_written() -> None:
    log, file = log_of(sample=0.1, slow_s=1.0, rng=random.Random(7))
    for _ in range(1000):
        log.call_ended(seconds(0.01))
    assert 60 < file.getvalue().count("\n") < 140
    again, its_file = log_of(sample=0.1, rng=random.Random(7))
    for _ in range(1000):
        again.call_ended(seconds(0.01))
    assert its_file.getvalue().count("\n") == file.getvalue().count("\n"), "a seed decides"
    before = file.getvalue().count("\n")
    for _ in range(50):
        log.call_ended(seconds(0.01, Status.UNAVAILABLE))
        log.call_ended(seconds(2.0))
    assert file.getvalue().count("\n") == before + 100


def test_of_a_sample_of_nothing_only_errors_are_written() -> None:
    log, file = log_of(sample=0)
    for status in (Status.OK, Status.INTERNAL) * 20:
        log.call_ended(seconds(0.01, status))
    assert file.getvalue().count(" INTERNAL ") == file.getvalue().count("\n") == 20


def test_the_level_can_be_changed_at_any_time() -> None:
    log, file = log_of(slow_s=1.0)
    levels: tuple[Level, ...] = ("all", "errors", "none", "all")
    assert log.level == "all"
    for level in levels:
        log.level = level
        assert log.level == level
        log.call_ended(record(f"/{level}/Ok"))
        log.call_ended(record(f"/{level}/Error", status=Status.ABORTED))
    assert methods_of(file) == ["/all/Ok", "/all/Error", "/errors/Error", "/all/Ok", "/all/Error"]
    with pytest.raises(ConfigError, match="'debug' is no level of the log; there are: all, errors, none"):
        log.level = "debug"  # type: ignore[assignment]
    assert log.level == "all"


def test_without_calls_the_log_still_tells_of_all_else() -> None:
    log, file = log_of()
    log.level = "none"
    log.call_failed(record(), RuntimeError("boom"))
    log.notice("note", "still here")
    assert "boom" in file.getvalue()
    assert "still here" in file.getvalue()


@pytest.mark.parametrize("sample", [-0.1, 1.1, float("nan")])
def test_a_sample_is_a_share(sample: float) -> None:
    with pytest.raises(ConfigError, match="must be between 0 and 1"):
        CallLog(sample=sample)


def test_a_field_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"did you mean status\?"):
        CallLog(fields=["satus"])


def test_lines_that_were_dropped_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    log, _ = log_of()
    log.collect()
    assert log.dropped_lines == 0
    monkeypatch.setattr(line_writer, "_MAX_WAITING", 0)
    for _ in range(3):
        log.call_ended(record())
    monkeypatch.setattr(line_writer, "_MAX_WAITING", 10_000)
    log.call_ended(record())
    log.flush()
    assert log.dropped_lines == 3, "that it was told does not make it undone"


def test_nothing_is_collected_that_no_field_needs() -> None:
    assert CallLog().wants == {"messages"}
    assert CallLog(fields=["method", "status"]).wants == set()
    assert CallLog(fields=["method", "request_messages"]).wants == {"messages"}
    assert CallLog(fields=["user_agent"]).wants == {"extras"}
    assert CallLog(fields=["route"]).wants == {"extras", "routes"}
    assert CallLog(fields=["time_to_first_byte_ms"]).wants == {"extras", "first_byte"}
    assert hearing(CallLog(), "call_begun") is None


# ------------------------------------------------------------- calls that stay open


def lines_over_time(file: io.StringIO) -> Callable[[], list[str]]:
    """What has been written since the last time."""
    read = 0

    def more() -> list[str]:
        nonlocal read
        text, read = file.getvalue()[read:], len(file.getvalue())
        return [line.partition("Z ")[2] for line in text.splitlines()]

    return more


@asynccontextmanager
async def watching(log: CallLog) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        await trio.testing.wait_all_tasks_blocked()
        yield
        nursery.cancel_scope.cancel()


def written(log: CallLog, more: Callable[[], list[str]]) -> list[str]:
    log.flush(timeout_s=60)
    return more()


def test_a_call_that_stays_open_is_told_of_once_and_again_when_it_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    log, file = log_of(start_after_s=5.0, only_errors=True)
    more = lines_over_time(file)
    stream, short = record("/p.S/Watch"), record("/p.S/Get")
    stream.extras = CallExtras(headers=[], stream_id=1, tls_peer=None, started=0.0)

    def refresh() -> None:
        stream.request_bytes, stream.response_messages = 99, 3

    stream.extras.refresh = refresh

    async def main() -> None:
        async with watching(log):
            log.call_begun(stream)
            log.call_begun(short)
            await trio.sleep(3)
            log.call_ended(short)
            assert written(log, more) == []
            await trio.sleep(4)
            [line] = written(log, more)
            assert re.fullmatch(
                r"/p\.S/Watch 10\.0\.0\.1:4711 -> 10\.0\.0\.2:50051 open "
                r"in 1 msg/99 B out 3 msg/345 B [56]\d\d\d\.\d ms",
                line,
            )
            await trio.sleep(60)
            assert written(log, more) == []
            log.call_ended(stream)
            assert [line.split()[0] for line in written(log, more)] == ["/p.S/Watch"], (
                "its end is told, though it is OK"
            )
            log.call_ended(record())
            assert written(log, more) == []

    trio.run(main, clock=autojump_clock)


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_open_call_has_the_chosen_fields_but_those_of_its_end(
    log_format: LogFormat, autojump_clock: trio.testing.MockClock
) -> None:
    file = io.StringIO()
    log = CallLog(log_format, file, start_after_s=1.0, fields=["method", "status", "attempts"])

    async def main() -> None:
        async with watching(log):
            log.call_begun(record())
            await trio.sleep(3)

    trio.run(main, clock=autojump_clock)
    log.flush(timeout_s=60)
    if log_format == "text":
        assert file.getvalue().endswith("Z open method=/p.S/Get attempts=-\n")
    else:
        fields = json.loads(file.getvalue())
        del fields["time"]
        assert fields == {"event": "call_open", "method": "/p.S/Get", "attempts": None}


def test_thousands_of_calls_that_hang_are_told_of_and_hold_up_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    log, file = log_of(start_after_s=1.0)
    left: list[int] = []

    async def main() -> None:
        async with watching(log):
            assert log._open is not None
            for number in range(1000):
                log.call_begun(record(f"/p.S/M{number}"))
            await trio.sleep(1)  # the log looks again in this very moment
            for _ in range(20):
                left.append(len(log._open._fresh))
                await trio.lowlevel.checkpoint()

    trio.run(main, clock=autojump_clock)
    log.flush(timeout_s=60)
    assert len(file.getvalue().splitlines()) == 1000
    assert left[-1] == 0
    assert len(set(left)) >= 4, "others had their turn between"


def test_while_no_calls_are_logged_open_ones_are_not_either_but_afterwards(
    autojump_clock: trio.testing.MockClock,
) -> None:
    log, file = log_of(start_after_s=1.0)
    more = lines_over_time(file)

    async def main() -> None:
        async with watching(log):
            log.level = "none"
            log.call_begun(record())
            await trio.sleep(10)
            assert written(log, more) == []
            log.level = "errors"
            await trio.sleep(2)
            assert len(written(log, more)) == 1

    trio.run(main, clock=autojump_clock)
