"""`PooledConnection`: a connection to an upstream that calls share, from its dial to its end.

    dial ──► greeted (its SETTINGS are here) ──► takes calls ──► past its ttl, or draining ──► over with its last call

What it does not do: decide who gets a place, and whether it is kept (`target.py`, which owns it). The invariant:
whatever goes wrong with a connection stays with it and its calls.
"""

import contextlib
import math
from functools import partial
from typing import Any, Protocol

import attrs
import trio

from rawgrpc_proxy.errors import (
    ConnectionGone,
    ProxyError,
    ProxyFault,
    RpcError,
    Side,
    UpstreamUnavailable,
    alone,
)
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.connection import Connection, ConnectionState
from rawgrpc_proxy.net.dial import dial
from rawgrpc_proxy.net.keepalive import Keepalive, pinged_too_often
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.net.tapped import looked_into
from rawgrpc_proxy.net.tls import TlsContext
from rawgrpc_proxy.net.transport import Transport
from rawgrpc_proxy.observe.tell import tell
from rawgrpc_proxy.upstream.choice import Phase
from rawgrpc_proxy.upstream.state import PoolState

_OPEN, _READY = ConnectionState.OPEN, Phase.READY  # looked up once, not for every call
_LAST_STREAM_ID = 2**31 - 1  # RFC 9113 §5.1.1


class Owner(Protocol):
    """The target of a connection, which hears how it fares."""

    address: str
    parsed: Address
    ssl_context: TlsContext | None
    server_name: str | None
    peer_limit: int
    keepalive_s: float
    state: PoolState[Any]

    def give_back(self, conn: "PooledConnection", *, failed: bool) -> None:
        """Take one place back."""

    async def take_another(self, conn: "PooledConnection") -> "PooledConnection":
        """A place on another connection, if that can be had."""

    def retire(self, conn: "PooledConnection") -> None:
        """It takes no more calls."""

    def dialled(self, conn: "PooledConnection", connection: Connection) -> None:
        """The dial has succeeded."""

    def dial_failed(self, conn: "PooledConnection", error: ProxyError) -> None:
        """It could not be had."""

    def dial_ended(self, conn: "PooledConnection", error: ProxyError) -> None:
        """Nobody wants it any more."""

    def allows(self, limit: int) -> None:
        """The upstream allows so many streams on a connection."""

    def changed(self, conn: "PooledConnection") -> None:
        """How many calls it takes has changed, or whether it takes any."""

    def expires_at(self, conn: "PooledConnection") -> float:
        """The last moment at which it takes new streams."""

    def ended(self, conn: "PooledConnection") -> None:
        """It is no more."""


@attrs.define(eq=False)
class Waiting:
    """A call that has to wait for its place."""

    since: float
    conn: "PooledConnection | None" = None
    """The connection it has a place on; None while it stands in line, and if it gets none."""
    problem: RpcError | None = None
    settled: trio.Event = attrs.field(factory=trio.Event)

    def place(self, conn: "PooledConnection") -> None:
        """Its place is on `conn`, which it gets now or once that is dialled."""
        self.conn = conn
        if conn.phase is Phase.CONNECTING:
            conn.waiting.append(self)
        else:
            self.settled.set()

    def fail(self, problem: RpcError) -> None:
        """There is none for it."""
        self.conn, self.problem = None, problem
        self.settled.set()


