"""Who can be told: `ServerObserver` of calls and connections, `PoolObserver` of upstreams."""

import contextlib
from typing import Protocol

from rawgrpc_proxy.errors import ConnectionFailed, ProxyError
from rawgrpc_proxy.http2.events import StreamReset
from rawgrpc_proxy.observe.record import CallRecord

_BY_DEFAULT = frozenset({"messages"})


class ServerObserver(Protocol):
    """Hears of what a server does. Called from its hot path: must not wait. What it raises is reported, and ignored.

    A method that it does not have is not called.
    """

    def call_ended(self, record: CallRecord) -> None:
        """A call is over."""

    def call_failed(self, record: CallRecord, error: BaseException) -> None:
        """A handler raised something that is no `RpcError`; the caller was only told INTERNAL."""

    def stream_refused(self, peer: str, reset: StreamReset) -> None:
        """A request was malformed, or one too many, and never became a call."""

    def connection_failed(self, peer: str, error: ConnectionFailed) -> None:
        """A downstream connection ended by a fault of its peer."""

    def accept_failed(self, error: OSError) -> None:
        """No connection could be accepted: a limit of the system (EMFILE, …), or the server's (`ConnectionLimit`)."""

    def limit_reached(self, peer: str, limit: str, detail: str) -> None:
        """A peer has run into the limit that the setting `limit` names; `detail` says what becomes of it."""


class DetailedObserver(ServerObserver, Protocol):
    """A `ServerObserver` that asks for more, or less. What nobody asks for is not collected.

    Both are looked at when a server begins to serve.
    """

    wants: frozenset[str]
    """Of the following; without this attribute "messages" alone.

    "messages": how many messages passed. "extras": `CallRecord.extras`; "first_byte" and "routes": with these, too,
    when the response began, and which route the call has taken.
    """

    def call_started(self, record: CallRecord) -> None:
        """A call has begun. It gets this very record when it ends; until then `extras.refresh` brings it up to date."""


class PoolObserver(Protocol):
    """Hears of trouble with upstreams. Must not wait; what it raises is reported, and ignored.

    A method that it does not have is not called.
    """

    def upstream_failed(self, address: str, error: ProxyError) -> None:
        """A dial has failed, or a connection ended that should not have.

        The upstream broke the rules, the link was lost with calls on it, or there was a fault here (`ProxyFault`, its
        cause in `__cause__`). Side `LOCAL`: it is not the upstream's doing.
        """

    def limit_reached(self, address: str, limit: str, detail: str) -> None:
        """What an upstream has sent ran into the limit that `limit` names; `detail` says what becomes of it."""


def wanted_by(observer: object | None) -> frozenset[str]:
    """What a server's observer asks to have collected: its `wants`. Total: it is a user's."""
    if observer is None:
        return frozenset()
    with contextlib.suppress(Exception):
        return frozenset(getattr(observer, "wants", _BY_DEFAULT))
    return _BY_DEFAULT


def hears_starts(observer: object | None) -> bool:
    """Whether it wants to be told when calls begin. Total: it is a user's."""
    with contextlib.suppress(Exception):
        return getattr(observer, "call_started", None) is not None
    return False
