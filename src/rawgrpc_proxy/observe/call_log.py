"""The call log: one line for each call when it has ended, as text for people or as JSON for machines.

Lines are collected and written together after each turn of the loop they fall into, at the latest after a quarter of
a second, so that logging costs no system call per call.
"""

import json
import sys
import time
import traceback
from typing import IO, Literal

from rawgrpc_proxy.call import CallRecord
from rawgrpc_proxy.errors import ConnectionFailed
from rawgrpc_proxy.http2.events import StreamReset

LogFormat = Literal["text", "json", "none"]
_ACCEPT_LOG_INTERVAL_S = 1.0


class CallLog:
    """A `ServerObserver` that writes lines to `file` (standard error unless told otherwise)."""

    def __init__(self, log_format: LogFormat = "text", file: IO[str] | None = None) -> None:
        self._json = log_format == "json"
        self._file = file if file is not None else sys.stderr
        self._accept_logged_at = 0.0

    def call_ended(self, record: CallRecord) -> None:
        """Write the call's line."""
        if self._json:
            self._event(
                "call",
                method=record.method,
                peer=record.peer,
                upstream=record.upstream,
                status=record.status.name,
                origin=record.origin,
                detail=record.detail,
                request_bytes=record.request_bytes,
                request_messages=record.request_messages,
                response_bytes=record.response_bytes,
                response_messages=record.response_messages,
                duration_ms=round(record.duration_s * 1e3, 3),
            )
            return
        detail = f" {record.detail!r}" if record.detail else ""
        self._text(
            f"{record.method} {record.peer} -> {record.upstream or '-'} {record.status.name} ({record.origin}){detail} "
            f"in {record.request_messages} msg/{record.request_bytes} B "
            f"out {record.response_messages} msg/{record.response_bytes} B {record.duration_s * 1e3:.1f} ms"
        )

    def call_failed(self, record: CallRecord, error: BaseException) -> None:
        """Write what the caller was not told, with its traceback."""
        cause = "".join(traceback.format_exception(error))
        if self._json:
            self._event("handler_error", method=record.method, peer=record.peer, traceback=cause)
        else:
            self._text(f"{record.method} {record.peer} the handler raised:\n{cause.rstrip()}")

    def stream_refused(self, peer: str, reset: StreamReset) -> None:
        """Write why a request never became a call."""
        if self._json:
            self._event("refused", peer=peer, stream_id=reset.stream_id, error_code=reset.error_code, reason=reset.reason)
        else:
            self._text(f"- {peer} stream {reset.stream_id} refused: {reset.reason}")

    def connection_failed(self, peer: str, error: ConnectionFailed) -> None:
        """Write why a connection was ended."""
        if self._json:
            self._event("connection_error", peer=peer, error_code=error.error_code, reason=error.message)
        else:
            self._text(f"- {peer} connection closed: {error}")

    def accept_failed(self, error: OSError | None) -> None:
        """Write, once a second at the most, that connections are turned away."""
        now = time.monotonic()
        if now - self._accept_logged_at < _ACCEPT_LOG_INTERVAL_S:
            return
        self._accept_logged_at = now
        reason = "the limit on connections is reached" if error is None else f"cannot accept: {error}"
        if self._json:
            self._event("accept_error", reason=reason)
        else:
            self._text(f"- {reason}")

    def _text(self, line: str) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        self._file.write(f"{stamp}.{int(now % 1 * 1000):03d}Z {line}\n")

    def _event(self, event: str, **fields: object) -> None:
        self._file.write(json.dumps({"time": round(time.time(), 3), "event": event, **fields}) + "\n")
