"""A call as its handler sees it: what was asked (`CallContext`), how to answer, and what is told of it afterwards.

What it does not do: reach an upstream, decode messages, or decide anything.
The invariant: whatever happens, the peer gets one end: trailers, or a reset where trailers cannot be sent any more.
"""

import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self

import attrs
import trio

from rawgrpc_proxy.call_policy import CallPolicy
from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.custom_metadata import response_headers_of
from rawgrpc_proxy.errors import RpcError, Side
from rawgrpc_proxy.grpc.metadata import Metadata
from rawgrpc_proxy.grpc.response_changes import ResponseChanges
from rawgrpc_proxy.grpc.status import encode_grpc_message
from rawgrpc_proxy.grpc.status_origin import StatusOrigin
from rawgrpc_proxy.http2.field_rules import trailers_problem
from rawgrpc_proxy.http2.frames import UNLIMITED
from rawgrpc_proxy.http2.headers import Headers, size_of
from rawgrpc_proxy.net.failures import headers_too_long
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.net.timers import Timer
from rawgrpc_proxy.observe.record import CallExtras, CallRecord
from rawgrpc_proxy.peer_identity import PeerIdentity, identity_of
from rawgrpc_proxy.stopping import Stopping

CONTENT_TYPE = (b"content-type", b"application/grpc")


@attrs.frozen(kw_only=True)
class CallContext:
    """What a director knows of a call.

    `metadata` is all request headers, pseudo-headers included; a director that answers a context with other metadata
    changes what the upstream gets. `peer` is `HOST:PORT` or `unix:`. `tls_peer` is the peer's certificate as
    `ssl.SSLSocket.getpeercert` gives it, and `peer_identity` what that calls the peer.

    `deadline` is absolute, on trio's clock; None if the caller set none, or wrote a grpc-timeout that cannot be read.
    A director that answers a context with another deadline decides: the proxy ends the call then, and tells the
    upstream the time that is left, whatever a grpc-timeout in the metadata says. Where neither the caller nor the
    director has set a deadline, a grpc-timeout in the metadata goes to the upstream as it is, and is the upstream's
    affair alone.

    `response_changes` is what a director has changed in what the caller gets, `policy` what more it wants done.
    """

    method: str
    metadata: Metadata
    peer: str
    deadline: float | None = None
    tls_peer: Mapping[str, Any] | None = None
    response_changes: ResponseChanges | None = None
    policy: CallPolicy | None = None

    @property
    def peer_identity(self) -> PeerIdentity | None:
        """Who the peer is, by its certificate, once for each connection; None without one that was verified."""
        return identity_of(self.tls_peer)

    def with_metadata(self, metadata: Metadata) -> "CallContext":
        """The same call with other metadata; `TypeError` for anything else."""
        if not isinstance(metadata, Metadata):
            raise TypeError(f"the metadata of a call are a Metadata, not {type(metadata).__name__}")
        return attrs.evolve(self, metadata=metadata)

    def with_response_changes(self, changes: ResponseChanges | None) -> "CallContext":
        """The same call with these changes to its response; `TypeError` for anything else."""
        return attrs.evolve(self, response_changes=checked_changes(changes))

    def with_policy(self, policy: CallPolicy | None) -> "CallContext":
        """The same call, treated so; `TypeError` for anything that is no policy."""
        if policy is not None and not isinstance(policy, CallPolicy):
            raise TypeError(f"the policy of a call is a CallPolicy, not {type(policy).__name__}")
        return attrs.evolve(self, policy=policy)

    def with_deadline(self, deadline: float | None) -> "CallContext":
        """The same call with this deadline (on trio's clock), be it sooner or later than the caller's; None: without.

        Of the caller's and one of your own, `min` is the one to take. One that has passed ends the call with
        DEADLINE_EXCEEDED. Raises `TypeError` for what is no number, `ValueError` for NaN.
        """
        return attrs.evolve(self, deadline=checked_deadline(deadline))

    def with_timeout(self, seconds: float) -> "CallContext":
        """The same call with a deadline this far from now, or the one that it has if that is sooner.

        Errors as in `with_deadline`.
        """
        ours = checked_deadline(seconds)
        if ours is None:
            return self
        ours += trio.current_time()
        return attrs.evolve(self, deadline=ours if self.deadline is None else min(ours, self.deadline))


