"""A call that is sent several times at once, by a `HedgingPolicy`: gRFC A6. The first good answer is the caller's.

                               ┌──► attempt, at one endpoint ──┐
    request ──► HedgedStreams ─┼──► attempt, at another one  ──┼──► the first message, or an end that counts ──► caller
                               └──► …                        ──┘

Until it is known which attempt counts, the call has a task: it sends the next attempt when its time has come, and
cancellation ends all of it. From then on the attempt is spliced to the caller like any call's stream, and the others
are reset.

The invariants: each attempt's place is given back exactly once; the request's bytes are credited once, when they are
kept, or have gone to the attempt that counts; nothing of a response is passed on before its attempt counts.
"""

import math

import trio

from rawgrpc_proxy.call import Call, CallContext
from rawgrpc_proxy.cluster.cluster import Cluster
from rawgrpc_proxy.cluster.endpoint import Endpoint, Place
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import IdleTimeout, PoolExhausted, RpcError, Side, UpstreamUnavailable
from rawgrpc_proxy.grpc.retry_policy import HedgingPolicy
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.proxy.attempts import HoldingPipe, RepeatedForwarding, is_everywhere, leave
from rawgrpc_proxy.proxy.forwarding import Owner
from rawgrpc_proxy.proxy.hedged_streams import HedgedStreams
from rawgrpc_proxy.proxy.idle import IdleWatch
from rawgrpc_proxy.proxy.outcome import settled
from rawgrpc_proxy.proxy.splice import Splice, held_by
from rawgrpc_proxy.upstream.pooled import PooledConnection
from rawgrpc_proxy.upstream.target import Target

_NOTHING: Headers = []


