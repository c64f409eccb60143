"""A call on its way to an upstream: from the director's choice to the end of both streams.

It may need a task to begin (a director or a connection has to be waited for), and one if the call is sent once more.
In between and to the end the readers of the two connections move it on, through the splice: an open call costs no task,
and its end wakes none. What it does not do: choose an upstream, or answer the caller; it tells its owner how the call
went.

The invariants: the place on a connection is given back exactly once; the owner hears of the end exactly once, unless a
step that ran in a task has raised.
"""

from functools import partial
from typing import Protocol

import trio

from rawgrpc_proxy.call import Call, CallContext, checked_changes, checked_deadline
from rawgrpc_proxy.call_policy import CallLimit
from rawgrpc_proxy.cluster.cluster import Cluster
from rawgrpc_proxy.cluster.endpoint import Endpoint, Place
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import DeadlineExceeded, IdleTimeout, RpcError
from rawgrpc_proxy.http2.frames import UNLIMITED, Data
from rawgrpc_proxy.http2.headers import HeaderList
from rawgrpc_proxy.limits.concurrency import Places
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.net.timers import Timer
from rawgrpc_proxy.proxy.idle import IdleWatch
from rawgrpc_proxy.proxy.outcome import note_outcome, settled, telling_status
from rawgrpc_proxy.proxy.splice import Splice
from rawgrpc_proxy.proxy.upstream_request import upstream_headers
from rawgrpc_proxy.upstream.pooled import PooledConnection
from rawgrpc_proxy.upstream.target import Target

_FRESH_CONNECTIONS = 3


class Owner(Protocol):
    """Who made a forwarding, and hears of it from the middle of a reader's work: must neither wait nor raise."""

    def forwarding_over(self, forwarding: "Forwarding", error: RpcError | None) -> None:
        """The call has ended as the upstream wished (None), or with an error that the caller has to be told."""

    def forwarding_refused(self, forwarding: "Forwarding") -> None:
        """The call shall be sent once more. Run `open_again` in a task."""


