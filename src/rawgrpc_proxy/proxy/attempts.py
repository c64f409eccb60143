"""What retries and hedging have in common: a response that is held until it is known to count, and an attempt's end.

    upstream ──► HoldingPipe ──(first message, or the end that counts)──► ResponsePipe ──► downstream

The headers of a response tell nothing of its status, which comes in trailers. So they are held until the first message
or the trailers: a call whose upstream has sent headers and then failed can be sent again, and its caller sees one
response. They are not held while the caller goes on with its request, since it may be waiting for them.

What it does not do: decide what counts (`retrying.py`, `hedging.py`). The invariant: once anything of a response has
gone to the caller, the call has its upstream for good.
"""

from typing import Protocol

from rawgrpc_proxy.call import Call, CallContext
from rawgrpc_proxy.cluster.cluster import Cluster
from rawgrpc_proxy.cluster.endpoint import Endpoint, Home, Place
from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.errors import RpcError, Side, UpstreamUnavailable
from rawgrpc_proxy.grpc.retry_policy import PREVIOUS_ATTEMPTS, pushback_s
from rawgrpc_proxy.grpc.status import parse_status, status_from_http
from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.http2.headers import HeaderList, Headers, size_of
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.observe.record import Repeats
from rawgrpc_proxy.proxy.forwarding import Forwarding, Leaving, Owner
from rawgrpc_proxy.proxy.splice import ResponsePipe, Splice
from rawgrpc_proxy.upstream.pooled import PooledConnection
from rawgrpc_proxy.upstream.target import Target

_PREVIOUS = frozenset({PREVIOUS_ATTEMPTS})
_MOST_DIGITS = 4
_MOST_HELD_BYTES = 8192
"""Longer headers go on at once, so that what is held of many calls is not much. gRPC's own peers take no more."""


class Judge(Protocol):
    """Decides about one attempt. Called from the middle of a reader's work: must neither wait nor raise."""

    def ended(self, status: Status, fields: Headers) -> bool:
        """The attempt has this status, and nothing of it has reached the caller. True: its stream has been left."""

    def committed(self) -> None:
        """What comes from here on goes to the caller."""


class HoldingPipe:
    """Sink of an upstream stream whose response may yet be dropped."""

    __slots__ = ("_held", "_inner", "_judge", "_splice", "_upstream")

    def __init__(self, splice: Splice, upstream: Stream, inner: ResponsePipe, judge: Judge) -> None:
        self._splice = splice
        self._upstream = upstream
        self._inner = inner
        """What passes the response on."""
        self._judge = judge
        self._held: HeaderList | None = None

    @property
    def splice(self) -> Splice:
        return self._splice

    def response(self, headers: HeaderList, end_stream: bool) -> None:
        splice = self._splice
        if end_stream or headers[0][1] != b"200":
            if self._judge.ended(_status_of(headers, headers), headers):
                return
        elif splice.request_ended and splice.replay is not None and headers.once(size_of) <= _MOST_HELD_BYTES:
            self._held = headers
            return
        self.commit()
        self._inner.response(headers, end_stream)

    def data(self, data: Data, credit: int, end_stream: bool) -> None:
        if not data and not end_stream:
            # No message yet.
            if credit:
                self._upstream.credit(credit)
            return
        self.commit()
        if not self._splice.abandoned:
            self._inner.data(data, credit, end_stream)

    def trailers(self, headers: HeaderList) -> None:
        assert self._held is not None
        if self._judge.ended(_status_of(headers, self._held), headers):
            return
        self.commit()
        if not self._splice.abandoned:
            self._inner.trailers(headers)

    def failed(self, error: RpcError) -> None:
        self._inner.failed(error)

    def closed(self) -> None:
        self._inner.closed()

    def commit(self) -> None:
        """Pass on what is held, and all that comes."""
        self._upstream.sink = self._inner
        self._judge.committed()
        held, self._held = self._held, None
        if held is not None:
            self._inner.response(held, False)  # noqa: FBT003  # as a sink has it


