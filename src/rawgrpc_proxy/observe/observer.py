"""Who can be told: `ServerObserver` of calls and connections, `PoolObserver` of upstreams.

What it does not do: call anybody (`tell.py` does). The methods here do nothing, and so are never called.
"""

import contextlib
from collections.abc import Sequence

from rawgrpc_proxy.errors import ConnectionFailed, ProxyError, RpcError
from rawgrpc_proxy.http2.events import StreamReset
from rawgrpc_proxy.observe.record import CallRecord


class ServerObserver:
    """Hears of what a server does. Called from its hot path: must not wait. What it raises is reported, and ignored.

    Inherit from it, and write the methods that you want: what is left as it is here is not called. Any object with some
    of these methods will do, too. Of what happens in each call (`call_begun`, `response_begun`, `call_ended`,
    `calls_ended`) the server looks once whether it is wanted, when it begins to serve; what nobody hears costs nothing.
    """

    wants: frozenset[str] = frozenset({"messages"})
    """What is collected of each call, for its record: "messages", how many passed; "extras", `CallRecord.extras`;
    "first_byte" and "routes", with these, too, when the response began, and which route the call has taken. The server
    looks at it when it begins to serve."""

    def call_begun(self, record: CallRecord) -> None:
        """A request has come. Of the record only `method` and `peer` are known yet; `call_ended` gets the same one."""

    def response_begun(self, record: CallRecord) -> None:
        """The response's headers are here, and go to the caller. Not told of a response that is nothing but its end."""

    def call_ended(self, record: CallRecord) -> None:
        """A call is over. Its caller has not been told yet: who has seen the end of a call finds it counted."""

    def calls_ended(self, records: Sequence[CallRecord]) -> None:
        """These calls are over, in this order: all that have ended since something was written last.

        For observers that do little for each call, which costs them half as much for many together. One that has this
        method is not told `call_ended`; if it raises, it has missed the rest of them.
        """

    def call_failed(self, record: CallRecord, error: BaseException) -> None:
        """A handler raised something that is no `RpcError`; the caller was only told INTERNAL."""

    def stream_refused(self, peer: str, reset: StreamReset) -> None:
        """A request was malformed, or one too many, and never became a call."""

    def connection_failed(self, peer: str, error: ConnectionFailed) -> None:
        """A downstream connection ended by a fault of its peer."""

    def connection_opened(self, peer: str, tls: str | None) -> None:
        """A caller has connected, TLS done; `tls` is its version ("TLSv1.3"), None for plaintext."""

    def connection_closed(self, peer: str, error: ConnectionFailed, age_s: float, calls: int) -> None:
        """It has ended, in good order or not; `error.why` is one word for it. It has carried so many streams.

        Once for each `connection_opened`.
        """

    def tls_handshake_done(self, peer: str, duration_s: float) -> None:
        """A caller and the server have agreed on TLS and HTTP/2, after so many seconds."""

    def tls_handshake_failed(self, peer: str, duration_s: float, error: ConnectionFailed) -> None:
        """They have not. `connection_failed` is told, too."""

    def accept_failed(self, error: OSError) -> None:
        """No connection could be accepted: a limit of the system (EMFILE, …), or the server's (`ConnectionLimit`)."""

    def limit_reached(self, peer: str, limit: str, detail: str) -> None:
        """A peer has run into the limit that the setting `limit` names; `detail` says what becomes of it."""


class PoolObserver:
    """Hears of connections to upstreams. Must not wait; what it raises is reported, and ignored.

    Inherit from it, and write the methods that you want, as with `ServerObserver`. `call_placed` happens in each call:
    the pool looks once whether it is wanted, when it opens.
    """

    def call_placed(self, address: str) -> None:
        """A call has got its place on a connection: at once, or after it has waited."""

    def call_waits(self, address: str, others: int) -> None:
        """No connection has room: the call waits, for a dial or in line, where so many others stand."""

    def call_refused(self, address: str, error: RpcError) -> None:
        """A call gets no place: the line is full, or the dials fail."""

    def dial_started(self, address: str) -> None:
        """A connection is being made. `dial_succeeded` or `dial_failed` follows, unless nobody wants it any more."""

    def dial_succeeded(self, address: str, duration_s: float) -> None:
        """It is there, up to the upstream's first SETTINGS, after so many seconds."""

    def dial_failed(self, address: str, duration_s: float, error: ProxyError) -> None:
        """It is not. `upstream_failed` is told, too."""

    def upstream_tls_done(self, address: str, duration_s: float) -> None:
        """TLS was agreed on in a dial: a part of its time."""

    def upstream_tls_failed(self, address: str, duration_s: float, error: Exception) -> None:
        """TLS was not agreed on, with one of the addresses that a dial has tried."""

    def upstream_opened(self, address: str, tls: str | None) -> None:
        """A connection takes calls; `tls` is the version of TLS, None for plaintext."""

    def upstream_closed(self, address: str, error: ConnectionFailed, age_s: float, calls: int) -> None:
        """It has ended, in good order or not; `error.why` is one word for it. It has carried so many streams."""

    def upstream_failed(self, address: str, error: ProxyError) -> None:
        """A dial has failed, or a connection ended that should not have.

        The upstream broke the rules, the link was lost with calls on it, or there was a fault here (`ProxyFault`, its
        cause in `__cause__`). Side `LOCAL`: it is not the upstream's doing.
        """

    def looked_up(self, name: str, duration_s: float, addresses: int) -> None:
        """A name of a cluster was looked up, in so many seconds, and has so many addresses."""

    def look_up_failed(self, name: str, duration_s: float, problem: str) -> None:
        """It was not, or has no addresses: those it had stay in use."""

    def look_up_noted(self, name: str, note: str) -> None:
        """What of the last look-up's answer is in doubt, or left out. Once for each note that is another one."""

    def addresses_changed(self, name: str, addresses: Sequence[str]) -> None:
        """It has other addresses than before, these: the first ones, too, are a change."""

    def endpoint_ejected(self, cluster: str, address: str, algorithm: str, why: str, for_s: float) -> None:
        """An endpoint gets no calls for at least so many seconds: outlier detection has found it.

        By "consecutive_failures", "success_rate" or "failure_percentage"; `why` is for people.
        """

    def endpoint_returned(self, cluster: str, address: str) -> None:
        """Its time is over, and it gets calls again."""

    def endpoint_unhealthy(self, cluster: str, address: str, why: str) -> None:
        """An endpoint has failed its health checks, or says itself that it is not well, and gets no calls."""

    def endpoint_healthy(self, cluster: str, address: str) -> None:
        """It is well again. Not told of endpoints that are well from the start."""

    def limit_reached(self, address: str, limit: str, detail: str) -> None:
        """What an upstream has sent ran into the limit that `limit` names; `detail` says what becomes of it."""


def wanted_by(observer: object | None) -> frozenset[str]:
    """What a server's observer asks to have collected: its `wants`. Total: it is a user's."""
    if observer is None:
        return frozenset()
    with contextlib.suppress(Exception):
        wanted: frozenset[str] = getattr(observer, "wants", ServerObserver.wants)
        return frozenset(wanted)
    return ServerObserver.wants
