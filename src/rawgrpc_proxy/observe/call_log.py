"""The call log: one line for each call when it has ended, as text for people or as JSON for machines.

While `CallLog.run` runs in a task, lines are collected and written together four times a second, so that logging costs
no system call per call; a thread writes them, so that a reader of the log who is slow, or has stopped reading, never
holds up a call. Without `run` each line is written at once.

What it does not do: open, rotate or ship files, or log the bytes of a call. Two invariants: one event is one line (the
lines of a traceback are indented under theirs), and nothing a peer sends can make another; memory is bounded, and lines
that had to be dropped are counted in the log.
"""

import json
import sys
import threading
import time
from typing import IO, Literal

import trio

from rawgrpc_proxy.call import CallRecord
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.describe import traceback_of
from rawgrpc_proxy.errors import ConnectionFailed, NotHttp2, ProxyError, ProxyFault
from rawgrpc_proxy.http2.events import StreamReset
from rawgrpc_proxy.observe.repeats import Repeats

LogFormat = Literal["text", "json"]

_quoted = json.JSONEncoder().encode  # `json.dumps` would look at its options each time

_FLUSH_INTERVAL_S = 0.25
# A few seconds of the busiest proxy, and some 10 MB.
_MAX_WAITING_LINES = 50_000
_ACCEPT_LOG_INTERVAL_S = 1.0
_UPSTREAM_LOG_INTERVAL_S = 1.0
_REMEMBERED_UPSTREAM_CAUSES = 256