@attrs.frozen(kw_only=True)
class ObservedContext(CallContext):
    """A context in which a director's routes may note whom they are and where they lead, for the call log."""

    extras: CallExtras

    @classmethod
    def of(cls, context: CallContext, extras: CallExtras) -> Self:
        """The same call, observed."""
        fields = {field.name: getattr(context, field.name) for field in attrs.fields(CallContext)}
        return cls(**fields, extras=extras)


def checked_deadline(deadline: float | None) -> float | None:
    """The deadline if it is one; None for infinity, too. Raises `TypeError` and `ValueError` otherwise."""
    if deadline is None:
        return None
    if not isinstance(deadline, int | float):
        raise TypeError(f"a deadline is a number of seconds on trio's clock, not {type(deadline).__name__}")
    if math.isnan(deadline):
        raise ValueError("a deadline is a number of seconds on trio's clock, not NaN")
    return None if deadline == math.inf else deadline


def checked_changes(changes: ResponseChanges | None) -> ResponseChanges | None:
    """The changes if they are some. Raises `TypeError` otherwise."""
    # None of its own kind either: a connection's reader calls it, where no code of users may run.
    if changes is not None and type(changes) is not ResponseChanges:
        raise TypeError(f"the changes to a response are ResponseChanges, not {type(changes).__name__}")
    return changes


