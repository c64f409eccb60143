"""`Target`: one address with one TLS configuration, its connections, the calls that wait for one, and its dials.

`choice.py` decides which connection a call gets, and what is kept; this module dials, lets calls wait, and closes. A
call that cannot be served at once is a `Waiting`, in one of two places: in line, with nothing in hand, or among those
who share a dial, with a place on the connection to be.

    a target's dials:   fine ──a dial fails──► in trouble: one dial at a time, after pauses ──one succeeds──► fine
                                                   └──nobody has asked for a while──► fine

Line, dials and places stand together, since each change of one is an event for the others.

The invariants: as long as somebody stands in line there is nothing to hand out, so whatever changes that calls `serve`;
a place is handed over, never left for whoever runs first, so nobody gets ahead; a caller that is cancelled leaves
nothing behind.
"""

import math
from collections import deque
from collections.abc import Callable

import trio

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import (
    ConfigError,
    ConnectionGone,
    PoolExhausted,
    ProxyError,
    RpcError,
    Side,
    UpstreamUnavailable,
)
from rawgrpc_proxy.http2.frames import UNLIMITED
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.connection import Connection
from rawgrpc_proxy.observe.tell import tell
from rawgrpc_proxy.upstream.backoff import Backoff
from rawgrpc_proxy.upstream.call_total import CallTotal
from rawgrpc_proxy.upstream.choice import Phase, PoolRecord
from rawgrpc_proxy.upstream.pooled import PooledConnection, Waiting
from rawgrpc_proxy.upstream.state import Key, PoolState
from rawgrpc_proxy.upstream.warm import Warm

_READY = Phase.READY  # looked up once, not for every call
_DEMAND_S = 30.0
"""So long after the last call that found no connection, an upstream is still dialled."""