class CallLog:
    """A `ServerObserver` and `PoolObserver` that writes lines to `file` (standard error unless told otherwise).

    Each line says which `worker` it is from, if there are several. Start `run` in a nursery that outlives the server,
    and call `flush` when all is over. Trouble with the file never reaches the server: lines that cannot be written are
    dropped.
    """

    def __init__(
        self, log_format: LogFormat = "text", file: IO[str] | None = None, *, worker: int | None = None
    ) -> None:
        self._json = log_format == "json"
        self._worker = worker
        self._worker_text = "" if worker is None else f" w{worker}"
        self._worker_json = "" if worker is None else f'"worker": {worker}, '
        self._file = file if file is not None else sys.stderr
        self._lines: list[str] = []
        self._dropped = 0
        self._collecting = False
        self._writing = threading.Lock()
        self._strangers = Repeats()
        self._accept_logged_at = -_ACCEPT_LOG_INTERVAL_S
        self._upstream_causes: dict[tuple[str, str], _Repeated] = {}
        self._second = -1
        self._stamp = ""

    async def run(self) -> None:
        """Write what is collected, four times a second, until cancelled; then what is left is written by `flush`."""
        self._collecting = True
        try:
            while True:
                await trio.sleep(_FLUSH_INTERVAL_S)
                if self._lines:
                    await trio.to_thread.run_sync(self._write, self._take(), abandon_on_cancel=True)
        finally:
            self._collecting = False

    def flush(self) -> None:
        """Write what is collected, now; waits for the file."""
        self._write(self._take())

    def _take(self) -> list[str]:
        lines, self._lines = self._lines, []
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            lines.append(self._format("dropped", f"- {dropped} lines are missing here", lines=dropped))
        return lines

    def _write(self, lines: list[str]) -> None:
        """Write these lines; the only method that may run in another thread."""
        # One after the other, in the order in which they were taken.
        with self._writing:
            try:
                self._file.write("".join(lines))
                self._file.flush()
            except (OSError, ValueError):
                # Nobody reads any more (EPIPE), the disk is full, or the file is closed. Calls go on.
                pass

    # ----------------------------------------------------------------- events

    def call_ended(self, record: CallRecord) -> None:
        """Write the call's line."""
        # Written out field by field, for both formats: this happens for every call.
        if self._json:
            self._add(
                f'{{"time": {time.time():.3f}, "event": "call", {self._worker_json}"method": {_quoted(record.method)}, '
                f'"peer": {_quoted(record.peer)}, '
                f'"upstream": {"null" if record.upstream is None else _quoted(record.upstream)}, '
                f'"status": "{record.status.name}", "origin": {_quoted(record.origin)}, '
                f'"detail": {_quoted(record.detail)}, '
                f'"request_bytes": {record.request_bytes}, "request_messages": {record.request_messages}, '
                f'"response_bytes": {record.response_bytes}, "response_messages": {record.response_messages}, '
                f'"duration_ms": {record.duration_s * 1e3:.3f}}}\n'
            )
            return
        detail = f" {record.detail!r}" if record.detail else ""
        self._add(
            f"{self._time()} {word(record.method)} {record.peer} -> {record.upstream or '-'} "
            f"{record.status.name} ({record.origin}){detail} "
            f"in {record.request_messages} msg/{record.request_bytes} B "
            f"out {record.response_messages} msg/{record.response_bytes} B {record.duration_s * 1e3:.1f} ms\n"
        )

    def call_failed(self, record: CallRecord, error: BaseException) -> None:
        """Write what the caller was not told, with its traceback."""
        cause = traceback_of(error)
        if self._json:
            self._event("handler_error", "", method=record.method, peer=record.peer, traceback=cause)
        else:
            self._event(
                "handler_error",
                "\n    ".join(
                    [
                        f"{word(record.method)} {record.peer} the handler raised:",
                        *map(printable, cause.splitlines()),
                    ]
                ),
            )

    def stream_refused(self, peer: str, reset: StreamReset) -> None:
        """Write why a request never became a call."""
        self._event(
            "refused",
            f"- {peer} stream {reset.stream_id} refused: {printable(reset.reason)}",
            peer=peer,
            stream_id=reset.stream_id,
            error_code=reset.error_code,
            reason=reset.reason,
        )

    def connection_failed(self, peer: str, error: ConnectionFailed) -> None:
        """Write why a connection was ended, and for a fault of the proxy's own where it is.

        What never became HTTP/2 is written once a minute for each host: such peers come again and again.
        """
        text = f"- {peer} connection closed: {printable(str(error))}"
        facts: dict[str, object] = {"peer": peer, "error_code": error.error_code, "reason": error.message}
        if isinstance(error, NotHttp2) or error.error_code == ErrorCode.INADEQUATE_SECURITY:
            left_out = self._strangers.left_out(peer, error.message, time.monotonic())
            if left_out is None:
                return
            if left_out:
                text += f" ({left_out} more before this one)"
                facts["left_out"] = left_out
        self._trouble("connection_error", text, facts, error)

    def upstream_failed(self, address: str, error: ProxyError) -> None:
        """Write, once a second at the most, what is wrong with an upstream, and how often that was left out since."""
        now, key = time.monotonic(), (address, str(error))
        last = self._upstream_causes.get(key)
        if last is not None and now - last.logged_at < _UPSTREAM_LOG_INTERVAL_S:
            last.left_out += 1
            return
        if len(self._upstream_causes) >= _REMEMBERED_UPSTREAM_CAUSES:
            self._upstream_causes.clear()
        self._upstream_causes[key] = _Repeated(now)
        text = f"- upstream {word(address)} ({error.side.value}): {printable(str(error))}"
        facts: dict[str, object] = {"upstream": address, "side": error.side.value, "reason": str(error)}
        if last is not None and last.left_out:
            text += f" ({last.left_out} more of these since the last line)"
            facts["left_out"] = last.left_out
        self._trouble("upstream_error", text, facts, error)

    def limit_reached(self, peer: str, limit: str, detail: str) -> None:
        """Write which limit a peer has run into, and what becomes of it."""
        self._event("limit", f"- {peer} {limit}: {printable(detail)}", peer=peer, limit=limit, detail=detail)

    def accept_failed(self, error: OSError | None) -> None:
        """Write, once a second at the most, that connections are turned away."""
        now = time.monotonic()
        if now - self._accept_logged_at < _ACCEPT_LOG_INTERVAL_S:
            return
        self._accept_logged_at = now
        reason = "the limit on connections is reached" if error is None else f"cannot accept: {error}"
        self._event("accept_error", f"- {reason}", reason=reason)

    def notice(self, event: str, text: str, **facts: object) -> None:
        """Write something that is no call's: `text` for people, `event` and `facts` for machines."""
        self._event(event, f"- {printable(text)}", **facts)

    # ------------------------------------------------------------------ lines

    def _trouble(self, event: str, text: str, facts: dict[str, object], error: ProxyError) -> None:
        """Write an error, and for a fault of the proxy's own where it is."""
        if isinstance(error, ProxyFault) and error.__cause__ is not None:
            cause = traceback_of(error.__cause__)
            text = "\n    ".join([text, *map(printable, cause.splitlines())])
            facts["traceback"] = cause
        self._event(event, text, **facts)

    def _event(self, event: str, text: str, **facts: object) -> None:
        self._add(self._format(event, text, **facts))

    def _add(self, line: str) -> None:
        if len(self._lines) >= _MAX_WAITING_LINES:
            self._dropped += 1
            return
        self._lines.append(line)
        if not self._collecting:
            self.flush()

    def _format(self, event: str, text: str, **facts: object) -> str:
        if self._json:
            if self._worker is not None:
                facts = {"worker": self._worker, **facts}
            return json.dumps({"time": round(time.time(), 3), "event": event, **facts}) + "\n"
        return f"{self._time()} {text}\n"

    def _time(self) -> str:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._stamp}.{int((now - second) * 1000):03d}Z{self._worker_text}"


class _Repeated:
    """What is not logged each time."""

    __slots__ = ("left_out", "logged_at")

    def __init__(self, logged_at: float) -> None:
        self.logged_at = logged_at
        self.left_out = 0


def word(text: str) -> str:
    """`text` without anything that could end its field, or its line."""
    return printable(text).replace(" ", "\\x20")


def printable(text: str) -> str:
    """`text` with what is no printable character escaped, as in a Python string."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
