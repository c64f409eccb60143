"""`ServerObserver`: what a server tells of its calls and connections."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import ParamSpec, Protocol, cast

from rawgrpc_proxy.call import CallRecord
from rawgrpc_proxy.errors import ConnectionFailed
from rawgrpc_proxy.http2.events import StreamReset

Told = ParamSpec("Told")


def tell(hear: Callable[Told, None], *what: Told.args, **more: Told.kwargs) -> None:
    """Call a method of an observer. What it raises goes to `sys.unraisablehook`, and nobody's call suffers from it."""
    try:
        hear(*what, **more)
    except Exception as error:  # noqa: BLE001  # any code of a user's
        unraisable = SimpleNamespace(
            exc_type=type(error),
            exc_value=error,
            exc_traceback=error.__traceback__,
            err_msg="Exception ignored in an observer of the proxy",
            object=hear,
        )
        sys.unraisablehook(cast("sys.UnraisableHookArgs", unraisable))


class ServerObserver(Protocol):
    """Hears of what a server does. Called from its hot path: must not wait. What it raises is reported, and ignored."""

    def call_ended(self, record: CallRecord) -> None:
        """A call is over."""

    def call_failed(self, record: CallRecord, error: BaseException) -> None:
        """A handler raised something that is no `RpcError`; the caller was only told INTERNAL."""

    def stream_refused(self, peer: str, reset: StreamReset) -> None:
        """A request was malformed, or one too many, and never became a call."""

    def connection_failed(self, peer: str, error: ConnectionFailed) -> None:
        """A downstream connection ended by a fault of its peer."""

    def accept_failed(self, error: OSError | None) -> None:
        """No connection could be accepted: the process, or the server (None), is at its limit."""
