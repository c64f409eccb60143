"""A call on its way to an upstream: from the director's choice to the end of both streams.

It may need a task to begin (a director or a connection has to be waited for), and one if the call is sent once more.
In between and to the end the readers of the two connections move it on, through the splice: an open call costs no task,
and its end wakes none. What it does not do: choose an upstream, or answer the caller; it tells its owner how the call
went.

The invariants: the place on a connection is given back exactly once; the owner hears of the end exactly once, unless a
step that ran in a task has raised.
"""

from typing import Protocol

import trio

from rawgrpc_proxy.call import Call, CallContext, checked_deadline
from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.errors import DeadlineExceeded, RpcError, StreamReset
from rawgrpc_proxy.grpc.metadata import TE_TRAILERS, Metadata
from rawgrpc_proxy.grpc.status import decode_grpc_message, parse_status, status_from_http
from rawgrpc_proxy.grpc.timeout import format_timeout
from rawgrpc_proxy.http2.field_rules import request_problem
from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.http2.headers import HeaderList, Headers
from rawgrpc_proxy.http2.session import UNLIMITED
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.proxy.splice import Splice
from rawgrpc_proxy.upstream.pooled import PooledConnection
from rawgrpc_proxy.upstream.target import Target

_FRESH_CONNECTIONS = 3
_SHORT_MESSAGE = 64
"""Longer ones are not kept with the list they came in: decoded they may take four times as much, or more."""


class Owner(Protocol):
    """Who made a forwarding, and hears of it from the middle of a reader's work: must neither wait nor raise."""

    def forwarding_over(self, forwarding: "Forwarding", error: RpcError | None) -> None:
        """The call has ended as the upstream wished (None), or with an error that the caller has to be told."""

    def forwarding_refused(self, forwarding: "Forwarding") -> None:
        """The upstream did not process the call. Run `open_again` in a task."""


class Forwarding:
    """One call between its downstream stream and the upstream's."""

    __slots__ = (
        "_conn",
        "_context",
        "_is_second",
        "_needs_task",
        "_owner",
        "_splice",
        "_target",
        "call",
        "over",
    )

    def __init__(
        self, call: Call, context: CallContext, where: PooledConnection | Target, owner: Owner
    ) -> None:
        """`context` is what the upstream is told. A place on a connection is ours from here on."""
        self.call = call
        self.over = False
        self._context = context
        if isinstance(where, Target):
            self._target: Target | None = where
            self._conn: PooledConnection | None = None
        else:
            self._target, self._conn = None, where
        self._owner = owner
        self._is_second = False
        self._needs_task = False
        self._splice = Splice(call.stream, self._advance)
        call.record.upstream = where.address

    def open_now(self) -> bool:
        """Open the upstream stream, and join the two; False, and nothing done, if a connection has to be waited for.

        When this raises the lease is back, and the owner is told nothing. What is written the caller has to flush.
        """
        if self._conn is None:
            assert self._target is not None
            self._conn = self._target.take_now()
        if self._conn is None or not self._conn.has_room:
            return False
        try:
            self._mind_deadline()
            self._open()
        except BaseException:
            self.stop()
            raise
        return True

    async def open(self) -> "Forwarding":
        """As `open_now`, but wait if the connection has been lost since the director chose it. Answers itself.

        When this is cancelled it leaves no trace, as when it raises.
        """
        try:
            self._mind_deadline()
            await self._find_room()
            self._open()
        except BaseException:
            self.stop()
            raise
        return self

    async def open_again(self) -> "Forwarding":
        """Send the call once more, on another connection. As `open`."""
        try:
            self._check_caller()
            await self._trade_place()
            await self._find_room()
            self._open()
        except BaseException:
            self.stop()
            raise
        return self

    def expire(self) -> None:
        """The deadline has passed."""
        self._end(DeadlineExceeded("Deadline Exceeded"))

    def stop(self) -> None:
        """Leave the upstream, without a word to the owner. Nothing happens if the call is over."""
        if self.over:
            return
        self.over = True
        splice = self._splice
        splice.end()
        if self._conn is not None:
            if splice.upstream is None or splice.upstream_closed:
                self._give_back()
            else:
                # What the call has left in the output counts, or an upstream that does not read could have us hold any
                # number of calls that were given up.
                splice.upstream.sink = _Leaving(splice.upstream, self._conn)
                self._conn = None
        _record(self.call, splice)

    def _end(self, error: RpcError | None) -> None:
        if not self.over:
            self.stop()
            self._owner.forwarding_over(self, error)

    def _advance(self) -> None:
        """One of the streams has closed, or failed."""
        splice = self._splice
        if self._needs_task:
            return  # what is left of the stream that failed
        if splice.downstream_error is not None:
            self._end(splice.downstream_error)
        elif splice.upstream_error is not None:
            if self._may_open_again(splice.upstream_error):
                self._is_second = self._needs_task = True
                self._owner.forwarding_refused(self)
            else:
                self._end(_settled(splice.upstream_error, self.call.deadline))
        elif splice.downstream_closed and splice.response_ended:
            self._end(None)
        elif splice.upstream_closed and self._conn is not None:
            self._give_back()

    def _may_open_again(self, error: RpcError) -> bool:
        """Whether the upstream provably did not process the call, its request is still here, and it was the first."""
        return error.retry_safe and self._splice.replay is not None and not self._is_second

    # ------------------------------------------------------------------- place

    def _give_back(self) -> None:
        conn, self._conn = self._conn, None
        assert conn is not None
        conn.give_back()

    async def _trade_place(self) -> None:
        """Take a place on another connection to the same address. If there is none, this one is kept."""
        assert self._conn is not None
        fresh = await self._conn.again()
        self._conn.give_back()
        self._conn = fresh

    def _check_caller(self) -> None:
        """Raise if the caller gave up while we waited, or were about to."""
        if self.call.stream.inbox.error is not None:
            raise self.call.stream.inbox.error

    async def _find_room(self) -> None:
        if self._conn is None:
            assert self._target is not None
            self._conn = await self._target.take()
        for _ in range(_FRESH_CONNECTIONS):
            if self._conn.has_room:
                break
            # It went away since the director chose it; nothing has left the proxy, so another one is as good.
            await self._trade_place()

    def _mind_deadline(self) -> None:
        """Let the deadline that the director has answered be the call's."""
        if self._context.deadline != self.call.deadline:
            self.call.end_at(checked_deadline(self._context.deadline))

    # ----------------------------------------------------------------- opening

    def _open(self) -> None:
        conn, call, context, splice = self._conn, self.call, self._context, self._splice
        assert conn is not None
        self._check_caller()
        headers = _upstream_headers(call, context)
        limit = conn.peer_max_header_list_bytes
        if limit < UNLIMITED and context.metadata.next_hop_size > limit and conn.has_room:
            size = context.metadata.next_hop_size
            raise RpcError(
                Status.RESOURCE_EXHAUSTED,
                f"the request headers have {size} bytes; {conn.address} takes {limit}",
                origin="proxy",
            )
        turn = call.stream.connection.turn
        in_turn, turn.collecting = turn.collecting, True
        try:
            self._needs_task = False
            splice.join(conn.open_stream(headers, call.stream.ended_by_headers))
        finally:
            turn.collecting = in_turn