class Target:
    """Where a call shall go: an address of a pool, and its TLS configuration. `pool.target` makes it.

    A director that answers one leaves it to the proxy to take a place on a connection: nothing is held before, so
    nothing can be lost on the way.
    """

    __slots__ = (
        "__weakref__",
        "_asked_at",
        "_backoff",
        "_connections",
        "_dialling",
        "_line",
        "_totals",
        "_trouble",
        "_wanted",
        "_warm",
        "address",
        "calls",
        "keepalive_s",
        "key",
        "on_trouble",
        "parsed",
        "peer_limit",
        "record",
        "server_name",
        "ssl_context",
        "state",
    )

    def __init__(self, key: Key, state: "PoolState[Target]") -> None:
        self.key = key
        self.state = state
        self.address, self.ssl_context, self.server_name = key
        self.parsed = Address.parse(self.address)
        self.calls = 0
        """Places that are held or waited for."""
        self._totals: list[CallTotal] | None = None
        """Where they count as well. A list only while there is one."""
        self.on_trouble: list[Callable[[], None]] = []
        """Hear when dials begin to fail, and when that is over."""
        self.record: PoolRecord[PooledConnection] = PoolRecord(state.limits)
        self.peer_limit: int = UNLIMITED
        """How many streams the upstream has allowed last, on whichever connection."""
        self.keepalive_s = state.settings.upstream_keepalive_s
        """Doubled each time that the upstream has complained of `too_many_pings`."""
        self._line: deque[Waiting] = deque()
        self._connections = 0
        """All there are, pooled or not; `_dialling` of them are not established yet."""
        self._dialling = 0
        self._trouble: RpcError | None = None
        """Why the last dial failed, until one succeeds or nobody asks any more."""
        self._backoff = Backoff(state.rng)
        self._asked_at = -math.inf
        """When a call last found no connection with room."""
        self._warm: Warm | None = None
        """Keeps connections ready, if that is asked for."""
        self._wanted: dict[object, int] = {}
        """How many, by who has asked."""

    # ------------------------------------------------------- a place for a call

    def take_now(self) -> PooledConnection | None:
        """A place on the newest connection with room. None: `await take()`."""
        if self._line or self.state.nursery is None:
            return None
        conn = self.record.pick_at_once(self.state.now())
        if conn is not None:
            self.calls += 1
            if self._totals is not None:
                self._count(1)
            if self.state.hear_placed is not None:
                self.state.hear_placed(self.address)
        return conn

    def take_beyond_ms(self) -> PooledConnection | None:
        """A place on a connection that has as many calls as we allow, if its peer allows more. None: there is none.

        For the few calls of the proxy's own that must not wait behind others, as checks of health.
        """
        conn = self.record.pick_beyond_ms(self.state.now())
        if conn is not None:
            self.calls += 1
            if self._totals is not None:
                self._count(1)
            if self.state.hear_placed is not None:
                self.state.hear_placed(self.address)
        return conn

    @property
    def would_wait(self) -> bool:
        """Whether the next call that finds no room now would wait for the places of others, or be refused for them.

        Else a dial decides: one that it shares, or begins, or has failed already.
        """
        if self._trouble is not None:
            return not self._nothing_else_to_be_had()
        record = self.record
        shares = any(
            conn.phase is Phase.CONNECTING and conn.streams < record.limit_of(conn)
            for conn in record.with_room
        )
        return bool(self._line) or not (shares or self._may_dial)

    async def take(
        self, other_than: PooledConnection | None = None, *, is_patient: bool = True
    ) -> PooledConnection:
        """A place on a connection, dialled if need be; on `other_than` only if nothing else can be had.

        Waits and raises as `Pool.get_conn`. Who is not patient has somewhere else to go, and is told of a dial that has
        failed at once.
        """
        if other_than is None and (conn := self.take_now()) is not None:
            return conn
        self.calls += 1
        if self._totals is not None:
            self._count(1)
        try:
            conn = await self._take(other_than, is_patient)
        except BaseException:
            self.calls -= 1
            if self._totals is not None:
                self._count(-1)
            raise
        if self.state.hear_placed is not None:
            self.state.hear_placed(self.address)
        return conn

    async def _take(self, other_than: PooledConnection | None, is_patient: bool) -> PooledConnection:
        state = self.state
        if state.nursery is None:
            raise ConfigError("the pool is not open: use it inside `async with Pool(...) as pool:`")
        state.in_use.setdefault(self.key, self)
        self._asked_at = now = state.now()
        conn = None
        if not self._line:
            conn = self._pick(other_than)
            if conn is None and other_than is not None:
                conn = self._dial() or self._pick()
        if conn is not None and conn.phase is _READY:
            return conn
        caller = Waiting(now if is_patient else now - state.connect_wait_s)
        if conn is not None:
            caller.place(conn)
        else:
            self._stand_in_line(caller)
        if not caller.settled.is_set():
            tell(state.observer, "call_waits", self.address, max(len(self._line) - 1, 0))
        try:
            with trio.move_on_at(caller.since + state.connect_wait_s):
                await caller.settled.wait()
            if not caller.settled.is_set():
                if caller in self._line and self._nothing_else_to_be_had():
                    caller.fail(self._problem())
                    self._line.remove(caller)
                await caller.settled.wait()
        except BaseException:
            self._leave(caller)
            raise
        if caller.conn is None:
            assert caller.problem is not None
            tell(state.observer, "call_refused", self.address, caller.problem)
            raise caller.problem
        return caller.conn

    async def take_place(self, _context: object) -> PooledConnection:
        """`take`, as a client asks for it: here all calls are alike."""
        return await self.take()

    async def take_another(self, conn: PooledConnection) -> PooledConnection:
        """A place on another connection than `conn`, whose own is free for others meanwhile."""
        conn.streams -= 1
        self.record.refresh(conn)
        try:
            return await self.take(other_than=conn)
        finally:
            conn.streams += 1

    def give_back(self, conn: PooledConnection, *, failed: bool = False) -> None:
        """Take one place back."""
        self.calls -= 1
        if self._totals is not None:
            self._count(-1)
        if self._line and conn.streams and not (failed or conn.pooled) and self._is_fit(conn):
            # It would be closed, while somebody stands in line.
            self._line.popleft().place(conn)
            return
        if not self.record.release_at_once(conn) and self.record.release(
            conn, self.state.now(), failed=failed
        ):
            conn.end()
        if self._line:
            self.serve()

    def _is_fit(self, conn: PooledConnection) -> bool:
        """Whether the place of a call on it may be another's next."""
        record = self.record
        return (
            conn.phase is _READY
            and conn.streams <= record.limit_of(conn)
            and self.state.now() <= record.expires_at(conn)
        )

    def _pick(self, other_than: PooledConnection | None = None) -> PooledConnection | None:
        picked = self.record.pick(self.state.now(), other_than)
        for conn in picked.close:
            conn.end()
        return picked.connection

    def _leave(self, caller: Waiting) -> None:
        """A caller is cancelled, wherever it waits, or in the very moment in which it has got a connection."""
        conn = caller.conn
        if conn is not None:
            if caller in conn.waiting:
                conn.waiting.remove(caller)
            self.calls += 1  # `take` counts it as gone, too
            if self._totals is not None:
                self._count(1)
            self.give_back(conn)
        elif caller in self._line:
            self._line.remove(caller)

    # --------------------------------------------------------------- its calls

    def count_in(self, total: CallTotal) -> None:
        """Its calls, those it has and those to come, are among these until `count_out`."""
        total.calls += self.calls
        if self._totals is None:
            self._totals = []
        self._totals.append(total)

    def count_out(self, total: CallTotal) -> None:
        """Its calls are not among these any more. It was counted in."""
        total.calls -= self.calls
        assert self._totals is not None
        self._totals.remove(total)
        self._totals = self._totals or None

    def _count(self, calls: int) -> None:
        assert self._totals is not None
        for total in self._totals:
            total.calls += calls

    # ---------------------------------------------------------------- the line

    def _stand_in_line(self, caller: Waiting) -> None:
        line = self._line
        line.append(caller)
        self.serve()
        refusal = self._refusal()
        if refusal is not None:
            self._refuse(refusal)

    def _refusal(self) -> str | None:
        """Why the last of those in line may not wait there, if so."""
        state, count, others = self.state, self.record.count, len(self._line) - 1
        if state.max_waiting is None:
            return None  # `serve` has seen to it
        if state.is_full and others >= state.max_waiting:
            return self._all_in_use()
        to_come = 0 if self._trouble is None else (state.limits.size - count) * state.limits.ms
        if others >= state.max_waiting + max(to_come, 0):
            return (
                f"none of the {count} connections to {self.parsed} has room, and {others} calls wait already"
            )
        return None

    def _refuse(self, refusal: str) -> None:
        """There is one too many in line. A connection in doubt is better than none."""
        conn = self.record.pick_in_doubt()
        if conn is not None:
            self._line.popleft().place(conn)
        else:
            cause = "max_connections" if refusal == self._all_in_use() else "max_waiting"
            self._line.pop().fail(PoolExhausted(refusal, cause=cause))

    def _all_in_use(self) -> str:
        return (
            f"all {self.state.connections} connections to upstreams are in use, as many as may be (max_connections; "
            "the command's follows from the limit on open files)"
        )

    def serve(self) -> None:
        """Give those who stand in line what there is, first come first served."""
        if self._warm is not None:
            self._warm.look()
        line = self._line
        while line:
            conn = self._pick() or self._dial()
            if conn is None:
                break
            line.popleft().place(conn)
        if not line:
            return
        if self.state.nursery is None:
            while line:
                line.popleft().fail(UpstreamUnavailable("the pool is closed", cause="stopping"))
        elif self._trouble is not None:
            now = trio.current_time()
            if now >= self._backoff.retry_at:
                self._probe()
            if self._nothing_else_to_be_had():
                overdue = now - self.state.connect_wait_s
                while line and line[0].since <= overdue:
                    line.popleft().fail(self._problem())
        elif self.state.is_full and (self.state.max_waiting is None or self.record.may_grow):
            room = self.state.make_room(len(line))
            while self.state.max_waiting is None and len(line) > room:
                self._refuse(self._all_in_use())

    def _nothing_else_to_be_had(self) -> bool:
        """Whether those in line have but the next dial to wait for."""
        return self._trouble is not None and not (self.state.max_waiting is not None and self.record.count)

    def _problem(self) -> RpcError:
        """The error of a call that has waited for a dial long enough. Each call's own: what is raised is changed."""
        trouble = self._trouble
        assert trouble is not None
        pause = self._backoff.retry_at - trio.current_time()
        message = f"{trouble.message} (next try in {pause:.1f} s)" if pause > 0 else trouble.message
        if isinstance(trouble, UpstreamUnavailable):
            return UpstreamUnavailable(message, side=trouble.side, cause=trouble.cause)
        return RpcError(trouble.status, message, side=trouble.side, origin="proxy", cause=trouble.cause)

    # ----------------------------------------------------------------- dialling

    def _dial(self) -> PooledConnection | None:
        """Begin to dial, if that may be done now. The connection has one stream already, its first caller's."""
        if self.state.nursery is None or self._trouble is not None or not self._may_dial:
            return None
        conn = PooledConnection(self, trio.current_time(), streams=1)
        if self.record.may_grow:
            self.record.add(conn)
        self._start(conn)
        return conn

    def _probe(self) -> None:
        """Begin the next dial to an upstream in trouble, for whoever stands in line when it is done."""
        if not self._dialling and self._may_dial:
            self._start(PooledConnection(self, trio.current_time(), streams=0))

    @property
    def _may_dial(self) -> bool:
        return not self.state.is_full and (self.state.max_waiting is None or self.record.may_grow)

    def _start(self, conn: PooledConnection) -> None:
        assert self.state.nursery is not None
        self._connections += 1
        self._dialling += 1
        self.state.connections += 1
        tell(self.state.observer, "dial_started", self.address)
        self.state.nursery.start_soon(conn.run)

    def dialled(self, conn: PooledConnection, connection: Connection) -> None:
        """Those who share the dial get the connection, as many as the peer allows; the others are first in line."""
        record, now = self.record, trio.current_time()
        conn.peer_limit = connection.session.peer_max_concurrent_streams
        self.allows(conn.peer_limit)
        if not conn.peer_limit:
            trouble = UpstreamUnavailable(
                f"{self.parsed} allows no streams at present", cause="SETTINGS_MAX_CONCURRENT_STREAMS"
            )
            self._back_off(conn, trouble)
            tell(self.state.observer, "upstream_failed", self.address, trouble)
        tell(self.state.observer, "dial_succeeded", self.address, now - conn.created_at)
        tell(self.state.observer, "upstream_opened", self.address, connection.transport.tls_version)
        conn.connection, conn.created_at = connection, now
        self._dialling -= 1
        sharing, conn.waiting = conn.waiting, []
        limit = record.limit_of(conn)
        for caller in sharing[:limit]:
            caller.settled.set()
        for caller in reversed(sharing[limit:]):
            caller.conn = None
            self._line.appendleft(caller)
            if record.release(conn, now, failed=False):
                conn.end()
        if not sharing and not conn.pooled and limit:
            # A probe. Beyond `size` it is one caller's own, as any other.
            if record.may_grow:
                record.add(conn)
            elif self._line:
                conn.streams += 1
                self._line.popleft().place(conn)
        self.serve()
        if not conn.streams and not (conn.pooled and record.idle <= self.state.limits.idle):
            # The successor of one that is kept ready is worth more than that.
            surplus = conn if self._warm is None or not conn.pooled else record.unused or conn
            record.remove(surplus)
            surplus.end()

    def dial_failed(self, conn: PooledConnection, error: ProxyError) -> None:
        """The upstream cannot be reached, or something here is wanting."""
        duration_s = trio.current_time() - conn.created_at
        tell(self.state.observer, "dial_failed", self.address, duration_s, error)
        if not isinstance(error, RpcError):
            trouble = RpcError(
                Status.INTERNAL, error.message, side=error.side, origin="proxy", cause="proxy_fault"
            )
        else:
            trouble = error
        self._back_off(conn, trouble)
        self.dial_ended(conn, error)

    def dial_ended(self, conn: PooledConnection, error: ProxyError) -> None:
        """A dial has come to nothing; those who share it are first in line for the next one."""
        self._dialling -= 1
        self.record.remove(conn)
        conn.err = error
        sharing, conn.waiting = conn.waiting, []
        for caller in reversed(sharing):
            conn.streams -= 1
            caller.conn = None
            self._line.appendleft(caller)
        self.serve()
        nursery, now = self.state.nursery, trio.current_time()
        if (
            nursery is not None
            and self._trouble is not None
            and not self._dialling
            and now >= self._backoff.retry_at
        ):
            # Given up, and it was under way when the pause was over: nobody else would dial.
            nursery.start_soon(self._dial_again, self._backoff.retry_at)

    def _back_off(self, conn: PooledConnection, trouble: RpcError) -> None:
        """A dial has failed: see that the next one comes, in time."""
        began = self._trouble is None
        self._trouble = trouble
        if began:
            self._tell_trouble()
        nursery, backoff = self.state.nursery, self._backoff
        ours = trouble.side is Side.LOCAL
        if nursery is not None and backoff.failed(conn.created_at, trio.current_time(), ours=ours):
            nursery.start_soon(self._dial_again, backoff.retry_at)

    async def _dial_again(self, retry_at: float) -> None:
        """Dial when the pause is over, if somebody waits for it, or may come."""
        await trio.sleep_until(retry_at)
        trouble = self._trouble
        if trouble is None or self._backoff.retry_at != retry_at:
            return
        wanted = self._warm is not None or trio.current_time() <= self._asked_at + _DEMAND_S
        if self._line or (wanted and trouble.side is not Side.LOCAL):
            self._probe()
        if not self._dialling:
            self.forget_trouble()  # for all that is known; the next call will find out
            self.serve()
            self._forget_if_unused()

    def forget_trouble(self) -> None:
        """A dial has succeeded, or is about to be tried with as much hope as the first one."""
        was_in_trouble = self._trouble is not None
        self._trouble = None
        self._backoff.works()
        if was_in_trouble:
            self._tell_trouble()

    def _tell_trouble(self) -> None:
        for hear in self.on_trouble:
            hear()

    # --------------------------------------------------------------- kept ready

    def keep_ready(self, count: int, *, wanted_by: object = None) -> None:
        """Have so many connections there at any time, dialled before calls need them; 0: only for calls, as without.

        A successor is dialled before a connection comes to its ttl, as long as `size` leaves room for it. While the
        upstream is in trouble it is dialled without a call, too, and so is found when it is back. Holds until the pool
        closes. Of several who want some, each with its own `wanted_by`, the most count. Raises `ConfigError` if the
        pool is not open, or keeps less than that.
        """
        state, limits = self.state, self.state.limits
        if not 0 <= count <= min(limits.idle, limits.size):
            raise ConfigError(
                f"{count} connections cannot be kept ready where idle is {limits.idle} and size {limits.size}"
            )
        if count and state.nursery is None:
            raise ConfigError("the pool is not open: use it inside `async with Pool(...) as pool:`")
        self._wanted.pop(wanted_by, None)
        if count:
            self._wanted[wanted_by] = count
        count = max(self._wanted.values(), default=0)
        if self._warm is not None:
            self._warm.count = count
            self._warm.look()
        elif count:
            assert state.nursery is not None
            state.in_use.setdefault(self.key, self)
            self._warm = Warm(self, count, min(state.dial_timeout_s, limits.ttl_s / 2))
            state.nursery.start_soon(self._warm.run)

    def dial_spare(self) -> bool:
        """Begin to dial a connection that nobody waits for. False: not now."""
        if self.state.nursery is None or self._trouble is not None:
            return False
        if self.state.is_full or not self.record.may_grow:
            return False
        conn = PooledConnection(self, trio.current_time(), streams=0)
        self.record.add(conn)
        self._start(conn)
        return True

    def kept_ready_no_more(self) -> None:
        """Connections are for calls only, again."""
        self._warm = None
        self._wanted.clear()
        self._forget_if_unused()

    # -------------------------------------------------------------- connections

    def allows(self, limit: int) -> None:
        """The upstream allows so many streams on a connection; with none at all it is in trouble."""
        self.peer_limit = limit
        if limit:
            self.forget_trouble()

    def changed(self, conn: PooledConnection) -> None:
        """How many calls it takes has changed, or whether it takes any."""
        phase = conn.phase
        if phase is _READY:
            self.record.refresh(conn)
        elif phase is Phase.CLOSED:
            self.record.remove(conn)
        elif conn.pooled:
            self.record.retire(conn)
        self.serve()

    def retire(self, conn: PooledConnection) -> None:
        """It takes no more calls; others may want a new one for it."""
        if self.record.retire(conn):
            conn.end()
        self.serve()

    def expires_at(self, conn: PooledConnection) -> float:
        """The last moment at which it takes new streams."""
        return self.record.expires_at(conn)

    def let_go(self) -> None:
        """Nobody will ask for it soon: its connections end, each with its last call, and it is not dialled in vain."""
        self._asked_at = -math.inf
        for conn in (*self.record.with_room, *self.record.busy):
            if conn.phase is _READY:
                conn.drain(ConnectionGone("its address is not among those of the cluster any more"))
            elif conn.phase is Phase.CONNECTING and not conn.streams:
                conn.end()

    def give_up_unused(self) -> bool:
        """End a connection that nobody uses, so that others may have one. False: there is none."""
        unused = self.record.unused
        if unused is None:
            return False
        self.state.making_room.add(unused)
        self.record.remove(unused)
        unused.end()
        return True

    def ended(self, conn: PooledConnection) -> None:
        """It is no more."""
        self._connections -= 1
        self._forget_if_unused()
        self.state.connection_ended(conn)

    def _forget_if_unused(self) -> None:
        if (
            not self._connections
            and not self._line
            and self._trouble is None
            and self._warm is None
            # An upstream that has complained of PINGs would be asked as often again.
            and self.keepalive_s == self.state.settings.upstream_keepalive_s
        ):
            self.state.in_use.pop(self.key, None)

    # ------------------------------------------------------------------ for people

    @property
    def established(self) -> int:
        """Connections that are there, those beyond `size` included."""
        return self._connections - self._dialling

    @property
    def dialling(self) -> int:
        """Connections that are being made."""
        return self._dialling

    @property
    def trouble(self) -> RpcError | None:
        """Why the last dial failed, until one succeeds or nobody asks any more."""
        return self._trouble

    @property
    def waiting(self) -> int:
        """How many calls stand in line."""
        return len(self._line)

    def explain(self) -> list[str]:
        """Say of each connection, newest first, why the next call would or would not get it."""
        now, record = trio.current_time(), self.record
        lines = []
        for conn in [*reversed(record.with_room), *reversed(record.busy), *reversed(record.leaving)]:
            objection = record.objection(conn, now)
            verdict = "has room" if objection is None else objection.value
            lines.append(f"{verdict}: {conn.streams} of {record.limit_of(conn)} streams")
        if now < self._backoff.retry_at:
            lines.append(f"dialling pauses for {self._backoff.retry_at - now:.2f} s: {self._trouble}")
        if self._line:
            lines.append(f"calls that stand in line: {len(self._line)}")
        return lines

    def __repr__(self) -> str:
        return f"<Target {self.address}{'' if self.ssl_context is None else ' with TLS'}>"