class PooledConnection:
    """A connection to an upstream, shared by up to `ms` calls, which hold a place each."""

    __slots__ = (
        "_cut_off",
        "_keepalive_s",
        "_scope",
        "connection",
        "created_at",
        "err",
        "in_doubt",
        "owner",
        "peer_limit",
        "pooled",
        "streams",
        "waiting",
    )

    def __init__(self, owner: Owner, created_at: float, streams: int) -> None:
        self.owner = owner
        self.streams = streams
        """Calls that hold a place now."""
        self.pooled = False
        self.created_at = created_at
        """When the dial began; from when it succeeds on, that moment."""
        self.err: ProxyError | None = None
        """Why the connection failed or drains, if it does."""
        self.peer_limit: int = max(1, owner.peer_limit)
        """The upstream's SETTINGS_MAX_CONCURRENT_STREAMS; before they have come, what it said last."""
        self.in_doubt = False
        """The upstream owes the answer to a PING: until it comes there are no new calls here."""
        self.connection: Connection | None = None
        """Once it is there."""
        self.waiting: list[Waiting] = []
        """Callers with a place on it, for whom it is dialled."""
        self._scope = trio.CancelScope()
        self._keepalive_s = owner.keepalive_s
        """How often the peer is asked for a sign of life."""
        self._cut_off = False
        """Calls held it still when it had ended."""

    @property
    def address(self) -> str:
        """The address it leads to, as it was given to the pool."""
        return self.owner.address

    @property
    def phase(self) -> Phase:
        """Where it is in its life."""
        if self.connection is None:
            return Phase.CONNECTING if self.err is None else Phase.CLOSED
        state = self.connection.state
        if state is _OPEN:
            return _READY
        return Phase.DRAINING if state is ConnectionState.DRAINING else Phase.CLOSED

    # -------------------------------------------------------- for one of its calls

    @property
    def is_tls(self) -> bool:
        """Whether it speaks TLS."""
        return self.owner.ssl_context is not None

    @property
    def has_room(self) -> bool:
        """Whether a stream may be opened on it now."""
        connection = self.connection
        return connection is not None and connection.state is _OPEN and connection.session.room

    @property
    def peer_max_header_list_bytes(self) -> int:
        """The longest header list the upstream says it takes, as RFC 9113 §6.5.2 counts it."""
        assert self.connection is not None  # no caller gets it before
        return self.connection.session.peer_max_header_list_bytes

    def open_stream(self, headers: Headers, end_stream: bool = False) -> Stream:
        """Open a stream with these request headers, at once, in a place that the caller holds.

        Raises `UpstreamUnavailable` if the connection has failed, drains, or its peer allows no more by now.
        """
        connection = self.connection
        if connection is None or connection.state is not _OPEN or not connection.session.room:
            raise UpstreamUnavailable(
                f"the connection to {self.address} takes no calls: {self.err or 'full'}"
            )
        stream = connection.open_stream(headers, end_stream)
        if stream.id >= _LAST_STREAM_ID:
            self.drain(ConnectionGone("its stream ids are used up"))
        return stream

    async def again(self) -> "PooledConnection":
        """A place on another connection of the target: what a retry asks for. Waits and raises as `get_conn`.

        It is on this one only if no other has room and none may be dialled. The call's stream here must be over. Its
        place here has to be given back all the same, but while it waits that is free for others: they may be the ones
        who stand in line before it.
        """
        return await self.owner.take_another(self)

    def ended(self, _error: RpcError | None) -> None:
        """How the call in one place ended: whoever wants to know has another kind of place."""

    def give_back(self) -> None:
        """Give one place back."""
        self.owner.give_back(self, failed=self.err is not None)

    def give_back_soon(self) -> None:
        """The same from the garbage collector: in any thread, and in the middle of anything."""
        token = self.owner.state.token
        if token is not None:
            with contextlib.suppress(trio.RunFinishedError, OSError):  # OSError: it is just finishing
                token.run_sync_soon(self.give_back)

    # ------------------------------------------------------------------ its life

    async def run(self) -> None:
        """Dial, take calls until it is past its ttl, and see it to its end. The owner hears what becomes of it."""
        owner = self.owner
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    owner.dialled(self, await self._connect(nursery))
                    # "Past its ttl" is strict.
                    await trio.sleep_until(math.nextafter(owner.expires_at(self), math.inf))
                    owner.retire(self)
        except BaseException as raised:  # noqa: BLE001  # of this connection alone; what is not ours goes on
            others = self._failed(raised)
            if others is not None:
                raise others from None
        finally:
            if self.phase is Phase.CONNECTING:
                owner.dial_ended(self, UpstreamUnavailable("the pool is closed", cause="stopping"))
            owner.ended(self)

    def end(self) -> None:
        """Nobody wants it any more: close it, or give up the dial."""
        if self.connection is not None:
            self._cut_off = self.connection.state is ConnectionState.CLOSED
            self.connection.close()
        else:
            self._scope.cancel()

    def drain(self, error: ProxyError) -> None:
        """Take no more calls, and close with the last one."""
        self.err = self.err or error
        if self.connection is not None and self.connection.state is _OPEN:
            self.connection.state = ConnectionState.DRAINING
            self.owner.retire(self)

    async def _connect(self, nursery: trio.Nursery) -> Connection:
        """Dial, and greet whoever answers. What is tried on the way lives in `nursery`, and is closed."""
        owner, state = self.owner, self.owner.state
        tried: list[Connection] = []
        chosen: Connection | None = None

        async def greet(transport: Transport) -> Connection:
            connection = Connection(
                looked_into(transport, state.tap, state.wrap, Side.UPSTREAM, nursery),
                state.settings,
                client_side=True,
                on_limit=partial(tell, state.observer, "limit_reached", self.address),
                on_change=lambda: self._changed(connection),
            )
            tried.append(connection)
            nursery.start_soon(self._run_connection, connection)
            # The first SETTINGS tell how many streams the peer allows, and that it speaks HTTP/2 at all.
            await connection.ready.wait()
            self._check_open(connection)
            return connection

        try:
            chosen = await dial(
                owner.parsed,
                ssl_context=owner.ssl_context,
                server_name=owner.server_name,
                timeout_s=state.dial_timeout_s,
                greet=greet,
                loop_guard=state.loop_guard,
                on_handshake=self._handshake_over if owner.ssl_context is not None else None,
                connect=state.connect,
            )
            self._check_open(chosen)
        finally:
            for connection in tried:
                if connection is not chosen:
                    connection.close()
        return chosen

    def _handshake_over(self, duration_s: float, error: Exception | None) -> None:
        observer = self.owner.state.observer
        if error is None:
            tell(observer, "upstream_tls_done", self.address, duration_s)
        else:
            tell(observer, "upstream_tls_failed", self.address, duration_s, error)

    def _check_open(self, connection: Connection) -> None:
        if isinstance(connection.error, ProxyFault):
            raise connection.error
        if connection.state is not _OPEN:
            cause = "connect" if connection.error is None else connection.error.cause
            raise UpstreamUnavailable(f"{self.owner.parsed}: {connection.error}", cause=cause)

    async def _run_connection(self, connection: Connection) -> None:
        """Run it to its end, whatever that is, and let the observer hear if it was none in good order."""
        owner, state = self.owner, self.owner.state
        assert state.timers is not None
        interval_s = self._keepalive_s = owner.keepalive_s
        keepalive = Keepalive(
            connection,
            state.timers.add,
            interval_s=interval_s,
            timeout_s=state.settings.keepalive_timeout_s,
        )
        try:
            await connection.run()
        except BaseException as raised:  # noqa: BLE001  # as in `run`
            faults, others = _ours(raised)
            if faults is not None:
                connection.error = ProxyFault(faults, side=Side.UPSTREAM)
            if others is not None:
                raise others from None
        finally:
            keepalive.stop()
            if self.connection is connection:
                tell(
                    state.observer,
                    "upstream_closed",
                    self.address,
                    connection.error,
                    trio.current_time() - self.created_at,
                    connection.session.streams_opened,
                )
        error = connection.error
        if self.connection is connection:
            assert error is not None
            orderly = isinstance(error, ConnectionGone) and not error.error_code
            if not orderly or self._cut_off or self.streams:
                tell(state.observer, "upstream_failed", self.address, error)
            self._scope.cancel()

    def _failed(self, raised: BaseException) -> BaseException | None:
        """Take what was raised by a dial, or by a connection; answer what is none of this connection's faults."""
        fault, others = _ours(raised)
        if fault is not None:
            error = fault if isinstance(fault, ProxyError) else ProxyFault(fault, side=Side.LOCAL)
            if self.phase is Phase.CONNECTING:
                self.owner.dial_failed(self, error)
            tell(self.owner.state.observer, "upstream_failed", self.address, error)
        return others

    def _changed(self, connection: Connection) -> None:
        """SETTINGS, GOAWAY, a closed stream, a PING or its answer, or the end."""
        if self.connection is not connection:
            return  # while it is dialled, `_connect` looks
        if connection.state is _OPEN:
            limit = connection.session.peer_max_concurrent_streams
            if limit == self.peer_limit and connection.in_doubt == self.in_doubt:
                return
            self.in_doubt = connection.in_doubt
            if limit != self.peer_limit:
                self.peer_limit = limit
                self.owner.allows(limit)
        else:
            error = connection.error
            if error is not None and pinged_too_often(error):
                # Before a call can dial the next one. Of what this one had: others may be told so at the same time.
                self.owner.keepalive_s = max(self.owner.keepalive_s, 2 * self._keepalive_s)
            self.err = self.err or error
        self.owner.changed(self)

    def __repr__(self) -> str:
        return f"<connection to {self.address} {self.phase.value}, {self.streams} streams>"


def _ours(raised: BaseException) -> tuple[Exception | None, BaseException | None]:
    """What of this was a fault of one connection, and what was not: cancellation, Ctrl-C."""
    if isinstance(raised, Exception):
        fault: Exception | None = raised
        others: BaseException | None = None
    elif isinstance(raised, BaseExceptionGroup):
        fault, others = raised.split(Exception)
    else:
        return None, raised
    return None if fault is None else alone(fault), others
