"""The call log: one line for each call when it has ended, as text for people or as JSON for machines.

While `CallLog.run` runs in a task, lines are collected and written together four times a second, so that logging costs
no system call per call, and a reader of the log who is slow, or has stopped reading, never holds up a call
(`line_writer.py`). Without `run` each line is written at once, and who does not read holds up the calls.

What it does not do: open, rotate or ship files, or log the bytes of a call. Two invariants: one event is one line (the
lines of a traceback are indented under theirs), and nothing a peer sends can make another; memory is bounded, lines
that had to be dropped are counted in the log, and what is absurdly long is cut.
"""

import errno
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from typing import IO, Literal, get_args

import trio

from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.descriptors import remedy
from rawgrpc_proxy.errors import (
    ConfigError,
    ConnectionFailed,
    ConnectionLimit,
    NotHttp2,
    ProxyError,
    ProxyFault,
)
from rawgrpc_proxy.http2.events import StreamReset
from rawgrpc_proxy.observe.describe import traceback_of
from rawgrpc_proxy.observe.endpoint_notices import EndpointNotices
from rawgrpc_proxy.observe.fields import FIELDS, check_fields, line_of, quoted
from rawgrpc_proxy.observe.line_writer import LineFile, LineWriter
from rawgrpc_proxy.observe.long_calls import LongCalls
from rawgrpc_proxy.observe.observer import ServerObserver
from rawgrpc_proxy.observe.record import CallRecord
from rawgrpc_proxy.observe.repeats import Repeats
from rawgrpc_proxy.observe.words import MAX_FIELD_CHARACTERS, cut, printable, word

LogFormat = Literal["text", "json"]

Level = Literal["all", "errors", "none"]

_Key = tuple[str, str, str | None, Status, str, str]

_MAX_TRACEBACK_CHARACTERS = 32 * 1024
_LOOK_INTERVAL_S = 1.0
_TOLD_AT_ONCE = 200
"""Lines for open calls; then others have their turn."""
_MAX_KNOWN = 2048
_MAX_KNOWN_CHARACTERS = 512
_NO_TEXT = '""'
_LOOKED_UP_MS = 100
_TENTHS = tuple(f"{tenths / 10:.1f}" for tenths in range(10 * _LOOKED_UP_MS + 1))
"""Durations in milliseconds as they are written: to look one up takes a third of the time of making it."""
_ACCEPT_LOG_INTERVAL_S = 1.0
_UPSTREAM_LOG_INTERVAL_S = 1.0
_UPSTREAM_LONGEST_INTERVAL_S = 60.0
"""Of what goes on: an endpoint with health checks that is down is dialled every few seconds, as long as it takes."""
_REMEMBERED_UPSTREAM_CAUSES = 256
_LIMITS_LOG_INTERVAL_S = 1.0
_REMEMBERED_LIMITS = 256
_STRANGERS_LOG_INTERVAL_S = 60.0
_REMEMBERED_STRANGERS = 1024
_OF_OPEN_CALLS = (
    "method",
    "peer",
    "upstream",
    "request_bytes",
    "request_messages",
    "response_bytes",
    "response_messages",
    "duration_ms",
)
"""Unless others are chosen: those of the line at the end."""


