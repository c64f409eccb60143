"""The log of a process of `serve`, on standard error, and Python's own words in it."""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

from rawgrpc_proxy.command.settings.model import (
    ServeSettings,
)
from rawgrpc_proxy.observe.call_log import CallLog
from rawgrpc_proxy.observe.line_writer import unbuffered


class _Notes(CallLog):
    """What the operator is told where calls are not logged."""

    def _format(self, event: str, text: str, **_facts: object) -> str:  # noqa: ARG002  # as in the log
        return f"rawgrpc-proxy:{self._worker_text} {text.removeprefix('- ')}\n"


def log_for(settings: ServeSettings, *, worker: int | None = None) -> CallLog:
    """The log that the settings ask for, on standard error; what the operator has to know is written in any case."""
    file = unbuffered(sys.stderr)
    if settings.log_format == "none":
        notes = _Notes(file=file, worker=worker)
        notes.level = "none"
        return notes
    log = settings.log
    return CallLog(
        settings.log_format,
        file,
        worker=worker,
        fields=log.fields,
        only_errors=log.only_errors,
        sample=log.sample,
        slow_s=log.slow_s,
        start_after_s=log.start_after_s,
    )


@contextlib.contextmanager
def heard_by(log: CallLog) -> Iterator[None]:
    """Have the log write what Python itself would write to standard error."""

    def unraisable(fact: Any) -> None:
        log.fault("unraisable", f"- {fact.err_msg or 'Exception ignored'}", fact.exc_value or fact.exc_type())

    def warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,  # noqa: ARG001  # the signature is Python's
        line: str | None = None,  # noqa: ARG001
    ) -> None:
        text = f"{filename}:{lineno}: {category.__name__}: {message}"
        log.notice("warning", text, message=text)

    before = sys.unraisablehook, warnings.showwarning
    sys.unraisablehook, warnings.showwarning = unraisable, warning
    try:
        yield
    finally:
        sys.unraisablehook, warnings.showwarning = before