class HedgedForwarding(RepeatedForwarding):
    """One call with several attempts."""

    __slots__ = (
        "_beginning",
        "_is_decided",
        "_is_enough",
        "_lease",
        "_live",
        "_news",
        "_next_at",
        "_policy",
        "_problem",
        "_sent",
    )

    def __init__(
        self,
        call: Call,
        context: CallContext,
        where: PooledConnection | Target | Cluster | Place,
        owner: Owner,
        policy: HedgingPolicy,
    ) -> None:
        super().__init__(call, context, where, owner, policy.max_replay_bytes)
        self._policy = policy
        self._lease, self._conn = self._conn, None
        """The place that the director has taken, for the first attempt. `_conn` is that of the attempt that counts."""
        self._live: list[Attempt] = []
        """Those that have a stream."""
        self._is_enough = False
        """No more attempts: the upstream forbids them, or too many have failed."""
        self._beginning = 0
        """Attempts that wait for a place."""
        self._sent = 0
        self._next_at = -math.inf
        """When the next attempt is sent, on trio's clock."""
        self._is_decided = False
        self._problem: BaseException | None = None
        """Why the call ends without an attempt that counts."""
        self._news = trio.Event()
        if self._idle is not None:
            self._idle = IdleWatch(self._passed, self._idle.timeout_s)

    # -------------------------------------------------------------- the call's task

    def open_now(self) -> bool:
        return False

    async def _begin(self) -> None:
        try:
            await self._race()
        except BaseException as error:
            # Once the call is decided it goes on, or has ended, without its task.
            if not self._is_decided or not _is_cancellation(error):
                raise

    async def _race(self) -> None:
        """Send attempts until it is known which counts. Raises if none does."""
        async with trio.open_nursery() as nursery:
            while not self._is_decided and self._problem is None:
                if self._is_due():
                    self._sent += 1
                    self._beginning += 1
                    self._next_at = trio.current_time() + self._policy.hedging_delay_s
                    nursery.start_soon(self._attempt, self._sent)
                    continue
                self._news = trio.Event()
                with trio.move_on_at(self._next_at if self._may_send else math.inf):
                    await self._news.wait()
            nursery.cancel_scope.cancel()
        if self._problem is not None and not self._is_decided:
            raise self._problem

    def _passed(self) -> tuple[object, ...]:
        """As `Splice.passed`, of all attempts. Each that is sent, or fails, is a sign of life."""
        return self._sent, self._splice.passed(), *[held_by(attempt.stream) for attempt in self._live]

    @property
    def _may_send(self) -> bool:
        return self._sent < self._policy.max_attempts and not self._is_enough

    def _is_due(self) -> bool:
        """Whether another attempt is to be sent now."""
        if not self._may_send or trio.current_time() < self._next_at:
            return False
        if self._live or self._beginning:
            self._mind_throttle()
        return self._may_send

    def _mind_throttle(self) -> None:
        if self._may_send and self._throttle is not None and not self._throttle.allows:
            self._note().is_throttled = True
            self._is_enough = True

    async def _attempt(self, number: int) -> None:
        """Take a place, and send an attempt. What is raised is the call's, unless it may be followed by another one."""
        try:
            try:
                endpoint, conn = await self._place()
            finally:
                self._beginning -= 1
            if self._is_decided or self._problem is not None:
                conn.give_back()
            else:
                with self.call.stream.connection.turn:
                    self._send(endpoint, conn, number)
        except RpcError as error:
            if error.side is Side.DOWNSTREAM or not self._goes_on_without(error):
                self._fails(error)
        except Exception as error:  # noqa: BLE001  # of this call: the race raises it
            self._fails(error)
        self._news.set()

    async def _place(self) -> tuple[Endpoint | None, PooledConnection]:
        """A place on a connection with room; another one than others have, if it can be had."""
        endpoint = self._endpoint
        conn, self._lease = self._lease, None
        if conn is not None:
            if endpoint is not None:
                self._tried.append(endpoint)
        else:
            endpoint, conn = await self._take_elsewhere()
        if not conn.has_room:
            try:
                fresh = await conn.again()
            finally:
                conn.give_back()
            conn = fresh
        return endpoint, conn

    def _send(self, endpoint: Endpoint | None, conn: PooledConnection, number: int) -> None:
        splice = self._splice
        self.call.record.upstream = conn.address
        try:
            if number > 1:
                self._counts_previous(number - 1)
            stream = self._stream_on(conn)
        except BaseException:
            conn.give_back()
            raise
        attempt = Attempt(self, endpoint, conn, stream)
        self._live.append(attempt)
        if number > 1:
            self._note().hedges += 1
        if len(self._live) > 1:
            splice.resend(stream)
        else:
            splice.join(HedgedStreams(self, stream))
            self._mind_idle()

    # -------------------------------------------------- what becomes of the attempts

    @property
    def splice(self) -> Splice:
        """The call's."""
        return self._splice

    def streams(self) -> list[Stream]:
        """The streams that the request goes to."""
        upstream = self._splice.upstream
        if self._is_decided and upstream is not None:
            return [upstream]
        return [attempt.stream for attempt in self._live]

    def ended(self, attempt: "Attempt", status: Status, fields: Headers) -> bool:
        """Whether an attempt with this status is forgotten. If not it counts."""
        if status is Status.OK or not self._goes_on(status, fields, others=len(self._live) - 1):
            return False
        attempt.tell(status)
        self._forget(attempt)
        return True

    def failed(self, attempt: "Attempt", error: RpcError) -> None:
        """An attempt has ended without a status of its upstream's."""
        attempt.tell(error.status, error)
        if error.retry_safe and not self._is_second and not self._is_enough:
            # It was not processed: another one takes its place, and it does not count.
            self._is_second = True
            self._sent -= 1
            self._next_at = -math.inf
        elif error.side is not Side.UPSTREAM or not self._goes_on(error.status, others=len(self._live) - 1):
            self._fails(settled(error, self.call.deadline))
            return
        self._forget(attempt)

    def counts(self, attempt: "Attempt") -> None:
        """The response of this attempt goes to the caller."""
        self._is_decided = True
        live, self._live = self._live, []
        for other in live:
            if other is not attempt:
                other.leave()
        self._conn, self._endpoint = attempt.conn, attempt.endpoint
        self.call.record.upstream = attempt.conn.address
        self._splice.upstream = attempt.stream
        self._news.set()

    def first_counts(self) -> Stream:
        """The request is too long to be kept: it goes on to the first attempt alone. Answers its stream."""
        attempt = self._live[0]
        attempt.pipe.commit()
        return attempt.stream

    def _goes_on(self, status: Status, fields: Headers = _NOTHING, *, others: int) -> bool:
        """Whether an attempt with this status is followed by one that is to come, or by one of `others`."""
        may_follow = self._may_follow(status)
        pushback, is_forbidden = self._heed(status, fields, may_follow=may_follow)
        if not may_follow:
            return False
        self._is_enough = self._is_enough or is_forbidden
        self._mind_throttle()
        self._next_at = trio.current_time() + (pushback or 0.0)
        if not others and not self._beginning:
            if not self._may_send:
                self._note().is_exhausted = self._sent >= self._policy.max_attempts
                return False
            if self.call.deadline is not None and self._next_at >= self.call.deadline:
                return False
            if self._idle is not None and pushback is not None and pushback >= self._idle.timeout_s:
                return False  # the call would be idle for too long
        self._counted = False
        return True

    def _goes_on_without(self, error: RpcError) -> bool:
        """The same for an attempt that has got no stream: what is lacking there is nothing to the others."""
        if self._live or self._beginning:
            return True
        may_be_had = isinstance(error, UpstreamUnavailable | PoolExhausted) and not is_everywhere(error)
        return may_be_had and self._goes_on(error.status, others=0)

    def _forget(self, attempt: "Attempt") -> None:
        self._live.remove(attempt)
        attempt.leave()
        self._news.set()
        if not self._live:
            self._mind_idle_no_more()  # only attempts on their way may be idle
            splice = self._splice
            splice.upstream = None
            # What comes of the request meanwhile waits there, and a caller who goes ends the call's task.
            splice.downstream.sink = splice.downstream.inbox

    def _fails(self, problem: BaseException) -> None:
        if self._problem is None:
            self._problem = problem
        self._news.set()

    def _idle_for_too_long(self, error: IdleTimeout) -> None:
        if self._is_decided:
            super()._idle_for_too_long(error)
        else:
            self._fails(error)

    def _may_follow(self, status: Status) -> bool:
        return status in self._policy.non_fatal_status_codes

    # ------------------------------------------------------------------ the call's end

    def _advance(self) -> None:
        if self._is_decided:
            super()._advance()
        elif self._splice.downstream_error is not None:
            self._fails(self._splice.downstream_error)

    def stop(self) -> None:
        if self.over:
            return
        if not self._is_decided:
            self._conn, self._lease = self._lease, None
            live, self._live = self._live, []
            for attempt in live:
                attempt.leave()
            self._splice.upstream = None
        super().stop()


