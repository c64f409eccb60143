"""One HTTP/2 connection on trio: a session, a transport that is read when there is something, and a writer.

    reads:  transport ──► session.receive ──► events ──► streams' sinks      (wait for nothing but the transport)
    writer: session.take_output ──► transport ──► credit to the sources      (never cancelled but to kill the link)

When and how it is written is `writer.py`'s subject, the orderly end `drain.py`'s, why it ends `endings.py`'s, what that
means for calls `failures.py`'s, and which calls end when memory is short `stalled.py`'s. What is left here is one life,
from its first byte to its farewell.

Invariants: state changes are synchronous, so there are no locks; when the connection ends, every stream on it hears of
it exactly once, and nothing of it stays behind.
"""

import contextlib
import enum
import math
from collections.abc import Callable
from typing import assert_never

import trio
import trio.lowlevel

from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.errors import ConnectionFailed, ProxyStopping, Side
from rawgrpc_proxy.grpc.status import status_fields
from rawgrpc_proxy.http2.buffered import Buffered
from rawgrpc_proxy.http2.events import (
    ConnectionEnded,
    DataReceived,
    GoAwayReceived,
    LimitReached,
    PingAcknowledged,
    RareEvent,
    RequestReceived,
    ResponseReceived,
    SettingsReceived,
    StreamReset,
    TrailersReceived,
)
from rawgrpc_proxy.http2.h2_session import H2Session
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.http2.relay_session import RelaySession
from rawgrpc_proxy.http2.session import Session
from rawgrpc_proxy.net.drain import FIRST_PING_TIMEOUT_S, Drain
from rawgrpc_proxy.net.endings import closed_by_us, failure_of, goaway, gone, too_slow
from rawgrpc_proxy.net.failures import lost_error, never_sent_error, reset_error
from rawgrpc_proxy.net.late_taps import Onlooker, current_late_taps
from rawgrpc_proxy.net.memory_guard import current_memory_guard
from rawgrpc_proxy.net.poller import Then
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.net.transport import Transport
from rawgrpc_proxy.net.turn import current_turn
from rawgrpc_proxy.net.writer import FAREWELL_TIMEOUT_S, Writer

_ALIVE_PING = b"alive?  "
_STREAMS_ENDED_A_TURN = 64
_STEPS_A_TURN = 64
"""So many frames are acted on before others have their turn: a third of a millisecond's work if they are small and
serve nothing, two if they are calls. Bulk comes in fewer."""


class ConnectionState(enum.Enum):
    """`OPEN` takes new streams; `DRAINING` lets those it has finish (GOAWAY seen or sent); `CLOSED` is over."""

    OPEN = enum.auto()
    DRAINING = enum.auto()
    CLOSED = enum.auto()


_OPEN, _DRAINING, _CLOSED = ConnectionState  # looked up once, not for every call
_STOP, _WAIT, _AGAIN = Then


def make_session(settings: Http2Settings, *, client_side: bool, buffered: Buffered | None = None) -> Session:
    """The session of the engine that the settings name."""
    match settings.engine:
        case "h2":
            engine: type[Session] = H2Session
        case "relay":
            engine = RelaySession
        case _:
            assert_never(settings.engine)
    return engine(settings, client_side=client_side, shorten=status_fields, buffered=buffered)