class RepeatedForwarding(Forwarding):
    """A call that may be sent more than once, as long as nothing of a response has reached its caller."""

    __slots__ = ("_counted", "_home", "_plain_context", "_throttle", "_tried")

    def __init__(
        self,
        call: Call,
        context: CallContext,
        where: PooledConnection | Target | Cluster | Place,
        owner: Owner,
        max_replay_bytes: int,
    ) -> None:
        super().__init__(call, context, where, owner)
        self._home: Home | None = self._cluster if self._endpoint is None else self._endpoint.cluster
        if self._home is None and self._conn is not None and isinstance(self._conn.owner, Target):
            self._target = self._conn.owner
        self._throttle = None if self._home is None else self._home.retry_throttling
        self._plain_context = context
        self._counted = False
        """Whether the throttle has heard of the attempt that the caller gets."""
        self._tried: list[Endpoint] = []
        """Endpoints at which attempts have failed, or are on their way."""
        self._splice.replay_limit = max_replay_bytes

    def stop(self) -> None:
        if self.over:
            return
        super().stop()
        throttle = self._throttle
        if throttle is not None and not self._counted and self._splice.response_ended:
            if self.call.record.status is Status.OK:
                throttle.succeeded()
            elif self._may_follow(self.call.record.status):
                throttle.failed()

    def _may_follow(self, status: Status) -> bool:
        """Whether an attempt with this status may be followed by another one."""
        raise NotImplementedError

    def _heed(self, status: Status, fields: Headers, *, may_follow: bool) -> tuple[float | None, bool]:
        """What an attempt that ended so asks for: a pause in seconds if any, and whether it forbids another attempt.

        One that has failed in a way that counts takes a token of the throttle.
        """
        pushback = pushback_s(fields)
        is_forbidden = pushback is not None and pushback < 0
        if self._throttle is not None and (may_follow or is_forbidden) and status is not Status.OK:
            self._throttle.failed()
            self._counted = True
        return pushback, is_forbidden

    def _note(self) -> Repeats:
        """What is counted of this call."""
        record = self.call.record
        if record.repeats is None:
            record.repeats = Repeats()
        return record.repeats

    def _counts_previous(self, attempts: int) -> None:
        """Let the upstream know how many attempts there were before this one, the caller's own included."""
        context = self._plain_context
        before = next((value for name, value in context.metadata.raw if name == PREVIOUS_ATTEMPTS), b"")
        if before.isdigit() and len(before) <= _MOST_DIGITS:
            attempts += int(before)
        field = (PREVIOUS_ATTEMPTS, b"%d" % attempts)
        self._context = context.with_metadata(context.metadata.with_fields(_PREVIOUS, [field]))

    async def _take_elsewhere(self) -> tuple[Endpoint | None, PooledConnection]:
        """A place at an endpoint that has not been tried, if there is one; else at any. As `Pool.get_conn`.

        The call is not said to go there: by now another attempt may be the one that counts.
        """
        if self._home is not None:
            place = await self._home.take_untried(self._context, self._tried)
            return place.endpoint, place.conn
        assert self._target is not None
        return None, await self._target.take()


def splice_of_attempt(upstream: Stream) -> Splice | None:
    """The splice of the call whose attempt this upstream stream is, while the call has not left it."""
    sink = upstream.sink
    return sink.splice if isinstance(sink, ResponsePipe | HoldingPipe) else None


def leave(upstream: Stream, conn: PooledConnection) -> None:
    """Reset a stream, and give its place back when its last frame is out. Nothing of it is heard any more."""
    upstream.sink = Leaving(upstream, conn)
    upstream.reset(ErrorCode.CANCEL)


def is_everywhere(error: RpcError) -> bool:
    """Whether what is lacking is lacking here, and would be for any other attempt."""
    return isinstance(error, UpstreamUnavailable) and error.side is Side.LOCAL


def _status_of(last: Headers, first: Headers) -> Status:
    """The status of a response, by the list that ends it and the one that it began with."""
    status = parse_status(next((value for name, value in last if name == b"grpc-status"), None))
    return status_from_http(int(first[0][1])) if status is None else status