class Call:
    """One call: its context, its downstream stream, its record."""

    __slots__ = (
        "_ended",
        "_headers_sent",
        "call_at",
        "context",
        "counts_messages",
        "deadline",
        "on_response",
        "record",
        "started",
        "status_origin",
        "stopping",
        "stream",
    )

    def __init__(
        self,
        stream: Stream,
        context: CallContext,
        stopping: Stopping,
        call_at: Callable[[float, Callable[[], None]], Timer],
        *,
        counts_messages: bool = True,
        on_response: Callable[[CallRecord], None] | None = None,
    ) -> None:
        self.stream = stream
        self.context = context
        self.stopping = stopping
        """Whether the server stops: for handlers that go on for as long as their callers like."""
        self.call_at = call_at
        """Calls back at a moment of trio's clock, or soon after; what it calls must neither wait nor raise."""
        self.counts_messages = counts_messages
        """Whether somebody wants to know how many messages pass."""
        self.on_response = on_response
        """Hears when the response's headers go out, if anybody wants to know."""
        self.deadline = context.deadline
        """When the call is to end: the caller's deadline, unless a director has set another."""
        self.started = time.perf_counter()
        self.status_origin: StatusOrigin | None = None
        """The trailer that tells the caller who has made its status, if it is to be told."""
        self.record = CallRecord(context.method, context.peer)
        self._headers_sent = False
        self._ended = False

    def end_at(self, deadline: float | None) -> None:
        """Have the call end at this time of trio's clock, and no sooner."""
        self.deadline = deadline
        scope = self.stream.inbox.on_failed
        if scope is not None:
            scope.deadline = math.inf if deadline is None else deadline

    def runs_in(self, scope: trio.CancelScope) -> None:
        """What the call does now it does in this scope: cancelled when its deadline passes, or its caller goes."""
        inbox = self.stream.inbox
        inbox.on_failed = scope
        if inbox.error is not None:
            scope.cancel()  # it went while the call waited for a task
        if self.deadline is not None:
            scope.deadline = self.deadline

    def runs_no_more(self) -> None:
        """The scope is free for the next call, unless it is cancelled."""
        inbox = self.stream.inbox
        scope, inbox.on_failed = inbox.on_failed, None
        if self.deadline is not None and scope is not None and not scope.cancel_called:
            scope.deadline = math.inf

    @property
    def ended(self) -> bool:
        """Whether the response's end has been sent, or queued."""
        return self._ended

    def response_passed_on(self, *, headers: bool, ended: bool) -> None:
        """A splice has sent this much of a response past us."""
        self._headers_sent = self._headers_sent or headers
        self._ended = self._ended or ended

    def send_headers(self, metadata: Headers | None = None) -> None:
        """Send the response headers, once; later calls do nothing.

        Raises `TypeError` and `ValueError` for metadata that cannot be sent, and `RpcError` if they are longer than the
        caller takes, with nothing sent.
        """
        if not self._headers_sent and not self._ended:
            headers = [(b":status", b"200"), CONTENT_TYPE, *_checked(metadata)]
            limit = self.stream.connection.session.peer_max_header_list_bytes
            if limit < UNLIMITED and (size := size_of(headers)) > limit:
                raise headers_too_long(size, limit)
            self._headers_sent = True
            self.stream.send_headers(headers)
            if self.on_response is not None:
                self.on_response(self.record)

    def end(self, status: Status, message: str = "", metadata: Headers | None = None) -> None:
        """End the response with this status: trailers, or a Trailers-Only response if no headers are out yet.

        Of more than the caller takes (SETTINGS_MAX_HEADER_LIST_SIZE) the metadata are left out, and the message is cut.
        What is left of the request is stopped with RST_STREAM(NO_ERROR) (RFC 9113 §8.1). Raises `TypeError` and
        `ValueError` for what cannot be sent, with nothing sent.
        """
        if not self._ended:
            # What serves a method has noted whose it is.
            origin = "served" if self.record.origin == "served" else "handler"
            self._end(status, message, metadata, origin)
            self._note(Status(status), message, origin, "")

    def _end(
        self, status: Status, message: str, metadata: Headers | None, origin: str, cause: str = ""
    ) -> None:
        trailers: Headers = [(b"grpc-status", b"%d" % Status(status))]
        if message:
            trailers.append((b"grpc-message", encode_grpc_message(message)))
        trailers.extend(_checked(metadata))
        if self.status_origin is not None:
            trailers = [*self.status_origin.without(trailers), self.status_origin.field(origin, cause)]
        if not self._headers_sent:
            trailers[:0] = [(b":status", b"200"), CONTENT_TYPE]
        self._ended = True
        self.stream.send_end(trailers)
        self.stream.reset_after_end(ErrorCode.NO_ERROR)

    def fail(self, error: RpcError) -> None:
        """End the response with the error's status.

        A response that has ended already, and now will not get through, is reset. Raises as `end` does.
        """
        origin = "downstream" if error.side is Side.DOWNSTREAM else error.origin
        if self._ended:
            self.stream.reset(ErrorCode.CANCEL)
        else:
            metadata = response_headers_of(error.trailing_metadata)
            self._end(error.status, error.message, metadata, origin, error.cause)
        self._note(error.status, error.message, origin, error.cause)

    def refuse(self, http_status: int, status: Status, message: str, cause: str = "not_grpc") -> None:
        """Answer a request that is no gRPC call with an HTTP status, and the reason where a gRPC peer finds it."""
        self._ended = self._headers_sent = True
        headers = [
            (b":status", str(http_status).encode()),
            CONTENT_TYPE,
            (b"grpc-status", str(int(status)).encode()),
            (b"grpc-message", encode_grpc_message(message)),
        ]
        if self.status_origin is not None:
            headers.append(self.status_origin.field("proxy", cause))
        self.stream.send_end(headers)
        self.stream.reset_after_end(ErrorCode.NO_ERROR)
        self._note(status, f"HTTP {http_status}: {message}", "proxy", cause)

    def _note(self, status: Status, detail: str, origin: str, cause: str) -> None:
        record = self.record
        record.status, record.detail, record.origin, record.cause = status, detail, origin, cause


def _checked(metadata: Headers | None) -> Headers:
    """The fields, if they can be sent with a response."""
    if not metadata:
        return []
    headers = Metadata(metadata).raw
    problem = trailers_problem(headers)
    if problem is not None:
        raise ValueError(f"these headers cannot be sent: {problem}")
    return headers


Handler = Callable[[Call], Awaitable[None]]
"""Answers one call. An `RpcError` it raises becomes the call's status; any other exception becomes INTERNAL."""