class Connection:
    """A connection to a peer. Make it, then `run` it in a task of its own.

    `on_request` (server side) is called with each stream the peer opens, and `on_read` at the end of each read;
    `on_refused` with id and reason of one that was malformed or too many; `on_limit` with the setting that limits the
    peer, when it has run into it, and what becomes of it. `on_change` is called when the room for streams may have
    changed: SETTINGS, GOAWAY, a closed stream, doubt (`ask`) and its end, the end. None of them may wait or raise.
    """

    __slots__ = (
        "_drain",
        "_failure",
        "_fault",
        "_handshake_by",
        "_late_taps",
        "_memory_guard",
        "_on_change",
        "_on_limit",
        "_on_read",
        "_on_refused",
        "_on_request",
        "_onlooker",
        "_peer_is_gone",
        "_reading_resumes",
        "_scope",
        "_settings",
        "_transport",
        "_unfinished",
        "_writer",
        "account",
        "context",
        "error",
        "heard_at",
        "in_doubt",
        "opened_at",
        "peer",
        "ready",
        "session",
        "side",
        "state",
        "streams",
        "tls_peer",
        "touch",
        "turn",
    )

    def __init__(
        self,
        transport: Transport,
        settings: Http2Settings,
        *,
        client_side: bool,
        on_request: Callable[[Stream], None] | None = None,
        on_read: Callable[[], None] | None = None,
        on_refused: Callable[[StreamReset], None] | None = None,
        on_limit: Callable[[str, str], None] | None = None,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self.peer = transport.peer
        self.tls_peer = transport.tls_peer
        self.side = Side.UPSTREAM if client_side else Side.DOWNSTREAM
        self.state = _OPEN
        self.streams: dict[int, Stream] = {}
        self.error: ConnectionFailed | None = None
        """Why the connection ended or drains, once it does."""
        self._memory_guard = current_memory_guard()
        self.session = make_session(settings, client_side=client_side, buffered=self._memory_guard.buffered)
        self.account = self.session.account
        self.ready = trio.Event()
        """Set when the peer's SETTINGS are in force, or the connection has ended before."""
        self._late_taps = current_late_taps()
        self._onlooker: Onlooker | None = None
        self._transport = transport
        transport.mind_lost_bytes(settings.send_timeout_s)
        self._writer = Writer(
            self.session,
            transport,
            send_timeout_s=settings.send_timeout_s,
            on_written=self._written,
            on_failed=self._write_failed,
        )
        self.touch: Callable[[], None] = self._writer.touch
        """There is output: see that it is written at the end of this turn."""
        self._settings = settings
        self._on_request = on_request
        self._on_read = on_read
        self._on_refused = on_refused
        self._on_limit = on_limit
        self._on_change = on_change
        self.turn = current_turn()
        self.heard_at = self.opened_at = trio.current_time()
        """When the peer has last sent anything."""
        self.in_doubt = False
        """The peer was asked for a sign of life (`ask`), and has not answered."""
        self._scope = trio.CancelScope()
        self._unfinished = trio.CancelScope()
        """Its deadline is for what the peer has begun: its preface and SETTINGS, the acknowledgement of ours, or a
        header block."""
        self._handshake_by = math.inf
        self._failure: ConnectionFailed | None = None
        """How the peer has broken the connection's rules, if it has."""
        self._fault: BaseException | None = None
        """What a write has raised that is no error of the socket."""
        self._peer_is_gone = False
        self._reading_resumes: trio.Event | None = None
        self._drain: Drain | None = None
        self.context: object = None
        """For whoever answers the streams: what the last one was asked in, if the next may be asked in the same."""

    # --------------------------------------------------------------- commands

    def open_stream(self, headers: Headers, end_stream: bool = False) -> Stream:
        """Open a stream with these request headers. The caller has looked at `has_room`."""
        stream = Stream(self, self.session.open_stream(headers, end_stream), headers)
        self.streams[stream.id] = stream
        self.touch()
        return stream

    @property
    def has_room(self) -> bool:
        """Whether a stream may be opened here now."""
        return self.state is _OPEN and self.session.room

    def credit(self, stream_id: int, size: int) -> None:
        """Let the peer send `size` bytes more on this stream."""
        if self.session.credit(stream_id, size):
            self.touch()

    def ask(self) -> None:
        """Ask the peer for a sign of life, with a PING. Until the answer the connection is `in_doubt`."""
        self.session.ping(_ALIVE_PING)
        self.touch()
        self.in_doubt = True
        self._changed()

    def trust(self) -> None:
        """The peer has given a sign of life."""
        if self.in_doubt:
            self.in_doubt = False
            self._changed()

    def give_credit(self) -> None:
        """Give the peer what was withheld while the process was short of memory, as far as it may be given."""
        if self.session.credit_connection():
            self.touch()

    def tell_limit(self, limit: str, detail: str) -> None:
        """The peer has run into `limit`."""
        if self._on_limit is not None:
            self._on_limit(limit, detail)

    def close(self, error: ConnectionFailed | None = None) -> None:
        """End the connection now. Its streams fail with `error`; what is queued gets one last try."""
        if self.state is _CLOSED:
            return
        self.error = self.error or error or closed_by_us()
        # Until `run` has come to its end, nobody may open a stream that could only fail.
        self.state = _DRAINING
        self._end()

    def _end(self) -> None:
        """Have `run` end, when what is being written is with the socket; it has a second for that."""
        self._scope.cancel()
        self._writer.end()

    async def drain(
        self,
        grace_s: float,
        error: ProxyStopping | None = None,
        answer_within_s: float = FIRST_PING_TIMEOUT_S,
    ) -> None:
        """Take no more streams, let the open ones finish for up to `grace_s` seconds, then close.

        For the server side. `error` says why, if it is not that the proxy stops; a peer that says nothing within
        `answer_within_s` has no part in it. Cancellation closes at once. A second call while the first one runs returns
        at once, and may only shorten its grace.
        """
        if self.state is _CLOSED:
            return
        if self._drain is not None:
            self._drain.shorten(grace_s)
            return
        self.state = _DRAINING
        self._drain = Drain(self, grace_s, answer_within_s=answer_within_s)
        try:
            await self._drain.run()
        finally:
            self.close(error or ProxyStopping())

    @property
    def has_output(self) -> bool:
        """Whether anything waits for the socket."""
        return self._writer.has_output

    @property
    def socket_is_full(self) -> bool:
        """Whether a write waits for the socket, which takes nothing at present."""
        return self._writer.writing

    def look_on(self, onlooker: Onlooker | None) -> None:
        """From now on this one sees what is read and written; None: nobody."""
        self._onlooker = self._writer.onlooker = onlooker

    @property
    def transport(self) -> Transport:
        """The link, for those who look on."""
        return self._transport

    # ------------------------------------------------------------------- life

    async def run(self) -> None:
        """Run the connection to its end; `error` tells why it ended, a fault of the proxy's own included.

        Raises cancellation, and what only ends a program (KeyboardInterrupt). One connection's trouble stays here.
        """
        failure: ConnectionFailed | None = None
        self._memory_guard.open(self, self._settings.max_buffered_bytes)
        self._late_taps.open(self)
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._writer.run)
                    if self.session.client_side:
                        self.session.start()
                        self.touch()
                    try:
                        failure = await self._read_loop()
                    finally:
                        # Until the writer has ended too, nobody may open a stream that could only fail.
                        self.state = _DRAINING
                        self._end()
            if self._fault is not None:
                raise self._fault
        except Exception as fault:  # noqa: BLE001  # a fault of ours must not end the connections of others
            failure = failure_of(fault, client_side=self.session.client_side)
        except BaseException as fault:
            failure = failure or failure_of(fault, client_side=self.session.client_side)
            raise
        finally:
            self.error = self.error or failure or closed_by_us()
            self.error.side = self.side
            await self._end_streams(self.error)
            if isinstance(self.error, ProxyStopping):
                with trio.CancelScope(shield=True):
                    # Calls that are in a task are cancelled by now, and say goodbye to their callers.
                    for _ in range(2):
                        await trio.lowlevel.checkpoint()
            try:
                await self._farewell()
            finally:
                self.session.abandon()
                self._memory_guard.close(self)
                self._late_taps.close(self)
                self._on_change = self._on_limit = None  # opens the circle that it is in with who listens

    async def _read_loop(self) -> ConnectionFailed:
        """Read until the connection ends, and answer why."""
        self._handshake_by = trio.current_time() + self._settings.handshake_timeout_s
        self._unfinished.deadline = self._handshake_by
        with self._unfinished:
            try:
                await self._transport.receive_each(self._heard)
                while self._reading_resumes is not None:
                    # Level-triggered: what has come meanwhile is still there.
                    await self._reading_resumes.wait()
                    self._reading_resumes = None
                    await self._transport.receive_each(self._heard, goes_on=self.session.holds_back)
            except OSError as error:
                self._peer_is_gone = self._writer.closed = True  # or we have closed the transport
                return gone(self.session, self._transport.tls_version, error)
            return self._failure or gone(self.session, self._transport.tls_version)
        return too_slow(self.session, self._settings.handshake_timeout_s)

    def _heard(self, data: bytes | None) -> Then:
        """Act on what the peer has sent, within a turn: as much as is one connection's share of it, and say so.

        No bytes: the peer is gone. None: go on with what was held back.
        """
        if data is None:
            data = b""
        elif not data:
            self._peer_is_gone = self._writer.closed = True
            self.state = _DRAINING
            return _STOP
        elif self._onlooker is not None:
            self._onlooker.received(data)
        session, streams = self.session, self.streams
        self.heard_at = now = trio.current_time()
        for event in session.receive(data, now, _STEPS_A_TURN):
            # Those of every call come first, and not in the match: it looks at their fields one by one.
            # By their types, which takes a third of the time of `isinstance`.
            if type(event) is DataReceived:
                streams[event.stream_id].sink.data(event.data, event.credit, event.end_stream)
            elif type(event) is ResponseReceived:
                streams[event.stream_id].sink.response(event.headers, event.end_stream)
            elif type(event) is TrailersReceived:
                streams[event.stream_id].sink.trailers(event.headers)
            elif type(event) is RequestReceived:
                self._request(event)
            else:
                self._dispatch(event)
        if self._on_read is not None:
            self._on_read()
        if session.wants_output:
            self.touch()
        self._report_closed()
        if self._failure is not None:
            self.state = _DRAINING
            return _STOP
        if session.block_since is not None or self._unfinished.deadline < math.inf:
            self._mind_the_unfinished()
        if self._writer.writing and session.output.owed_bytes > self._settings.max_owed_bytes:
            # It asks, and does not read the answers.
            self._reading_resumes = trio.Event()
            return _STOP
        return _AGAIN if session.holds_back else _WAIT

    def _mind_the_unfinished(self) -> None:
        session = self.session
        if session.peer_settings_seen:
            self.ready.set()
        due = math.inf if session.settings_acknowledged else self._handshake_by
        if session.block_since is not None:
            due = min(due, session.block_since + self._settings.handshake_timeout_s)
        self._unfinished.deadline = due

    @property
    def reading_pauses(self) -> bool:
        """Whether nothing is read at present, since too much of what the peer is owed waits for its socket."""
        return self._reading_resumes is not None

    def _request(self, event: RequestReceived) -> None:
        stream = Stream(self, event.stream_id, event.headers)
        stream.oversized = event.oversized
        stream.inbox.ended = stream.ended_by_headers = event.end_stream
        self.streams[event.stream_id] = stream
        if self._on_request is not None:
            self._on_request(stream)

    def _dispatch(self, event: RareEvent) -> None:
        match event:
            case StreamReset():
                self._stream_reset(event)
            case SettingsReceived():
                self._changed()
            case PingAcknowledged(opaque) if opaque == _ALIVE_PING:
                self.trust()
            case PingAcknowledged(opaque):
                if self._drain is not None:
                    self._drain.ping_answered(opaque)
            case GoAwayReceived(_, code, debug):
                self._peer_goes_away(code, debug)
            case LimitReached(limit, detail):
                self.tell_limit(limit, detail)
            case ConnectionEnded(error):
                self._failure = error
            case _:
                assert_never(event)

    def _stream_reset(self, event: StreamReset) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            who = self.side if event.by_peer else Side.LOCAL
            cause = "" if event.goaway is None else goaway("", event.goaway).cause
            stream.sink.failed(reset_error(event.error_code, who, event.reason, cause))
        elif self._on_refused is not None:
            self._on_refused(event)

    def _peer_goes_away(self, code: int, debug: bytes) -> None:
        if self.state is _OPEN and self.side is Side.UPSTREAM:
            self.state = _DRAINING
            text = debug.decode("utf-8", "replace")
            self.error = goaway(text, code)
            self._changed()
            if not self.streams:
                self._end()

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()

    def _report_closed(self) -> None:
        if self._drain is not None:
            self._drain.look()
        if not self.session.output.closed:
            return
        closed = self.session.take_closed()
        for stream_id in closed:
            stream = self.streams.pop(stream_id, None)
            if stream is not None:
                stream.sink.closed()
        self._changed()
        if not self.streams and self.state is _DRAINING and self.side is Side.UPSTREAM:
            self._end()

    async def _end_streams(self, error: ConnectionFailed) -> None:
        """Tell all of them, some at a time, so that others have their turn between. Not cancelled."""
        self.state = _CLOSED
        self._writer.closed = True
        self.ready.set()
        if self._drain is not None:
            self._drain.connection_ended()
        streams = list(self.streams.values())
        self.streams.clear()
        for number, stream in enumerate(streams, 1):
            if number % _STREAMS_ENDED_A_TURN == 0:
                with trio.CancelScope(shield=True):
                    await trio.lowlevel.checkpoint()
            # One whose headers are here still nobody will ever get.
            untold = self._peer_is_gone and self.session.client_side and stream.id > self._writer.sent_up_to
            failure = never_sent_error if untold else lost_error
            stream.sink.failed(failure(error, self.peer, self.side))
            stream.sink.closed()
        self._changed()

    def _written(self) -> None:
        self._report_closed()
        if (
            self._reading_resumes is not None
            and self.session.output.owed_bytes <= self._settings.max_owed_bytes
            and not self._writer.writing
        ):
            self._reading_resumes.set()

    def _write_failed(self, fault: BaseException) -> None:
        if isinstance(fault, OSError):
            fault = gone(self.session, self._transport.tls_version, fault)
        if isinstance(fault, ConnectionFailed):
            self.close(fault)
        else:
            self._fault = fault
            self.close(failure_of(fault, client_side=self.session.client_side))

    async def _farewell(self) -> None:
        """Say why, if the peer still listens, and close."""
        try:
            if not (self._writer.cut_short or self._peer_is_gone):
                with trio.CancelScope(shield=True, deadline=trio.current_time() + FAREWELL_TIMEOUT_S):
                    if isinstance(self.error, ConnectionFailed) and not self.session.ended:
                        self.session.fail(self.error)
                    with contextlib.suppress(OSError):
                        await self._writer.write_the_last()
                        if self.error is not None and self.error.error_code:
                            await self._transport.linger()
        finally:
            with trio.CancelScope(shield=True):
                await self._transport.aclose()
            self._writer.forget_owner()