class Attempt:
    """One of the streams that a call has upstream, and its place."""

    __slots__ = ("_forwarding", "conn", "endpoint", "is_closed", "pipe", "stream")

    def __init__(
        self,
        forwarding: HedgedForwarding,
        endpoint: Endpoint | None,
        conn: PooledConnection,
        stream: Stream,
    ) -> None:
        self._forwarding = forwarding
        self.endpoint = endpoint
        self.conn = conn
        self.stream = stream
        self.is_closed = False
        self.pipe = stream.sink = _HedgePipe(forwarding.splice, self)

    def ended(self, status: Status, fields: Headers) -> bool:
        return self._forwarding.ended(self, status, fields)

    def committed(self) -> None:
        self._forwarding.counts(self)

    def failed(self, error: RpcError) -> None:
        """Its stream was reset, or its connection is lost."""
        self._forwarding.failed(self, error)

    def tell(self, status: Status, error: RpcError | None = None) -> None:
        """Let the endpoint know how it went, if that says something of it."""
        if self.endpoint is not None:
            self.endpoint.attempt_ended(status, self._forwarding.call, error)

    def leave(self) -> None:
        """Hear nothing of it any more, and give its place back."""
        if self.is_closed:
            self.conn.give_back()
        else:
            leave(self.stream, self.conn)


class _HedgePipe(HoldingPipe):
    """Sink of an attempt that has not been decided about."""

    __slots__ = ("_attempt",)

    def __init__(self, splice: Splice, attempt: Attempt) -> None:
        super().__init__(splice, attempt.stream, splice.response_pipe(attempt.stream), attempt)
        self._attempt = attempt

    def failed(self, error: RpcError) -> None:
        self._attempt.failed(error)

    def closed(self) -> None:
        self._attempt.is_closed = True
        self._upstream.sink = self._upstream.inbox  # opens the circle that the two are in


def _is_cancellation(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)