class _Leaving:
    """Sink of an upstream stream that its call has left: gives the place back when its last frame is out."""

    __slots__ = ("_conn", "_upstream")

    def __init__(self, upstream: Stream, conn: PooledConnection) -> None:
        self._upstream = upstream
        self._conn = conn

    def response(self, headers: HeaderList, end_stream: bool) -> None:
        """Too late."""

    def data(self, data: Data, credit: int, end_stream: bool) -> None:
        """Too late."""

    def trailers(self, headers: HeaderList) -> None:
        """Too late."""

    def failed(self, error: RpcError) -> None:
        """Too late."""

    def closed(self) -> None:
        self._upstream.sink = self._upstream.inbox  # opens the circle that the two are in
        self._conn.give_back()


def _settled(error: RpcError, deadline: float | None) -> RpcError:
    """The caller's error for an upstream's. An upstream that watches the deadline too cancels the stream then."""
    if (
        isinstance(error, StreamReset)
        and error.error_code == ErrorCode.CANCEL
        and deadline is not None
        and trio.current_time() >= deadline
    ):
        return DeadlineExceeded("Deadline Exceeded")
    return error


def _upstream_headers(call: Call, context: CallContext) -> Headers:
    """The headers for the upstream, with the time that is left.

    Raises `DeadlineExceeded` if none is left, and `TypeError` or `ValueError` if what the director answered as
    metadata makes no request.
    """
    asked, metadata = call.context, context.metadata
    if metadata is not asked.metadata:
        _check(metadata)
    headers = metadata.next_hop
    if call.deadline is None:
        if asked.deadline is None:
            return headers
        # The director has taken it away.
        return [header for header in headers if header[0] != b"grpc-timeout"]
    left = call.deadline - trio.current_time()
    if left <= 0:
        raise DeadlineExceeded("Deadline Exceeded")
    timeout = (b"grpc-timeout", format_timeout(left))
    told = [timeout if header[0] == b"grpc-timeout" else header for header in headers]
    if context is not asked and timeout not in told:
        # The place that the protocol gives it.
        told.insert(told.index(TE_TRAILERS) + 1, timeout)
    return told


def _check(metadata: object) -> None:
    """See that a director's metadata make a request: an upstream may end the whole connection over one that is none."""
    if not isinstance(metadata, Metadata):
        raise TypeError(f"the metadata of a call are a Metadata, not {type(metadata).__name__}")
    if metadata.by_hand:
        problem = request_problem(metadata.next_hop)
        if problem is not None:
            raise ValueError(
                f"the director's metadata make no request: {problem}; start from context.metadata and change it with "
                "with_value, with_added and without"
            )


def _record(call: Call, splice: Splice) -> None:
    """Note what passed, and the status the upstream gave."""
    call.response_passed_on(headers=splice.response_headers is not None, ended=splice.response_ended)
    record = call.record
    record.request_bytes, record.request_messages = splice.request_bytes, splice.request_messages.count
    record.response_bytes, record.response_messages = splice.response_bytes, splice.response_messages.count
    if not splice.response_ended or splice.response_headers is None:
        return
    last = splice.response_trailers or splice.response_headers
    status, message = last.once(_told)
    if status is not None:
        if message is None:
            message = decode_grpc_message(dict(last)[b"grpc-message"])
        record.status, record.origin, record.detail = status, "upstream", message
        return
    record.detail = "the upstream sent no grpc-status"
    http_status = int(splice.response_headers[0][1])
    record.status, record.origin = status_from_http(http_status), f"HTTP {http_status}"


def _told(last: HeaderList) -> tuple[Status | None, str | None]:
    """The status in a list that ends a response, and its message; None if it is a long one."""
    fields = dict(last)
    message = fields.get(b"grpc-message", b"")
    text = decode_grpc_message(message) if len(message) <= _SHORT_MESSAGE else None
    return parse_status(fields.get(b"grpc-status")), text