class Forwarding:
    """One call between its downstream stream and the upstream's."""

    __slots__ = (
        "_cluster",
        "_conn",
        "_context",
        "_endpoint",
        "_idle",
        "_idle_timer",
        "_is_second",
        "_limits",
        "_mirror",
        "_needs_task",
        "_owner",
        "_places",
        "_splice",
        "_target",
        "call",
        "over",
    )

    def __init__(
        self,
        call: Call,
        context: CallContext,
        where: PooledConnection | Target | Cluster | Place,
        owner: Owner,
    ) -> None:
        """`context` is what the upstream is told. A place on a connection is ours from here on."""
        self.call = call
        self.over = False
        self._context = context
        policy = context.policy
        self._limits: tuple[CallLimit, ...] = () if policy is None else policy.limits
        self._places: Places | None = None
        """What the call has taken of these."""
        self._mirror = None if policy is None else policy.mirror
        """Until the call has been copied, or not."""
        self._target: Target | None = None
        self._cluster: Cluster | None = None
        self._endpoint: Endpoint | None = None
        """Of a cluster, the one that was chosen."""
        self._conn: PooledConnection | None = None
        if isinstance(where, Cluster):
            self._cluster = where
            if where.limits:
                self._limits = (*self._limits, *where.limits)
        elif isinstance(where, Target):
            self._target = where
            call.record.upstream = where.address
        elif isinstance(where, Place):
            self._conn = self._goes_to(where)
        else:
            self._conn = where
            call.record.upstream = where.address
        self._owner = owner
        self._is_second = False
        self._needs_task = False
        hear = call.on_response
        self._splice = Splice(
            call.stream,
            self._advance,
            counts_messages=call.counts_messages or bool(self._limits),
            on_response=None if hear is None else partial(hear, call.record),
        )
        idle_timeout_s = None if policy is None else policy.idle_timeout_s
        self._idle = None if idle_timeout_s is None else IdleWatch(self._splice.passed, idle_timeout_s)
        """If the call may be idle only for so long, while it is on its way."""
        self._idle_timer: Timer | None = None
        if (extras := call.record.extras) is not None:
            extras.refresh = partial(note_outcome, call, self._splice)

    def open_now(self) -> bool:
        """Open the upstream stream, and join the two; False, and nothing done, if a connection has to be waited for.

        When this raises the lease is back, and the owner is told nothing. What is written the caller has to flush.
        """
        try:
            if self._limits:
                self._places = Places.of(self._limits)
            if self._conn is None:
                self._conn = self._take_now()
            if self._conn is None or not self._conn.has_room:
                if self._places is not None:
                    self._leave_limits(self._places)
                return False
            if self._context.deadline != self.call.deadline:
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
            if self._limits:
                self._places = Places.of(self._limits)
            self._mind_deadline()
            await self._begin()
        except BaseException:
            self.stop()
            raise
        return self

    async def open_again(self) -> "Forwarding":
        """Send the call once more, on another connection. As `open`."""
        try:
            self._check_caller()
            await self._begin_again()
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
        if self._idle_timer is not None:
            self._mind_idle_no_more()
        splice = self._splice
        splice.end()
        if self._conn is not None:
            if splice.upstream is None or splice.upstream_closed:
                self._give_back()
            else:
                # What the call has left in the output counts, or an upstream that does not read could have us hold any
                # number of calls that were given up.
                splice.upstream.sink = Leaving(splice.upstream, self._conn)
                self._conn = None
        note_outcome(self.call, splice)
        if self._places is not None:
            self._leave_limits(self._places)
        if splice.tee is not None:
            splice.tee.original_over(self.call.record.status if splice.response_ended else None)
        if self.call.record.extras is not None:
            self.call.record.extras.refresh = None  # opens the circle that it closes

    def _end(self, error: RpcError | None) -> None:
        if not self.over:
            self.stop()
            if self._endpoint is not None and self._endpoint.hear_ended is not None:
                self._endpoint.attempt_ended(self.call.record.status, self.call, error)
            self._owner.forwarding_over(self, error)

    def _advance(self) -> None:
        """One of the streams has closed, or failed."""
        splice = self._splice
        if self._needs_task:
            return  # what is left of the stream that failed
        if splice.downstream_error is not None:
            self._end(splice.downstream_error)
        elif splice.upstream_error is not None:
            if self._opens_again(splice.upstream_error):
                self._waits_for_task()
            else:
                self._end(settled(splice.upstream_error, self.call.deadline))
        elif splice.downstream_closed and splice.response_ended:
            self._end(None)
        elif splice.upstream_closed and self._conn is not None:
            self._give_back()

    def _waits_for_task(self) -> None:
        """The call is sent once more, which takes a task."""
        self._needs_task = True
        self._mind_idle_no_more()
        self._owner.forwarding_refused(self)

    def _opens_again(self, error: RpcError) -> bool:
        """Whether the upstream provably did not process the call, its request is still here, and it was the first."""
        if not error.retry_safe or self._splice.replay is None or self._is_second:
            return False
        self._is_second = True
        return True

    # -------------------------------------------------------------------- idle

    def _mind_idle(self) -> None:
        """From now on it counts if nothing passes, if that may be so only for some time."""
        if self._idle is not None and not self.over and not self._needs_task:
            self._mind_idle_no_more()
            self._look_at(self._idle.begin(trio.current_time()))

    def _mind_idle_no_more(self) -> None:
        timer, self._idle_timer = self._idle_timer, None
        if timer is not None:
            timer.cancel()

    def _look_at(self, when: float) -> None:
        self._idle_timer = self.call.call_at(when, self._look)

    def _look(self) -> None:
        """See whether anything of the call has passed."""
        assert self._idle is not None
        when = self._idle.look(trio.current_time())
        if when is None:
            timeout_s = self._idle.timeout_s
            self._idle_for_too_long(
                IdleTimeout(f"nothing of the call has passed for {timeout_s:g} s, either way (idle_timeout)")
            )
        else:
            self._look_at(when)

    def _idle_for_too_long(self, error: IdleTimeout) -> None:
        self._end(error)

    # ------------------------------------------------------------------- place

    def _leave_limits(self, places: Places) -> None:
        self._places = None
        places.leave(telling_status(self.call, self._splice))

    def _take_now(self) -> PooledConnection | None:
        target = self._target
        if target is None:
            assert self._cluster is not None
            endpoint = self._endpoint = self._cluster.pick(self._context)
            if endpoint is None:
                return None
            target = endpoint.target
            self.call.record.upstream = target.address
        return target.take_now()

    def _goes_to(self, place: Place) -> PooledConnection:
        self._endpoint = place.endpoint
        self.call.record.upstream = place.endpoint.address
        return place.conn

    def _give_back(self) -> None:
        conn, self._conn = self._conn, None
        assert conn is not None
        conn.give_back()

    async def _trade_place(self) -> None:
        """Take a place at another endpoint, or on another connection to this one. If there is none, it is kept."""
        assert self._conn is not None
        if self._endpoint is not None:
            place = await self._endpoint.cluster.take_another(self._context, self._endpoint)
            if place is not None:
                self._conn.give_back()
                self._conn = self._goes_to(place)
                return
        fresh = await self._conn.again()
        self._conn.give_back()
        self._conn = fresh

    def _check_caller(self) -> None:
        """Raise if the caller gave up while we waited, or were about to."""
        if self.call.stream.inbox.error is not None:
            raise self.call.stream.inbox.error

    async def _find_room(self) -> None:
        if self._conn is None:
            if self._target is not None:
                self._conn = await self._target.take()
            else:
                assert self._cluster is not None
                self._conn = self._goes_to(await self._cluster.take(self._context, first=self._endpoint))
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

    async def _begin(self) -> None:
        await self._find_room()
        self._open()

    async def _begin_again(self) -> None:
        await self._trade_place()
        await self._begin()

    def _open(self) -> None:
        assert self._conn is not None
        turn = self.call.stream.connection.turn
        in_turn, turn.collecting = turn.collecting, True
        try:
            self._needs_task = False
            self._splice.join(self._stream_on(self._conn))
        finally:
            turn.collecting = in_turn
        if self._idle is not None:
            self._mind_idle()

    def _stream_on(self, conn: PooledConnection) -> Stream:
        """A stream there, with the request's headers; raises where they cannot be sent."""
        call, context, splice = self.call, self._context, self._splice
        if call.stream.inbox.error is not None:
            raise call.stream.inbox.error
        headers = upstream_headers(call, context)
        limit = conn.peer_max_header_list_bytes
        if limit < UNLIMITED and context.metadata.next_hop_size > limit and conn.has_room:
            size = context.metadata.next_hop_size
            raise RpcError(
                Status.RESOURCE_EXHAUSTED,
                f"the request headers have {size} bytes; {conn.address} takes {limit}",
                origin="proxy",
                cause="SETTINGS_MAX_HEADER_LIST_SIZE",
            )
        splice.decided = context.metadata.decided
        if context.response_changes is not None:
            splice.response_changes = checked_changes(context.response_changes)
        if call.status_origin is not None:
            splice.response_changes = call.status_origin.over(checked_changes(context.response_changes))
        if call.record.extras is not None:
            call.record.extras.attempts += 1
        if call.record.trace is not None:
            call.record.trace.sent()
        if self._mirror is not None:
            mirror, self._mirror = self._mirror, None
            splice.tee = mirror.begin(context, headers, call.stream.ended_by_headers, call.deadline)
        return conn.open_stream(headers, call.stream.ended_by_headers)


class Leaving:
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