class CallLog(ServerObserver, EndpointNotices):
    """A `ServerObserver` and `PoolObserver` that writes lines to `file` (standard error unless told otherwise).

    Each line says which `worker` it is from, if there are several. Start `run` in a nursery that outlives the server,
    and call `flush` when all is over. Trouble with the file never reaches the server: lines that cannot be written are
    dropped.

    A call's line has these `fields` (`fields.py`), or else what most people want to know. Of the calls that end with OK
    `sample`, between 0 and 1, is the share that is written; with `only_errors` none is. One that took `slow_s` or
    longer is written in any case. One that is open after `start_after_s` gets a line then, and another at its end; for
    that `run` has to run. Raises `ConfigError` for choices that are none.
    """

    wants: frozenset[str]
    """What has to be collected of a call for its line, see `ServerObserver.wants`."""

    def __init__(
        self,
        log_format: LogFormat = "text",
        file: LineFile | IO[str] | None = None,
        *,
        worker: int | None = None,
        fields: Sequence[str] = (),
        only_errors: bool = False,
        sample: float = 1.0,
        slow_s: float | None = None,
        start_after_s: float | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._json = log_format == "json"
        self._worker = worker
        self._worker_text = "" if worker is None else f" w{worker}"
        self._worker_json = "" if worker is None else f'"worker": {worker}, '
        EndpointNotices.__init__(self)
        self._writer = LineWriter(file if file is not None else sys.stderr, self._missing)
        self._add = self._writer.add
        self._strangers = Repeats(interval_s=_STRANGERS_LOG_INTERVAL_S, most=_REMEMBERED_STRANGERS)
        self._upstream_causes = Repeats(
            interval_s=_UPSTREAM_LOG_INTERVAL_S,
            longest_s=_UPSTREAM_LONGEST_INTERVAL_S,
            most=_REMEMBERED_UPSTREAM_CAUSES,
        )
        self._limits = Repeats(interval_s=_LIMITS_LOG_INTERVAL_S, most=_REMEMBERED_LIMITS)
        self._accept_logged_at = -_ACCEPT_LOG_INTERVAL_S
        self._turned_away = 0
        self._second = -1
        self._stamp = self._time_text = self._call_head = ""
        self._time_from = self._time_until = 0.0
        """Between these `_time_text`, and `_call_head` of JSON, are right: a millisecond."""
        self._known: dict[_Key, str] = {}
        """What is made anew only where it is new: `_who` of a call."""
        check_fields(fields)
        self._line = line_of(fields, as_json=self._json) if fields else None
        self._open_mark, self._open_line = (
            "open ",
            line_of(fields or _OF_OPEN_CALLS, as_json=self._json, open_call=True),
        )
        if not fields and not self._json:
            self._open_mark, self._open_line = "", _open_in_words
        self.wants = frozenset().union(*(FIELDS[name].wants for name in fields or _OF_OPEN_CALLS))
        self._level: Level = "errors" if only_errors else "all"
        self._slow_s = math.inf if slow_s is None else slow_s
        self._random = (rng or random).random
        self._open: LongCalls | None = None
        if start_after_s is not None:
            self._open = LongCalls(start_after_s)
            self.wants |= {"extras"}
        else:
            # As it is inherited: of what nobody does anything with nobody is told.
            self.call_begun = super().call_begun  # type: ignore[method-assign]
        self.sample = sample

    @property
    def level(self) -> Level:
        """Which calls are written: "all" (of those that end with OK the share `sample`), "errors", or "none".

        May be set while the server runs. Raises `ConfigError` for another one.
        """
        return self._level

    @level.setter
    def level(self, level: Level) -> None:
        if level not in get_args(Level):
            raise ConfigError(f"{level!r} is no level of the log; there are: {', '.join(get_args(Level))}")
        self._level = level
        self._choose()

    @property
    def sample(self) -> float:
        """The share of the calls that end with OK, and soon enough, that is written: from 0 to 1. May be set, too."""
        return self._sample

    @sample.setter
    def sample(self, sample: float) -> None:
        if not 0 <= sample <= 1:
            raise ConfigError(f"the sample of the log is {sample!r}; it must be between 0 and 1")
        self._sample = sample
        self._choose()

    def _choose(self) -> None:
        self._selects = self._level != "all" or self._sample < 1 or self._open is not None

    async def run(self) -> None:
        """Write what is collected, four times a second, until cancelled; then what is left is written by `flush`."""
        if self._open is None:
            await self._writer.run()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._writer.run)
            while True:
                told = self._tell_open(self._open)
                await trio.sleep(0 if told == _TOLD_AT_ONCE else _LOOK_INTERVAL_S)

    def collect(self) -> None:
        """Keep lines for `flush` from now on: for those who have no task for `run`."""
        self._writer.collect()

    def flush(self, timeout_s: float = 1.0) -> None:
        """Write what is collected, and wait for the file, but no longer than `timeout_s` seconds."""
        self._writer.flush(timeout_s)

    @property
    def dropped_lines(self) -> int:
        """Lines that were dropped since the start: there was no room for them, as nobody had read the others."""
        return self._writer.dropped_lines

    def _missing(self, lines: int) -> str:
        return self._format("dropped", f"- {lines} lines are missing here", lines=lines)

    # ----------------------------------------------------------------- events

    def call_ended(self, record: CallRecord) -> None:
        """Write the call's line, if it shall have one."""
        self.calls_ended((record,))

    def calls_ended(self, records: Sequence[CallRecord]) -> None:
        """Write the lines of those that shall have one."""
        if self._selects:
            records = [record for record in records if self._is_selected(record)]
            if not records:
                return
        if self._line is not None:
            for record in records:
                self._add_line("call", "", self._line(record))
            return
        if not self._time_from <= (now := time.time()) < self._time_until:
            self._set_time(now)
        self._writer.add_all(self._json_lines(records) if self._json else self._text_lines(records))

    # Two loops that are written out: this happens for every call.

    def _text_lines(self, records: Sequence[CallRecord]) -> list[str]:
        time_text, known = self._time_text, self._known
        lines: list[str] = []
        for record in records:
            key = record.method, record.peer, record.upstream, record.status, record.origin, record.cause
            who = known.get(key)
            if who is None:
                who = self._who(record, key)
            told = f" {_detail(record)!r}" if record.detail else ""
            more = "" if record.messages_are_exact else "+"
            duration_ms = record.duration_s * 1e3
            short = duration_ms < _LOOKED_UP_MS
            duration = _TENTHS[int(duration_ms * 10 + 0.5)] if short else f"{duration_ms:.1f}"
            lines.append(
                f"{time_text} {who}{told} "
                f"in {record.request_messages}{more} msg/{record.request_bytes} B "
                f"out {record.response_messages}{more} msg/{record.response_bytes} B {duration} ms\n"
            )
        return lines

    def _json_lines(self, records: Sequence[CallRecord]) -> list[str]:
        head, known = self._call_head, self._known
        lines: list[str] = []
        for record in records:
            key = record.method, record.peer, record.upstream, record.status, record.origin, record.cause
            who = known.get(key)
            if who is None:
                who = self._who(record, key)
            detail = quoted(_detail(record)) if record.detail else _NO_TEXT
            more = "" if record.messages_are_exact else ', "messages_are_exact": false'
            lines.append(
                f'{head}{who}"detail": {detail}, '
                f'"request_bytes": {record.request_bytes}, "request_messages": {record.request_messages}, '
                f'"response_bytes": {record.response_bytes}, "response_messages": {record.response_messages}{more}, '
                f'"duration_ms": {record.duration_s * 1e3:.3f}}}\n'
            )
        return lines

    def _who(self, record: CallRecord, key: _Key) -> str:
        """The part of a call's line that many calls have in common, kept for the next of them."""
        who = self._common_part(record)
        if len(who) <= _MAX_KNOWN_CHARACTERS:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[key] = who
        return who

    def _common_part(self, record: CallRecord) -> str:
        method = cut(record.method)
        if self._json:
            upstream = "null" if record.upstream is None else quoted(record.upstream)
            cause = f'"cause": {quoted(record.cause)}, ' if record.cause else ""
            return (
                f'"method": {quoted(method)}, "peer": {quoted(record.peer)}, "upstream": {upstream}, '
                f'"status": "{record.status.name}", "origin": {quoted(record.origin)}, {cause}'
            )
        origin = printable(f"{record.origin}: {record.cause}" if record.cause else record.origin)
        return f"{word(method)} {record.peer} -> {record.upstream or '-'} {record.status.name} ({origin})"

    def _is_selected(self, record: CallRecord) -> bool:
        told = self._open is not None and self._open.ended(record)
        if self._level == "none":
            return False
        if told or record.status is not Status.OK or record.duration_s >= self._slow_s:
            return True
        return self._level == "all" and (self._sample >= 1 or self._random() < self._sample)

    def call_begun(self, record: CallRecord) -> None:
        """Remember it, for a line while it is still open."""
        if self._open is not None:
            self._open.started(record, trio.current_time())

    def _tell_open(self, calls: LongCalls) -> int:
        """Write a line for calls that are open for long enough, and answer for how many."""
        if self._level == "none":
            return 0
        due = calls.due(trio.current_time(), _TOLD_AT_ONCE)
        for record, age_s in due:
            if record.extras is not None and record.extras.refresh is not None:
                record.extras.refresh()
            record.duration_s = age_s
            self._add_line("call_open", self._open_mark, self._open_line(record))
        return len(due)

    def _add_line(self, event: str, mark: str, fields: str) -> None:
        if self._json:
            self._add(f'{{"time": {time.time():.3f}, "event": "{event}", {self._worker_json}{fields}}}\n')
        else:
            self._add(f"{self._time()} {mark}{fields}\n")

    def call_failed(self, record: CallRecord, error: BaseException) -> None:
        """Write what the caller was not told, with its traceback."""
        method = cut(record.method)
        self.fault(
            "handler_error",
            f"{word(method)} {record.peer} the handler raised:",
            error,
            method=method,
            peer=record.peer,
        )

    def stream_refused(self, peer: str, reset: StreamReset) -> None:
        """Write why a request never became a call."""
        self._event(
            "refused",
            f"- {peer} stream {reset.stream_id} refused: {printable(cut(reset.reason))}",
            peer=peer,
            stream_id=reset.stream_id,
            error_code=reset.error_code,
            reason=cut(reset.reason),
        )

    def connection_failed(self, peer: str, error: ConnectionFailed) -> None:
        """Write why a connection was ended, and for a fault of the proxy's own where it is.

        What never became HTTP/2 is written once a minute for each host: such peers come again and again.
        """
        text = f"- {peer} connection closed: {printable(cut(str(error)))}"
        facts: dict[str, object] = {
            "peer": peer,
            "error_code": error.error_code,
            "reason": cut(error.message),
        }
        if isinstance(error, NotHttp2) or error.error_code == ErrorCode.INADEQUATE_SECURITY:
            left_out = self._strangers.left_out(peer.rpartition(":")[0], error.message, time.monotonic())
            if left_out is None:
                return
            text += _left_out_too(left_out, facts)
        self._trouble("connection_error", text, facts, error)

    def upstream_failed(self, address: str, error: ProxyError) -> None:
        """Write what is wrong with an upstream: once a second at the most, and less and less often while it goes on."""
        left_out = self._upstream_causes.left_out(address, str(error), time.monotonic())
        if left_out is None:
            return
        text = f"- upstream {word(address)} ({error.side.value}): {printable(cut(str(error)))}"
        facts: dict[str, object] = {"upstream": address, "side": error.side.value, "reason": cut(str(error))}
        text += _left_out_too(left_out, facts)
        self._trouble("upstream_error", text, facts, error)

    def limit_reached(self, peer: str, limit: str, detail: str) -> None:
        """Write, once a second at the most, which limit a peer has run into, and what becomes of it."""
        left_out = self._limits.left_out(peer, limit, time.monotonic())
        if left_out is None:
            return
        facts: dict[str, object] = {"peer": peer, "limit": limit, "detail": detail}
        text = f"- {peer} {limit}: {printable(detail)}"
        self._event("limit", text + _left_out_too(left_out, facts), **facts)

    def accept_failed(self, error: OSError) -> None:
        """Write, once a second at the most, that connections are not accepted, which limit that is, and what to do."""
        turned_away = isinstance(error, ConnectionLimit)
        self._turned_away += turned_away
        now = time.monotonic()
        if now - self._accept_logged_at < _ACCEPT_LOG_INTERVAL_S:
            return
        self._accept_logged_at = now
        connections, self._turned_away = self._turned_away, 0
        reason = f"cannot accept: {error}"
        if turned_away:
            reason = f"{connections} connection{'s' * (connections != 1)} turned away: {error}"
        elif error.errno == errno.EMFILE:
            reason = f"{reason}; {remedy()}"
        self._event("accept_error", f"- {reason}", reason=reason, connections=connections)

    def notice(self, event: str, text: str, **facts: object) -> None:
        """Write something that is no call's: `text` for people, `event` and `facts` for machines."""
        self._event(event, f"- {printable(text)}", **facts)

    def fault(self, event: str, text: str, error: BaseException, **facts: object) -> None:
        """Write what went wrong, with where it was raised: `text` and a traceback for people, all for machines."""
        cause = cut(traceback_of(error), _MAX_TRACEBACK_CHARACTERS)
        lines = [text] if self._json else [text, *map(printable, cause.splitlines())]
        self._event(event, "\n    ".join(lines), **facts, traceback=cause)

    # ------------------------------------------------------------------ lines

    def _trouble(self, event: str, text: str, facts: dict[str, object], error: ProxyError) -> None:
        """Write an error, and for a fault of the proxy's own where it is."""
        if isinstance(error, ProxyFault) and error.__cause__ is not None:
            self.fault(event, text, error.__cause__, **facts)
        else:
            self._event(event, text, **facts)

    def _event(self, event: str, text: str, **facts: object) -> None:
        self._add(self._format(event, text, **facts))

    def _format(self, event: str, text: str, **facts: object) -> str:
        if self._json:
            if self._worker is not None:
                facts = {"worker": self._worker, **facts}
            return json.dumps({"time": round(time.time(), 3), "event": event, **facts}) + "\n"
        return f"{self._time()} {text}\n"

    def _time(self) -> str:
        now = time.time()
        if not self._time_from <= now < self._time_until:
            self._set_time(now)
        return self._time_text

    def _set_time(self, now: float) -> None:
        millisecond = int(now * 1000)
        self._time_from, self._time_until = millisecond / 1000, (millisecond + 1) / 1000
        second, rest = divmod(millisecond, 1000)
        if self._json:
            self._call_head = f'{{"time": {second}.{rest:03d}, "event": "call", {self._worker_json}'
            return
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        self._time_text = f"{self._stamp}.{rest:03d}Z{self._worker_text}"


def _detail(record: CallRecord) -> str:
    detail = record.detail
    return cut(detail) if len(detail) > MAX_FIELD_CHARACTERS else detail


def _open_in_words(record: CallRecord) -> str:
    """As the line at the end."""
    more = "" if record.messages_are_exact else "+"
    return (
        f"{word(cut(record.method))} {record.peer} -> {record.upstream or '-'} open "
        f"in {record.request_messages}{more} msg/{record.request_bytes} B "
        f"out {record.response_messages}{more} msg/{record.response_bytes} B {record.duration_s * 1e3:.1f} ms"
    )


def _left_out_too(left_out: int, facts: dict[str, object]) -> str:
    """How many of these were not told since the last one that was: as the end of a line, and among its facts."""
    if not left_out:
        return ""
    facts["left_out"] = left_out
    return f" ({left_out} more of these since the last line)"
