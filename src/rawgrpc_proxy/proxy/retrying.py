"""A call that is sent once more when it has failed, by a `RetryPolicy`: gRFC A6.

    an attempt ──fails with one of `on`, or takes too long──► its place is given back ──pause──► the next attempt
        └──its response begins──► committed: from here on it is a call like any other

The pause passes in a task, without a place, and ends with the call: by its deadline, its caller, or the server's end.
A call that was not processed is first sent again as all calls are, without a pause, and that does not count.
"""

import random

import trio

from rawgrpc_proxy.call import Call, CallContext
from rawgrpc_proxy.cluster.cluster import Cluster
from rawgrpc_proxy.cluster.endpoint import Place
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import DeadlineExceeded, PoolExhausted, RpcError, Side, UpstreamUnavailable
from rawgrpc_proxy.grpc.retry_policy import RetryPolicy
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.net.timers import Timer
from rawgrpc_proxy.proxy.attempts import HoldingPipe, RepeatedForwarding, is_everywhere, leave
from rawgrpc_proxy.proxy.forwarding import Owner
from rawgrpc_proxy.proxy.splice import ResponsePipe
from rawgrpc_proxy.upstream.pooled import PooledConnection
from rawgrpc_proxy.upstream.target import Target

_chance = random.SystemRandom()
"""The system's: workers are forked, and must not all have the same pauses."""

_NOTHING: Headers = []


class RetryingForwarding(RepeatedForwarding):
    """One call that may be sent again. It is the judge of each of its attempts."""

    __slots__ = ("_failed", "_pause_s", "_pauses", "_policy", "_timeout")

    def __init__(
        self,
        call: Call,
        context: CallContext,
        where: PooledConnection | Target | Cluster | Place,
        owner: Owner,
        policy: RetryPolicy,
    ) -> None:
        super().__init__(call, context, where, owner, policy.max_replay_bytes)
        self._policy = policy
        self._failed = 0
        """Attempts that were followed by another one."""
        self._pauses = 0
        """Pauses since the upstream last asked for one of another length."""
        self._pause_s: float | None = None
        """Before the attempt that is to come; None: it comes at once, as the call was not processed."""
        self._timeout: Timer | None = None

    # ------------------------------------------------------------- the next attempt

    async def _begin(self) -> None:
        await self._begin_attempt(was_refused=False)

    async def _begin_again(self) -> None:
        await self._begin_attempt(was_refused=self._pause_s is None)

    async def _begin_attempt(self, *, was_refused: bool) -> None:
        """Open a stream, after its pause; where none can be had, that is an attempt that has failed."""
        while True:
            if self._pause_s is not None:
                await self._pause(self._pause_s)
                self._pause_s = None
            self._check_caller()
            try:
                if was_refused:
                    was_refused = False
                    await self._trade_place()
                elif self._conn is None and self._failed:
                    self._endpoint, self._conn = await self._take_elsewhere()
                    self.call.record.upstream = self._conn.address
                await self._find_room()
                self._open()
            except (UpstreamUnavailable, PoolExhausted) as error:
                if is_everywhere(error) or not self._goes_on(error.status):
                    raise
            else:
                return

    async def _pause(self, seconds: float) -> None:
        repeats = self._note()
        repeats.is_pausing = True
        try:
            await trio.sleep(seconds)
        finally:
            repeats.is_pausing = False

    def _open(self) -> None:
        super()._open()
        splice = self._splice
        upstream = splice.upstream
        if self.over or upstream is None or not isinstance(upstream.sink, ResponsePipe):
            return  # the caller has gone meanwhile
        upstream.sink = HoldingPipe(splice, upstream, upstream.sink, self)
        timeout_s = self._policy.per_attempt_timeout_s
        if timeout_s is not None:
            self._timeout = self.call.call_at(trio.current_time() + timeout_s, self._takes_too_long)

    def stop(self) -> None:
        self._forget_timeout()
        super().stop()

    # ------------------------------------------------------------- the end of an attempt

    def ended(self, status: Status, fields: Headers) -> bool:
        return self._is_sent_again(status, fields)

    def committed(self) -> None:
        self._forget_timeout()

    def _takes_too_long(self) -> None:
        self._timeout = None
        timeout_s = self._policy.per_attempt_timeout_s
        error = DeadlineExceeded(
            f"no response came within {timeout_s:g} s, the most an attempt may take",
            cause="per_attempt_timeout",
        )
        if not self._is_sent_again(error.status, takes_too_long=True):
            self._end(error)

    def _is_sent_again(
        self, status: Status, fields: Headers = _NOTHING, *, takes_too_long: bool = False
    ) -> bool:
        if not self._goes_on(status, fields, takes_too_long=takes_too_long):
            return False
        self._tell_of_attempt(status)
        self._waits_for_task()
        return True

    def _opens_again(self, error: RpcError) -> bool:
        if super()._opens_again(error):
            self._forget_timeout()
            return True
        if error.side is not Side.UPSTREAM or not self._goes_on(error.status):
            return False
        if not error.retry_safe:
            self._tell_of_attempt(error.status)
        return True

    def _tell_of_attempt(self, status: Status) -> None:
        if self._endpoint is not None:
            self._endpoint.attempt_ended(status, self.call)

    def _may_follow(self, status: Status) -> bool:
        return status in self._policy.retryable_status_codes

    def _goes_on(self, status: Status, fields: Headers = _NOTHING, *, takes_too_long: bool = False) -> bool:
        """Whether the call is sent again. Then its attempt has been left, and the pause is known."""
        policy, splice, throttle = self._policy, self._splice, self._throttle
        may_follow = takes_too_long or status in policy.retryable_status_codes
        pushback, is_forbidden = self._heed(status, fields, may_follow=may_follow)
        if not may_follow or is_forbidden or splice.replay is None:
            return False
        if self._failed + 1 >= policy.max_attempts:
            self._note().is_exhausted = True
            return False
        if throttle is not None and not throttle.allows:
            self._note().is_throttled = True
            return False
        if pushback is not None:
            pause_s, pauses = pushback, 0
        else:
            pauses = self._pauses + 1
            pause_s = policy.backoff_s(pauses, _chance.random())
        deadline = self.call.deadline
        if deadline is not None and trio.current_time() + pause_s >= deadline:
            # What the upstream said tells more than a deadline that passes in a pause.
            return False
        if self._idle is not None and pause_s >= self._idle.timeout_s:
            return False  # an upstream could have calls wait for weeks that may not be idle for so long
        self._pauses, self._pause_s = pauses, pause_s
        self._counted = False
        self._leave_attempt()
        self._note().retries += 1
        return True

    def _leave_attempt(self) -> None:
        splice, conn = self._splice, self._conn
        self._forget_timeout()
        if conn is not None:
            if splice.upstream is None or splice.upstream_closed:
                self._give_back()
            else:
                leave(splice.upstream, conn)
                self._conn = None
        splice.upstream = None
        # What comes of the request meanwhile waits there, and a caller who goes ends the pause.
        splice.downstream.sink = splice.downstream.inbox
        self._failed += 1
        self._counts_previous(self._failed)
        if self._endpoint is not None:
            self._tried.append(self._endpoint)

    def _forget_timeout(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None
