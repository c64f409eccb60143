"""The calls of a server, each from its request to its one end.

What it does not do: speak HTTP/2 (the connection does), or forward (a handler does).
The invariants: a call's trouble never leaves it; every error of a call becomes a response here and nowhere else; every
call ends in exactly one record.
"""

import contextvars
import inspect
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import attrs
import trio

from rawgrpc_proxy.call import Call, CallContext, Handler, ObservedContext
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import DeadlineExceeded, NoRoute, RpcError, Side
from rawgrpc_proxy.grpc.path import malformed, shortened
from rawgrpc_proxy.grpc.status_origin import StatusOrigin
from rawgrpc_proxy.http2.headers import HeaderList
from rawgrpc_proxy.net.stream import Carrier, Stream
from rawgrpc_proxy.net.timers import Timer, Timers
from rawgrpc_proxy.net.turn import current_turn
from rawgrpc_proxy.observe.describe import describe, shown
from rawgrpc_proxy.observe.flags import flag_of
from rawgrpc_proxy.observe.observer import ServerObserver, wanted_by
from rawgrpc_proxy.observe.record import CallExtras, CallRecord
from rawgrpc_proxy.observe.tell import hearing, tell
from rawgrpc_proxy.observe.tracing import Tracing
from rawgrpc_proxy.proxy.forwarding import Forwarding
from rawgrpc_proxy.proxy.transparent import TransparentHandler
from rawgrpc_proxy.server.request import Asked
from rawgrpc_proxy.server.runners import CallRunners, is_innermost
from rawgrpc_proxy.stopping import Stopping

_BEGUN_A_READ = 32
"""More calls than this in one read, and the others get their turn before the rest begins."""
_VAIN = 64
_EARNED = 8
_PAUSE_S = 0.002
"""When so many calls of a connection were given up without any answer, of which each answered one makes up for eight,
its next calls begin that much later. For proxies that lead to each other pass a call around, and a cancel that follows
it just as fast never gets there. Callers who cancel now and then are far from this, and where nothing is answered a
pause hurts nobody."""

Step = Callable[[], Awaitable[Forwarding | None]]
"""What may have to wait. Answers the forwarding that goes on without a task; None when the call is over."""


@attrs.frozen(kw_only=True)
class Answering:
    """What the calls of a server are answered by, and who is told of them."""

    handlers: Mapping[str, Handler]
    """By method, `/package.Service/Method`."""
    unknown_service_handler: Handler | None
    """For all other methods."""
    observer: ServerObserver | None
    stopping: Stopping
    tracing: Tracing | None = None
    status_origin: StatusOrigin | None = None


class Calls:
    """Answers the calls of any number of connections, in tasks of `nursery` where they need one."""

    __slots__ = (
        "_context",
        "_counts_messages",
        "_deadlines",
        "_ended",
        "_fresh",
        "_given_up",
        "_hear_begun",
        "_hear_ended",
        "_hear_response",
        "_makes_extras",
        "_notes_routes",
        "_nursery",
        "_observer",
        "_runners",
        "_stopping",
        "_timers",
        "_tracing",
        "_turn",
        "answering",
        "in_steps",
        "call_at",
    )

    def __init__(self, nursery: trio.Nursery, answering: Answering) -> None:
        self.answering = answering
        self._nursery = nursery
        self._observer = answering.observer
        wants = wanted_by(self._observer)
        self._makes_extras = "extras" in wants
        self._notes_routes = "routes" in wants
        self._hear_begun = hearing(answering.observer, "call_begun")
        self._hear_response = hearing(answering.observer, "response_begun")
        if "first_byte" in wants:
            self._hear_response = _timed(self._hear_response)
        self._hear_ended = hearing(answering.observer, "calls_ended")
        self._ended: list[CallRecord] = []
        """Of calls whose end nobody has been told yet."""
        self._counts_messages = self._hear_ended is not None and "messages" in wants
        self._stopping = answering.stopping
        self._tracing = answering.tracing
        self._turn = current_turn()
        self._runners = CallRunners(nursery, self._turn)
        self._timers = Timers(nursery)
        self.call_at = self._timers.add
        """Calls back at a moment of trio's clock, or soon after; what it calls must neither wait nor raise."""
        self._context = contextvars.copy_context()
        self._fresh: list[Stream] = []
        self._given_up: dict[Carrier, int] = {}
        """Calls that a caller gave up in vain, by its connection."""
        self._deadlines: dict[Forwarding, Timer] = {}
        self.in_steps: dict[Stream, Call] = {}
        """Calls that wait for something in a task, by their streams: for those who ask what they wait for."""

    def take(self, stream: Stream) -> None:
        """The peer has opened `stream` for a call."""
        self._fresh.append(stream)

    def begin(self) -> None:
        """Begin the calls that were taken, all of one connection. Never waits.

        Called when all of a read has been heard: a call that came and went in one read then leaves no trace upstream.
        """
        if not self._fresh:
            return
        fresh, self._fresh = self._fresh, []
        if self._given_up and self._given_up.get(fresh[0].connection, 0) >= _VAIN:
            for stream in fresh:
                self._runners.start(self._begin_after_a_pause, stream)
            return
        at_once = iter(fresh[:_BEGUN_A_READ])
        try:
            for stream in at_once:
                self._begin(stream)
        except BaseException:  # Ctrl-C
            for stream in (*at_once, *fresh[_BEGUN_A_READ:]):
                self._turn_away(stream)
            raise
        for stream in fresh[_BEGUN_A_READ:]:
            self._runners.start(self._begin_later, stream)

    def forget(self, connection: Carrier) -> None:
        """The connection has ended."""
        self._given_up.pop(connection, None)

    def close(self) -> None:
        """All connections have ended. The tasks end with their calls, the idle ones now."""
        self._runners.close()
        self._timers.close()

    # ----------------------------------------------------------- without a task

    def _begin(self, stream: Stream) -> None:
        headers = stream.headers
        assert isinstance(headers, HeaderList)
        asked = headers.once(Asked)
        call = self._new_call(stream, asked)
        if stream.oversized or asked.refusal is not None:
            self._refuse(call, asked)
            self._over(call)
            return
        try:
            answered = self._answer(call, asked)
        except BaseException as error:  # user code may raise anything; one call must not end the others
            interrupted = _holds(error, KeyboardInterrupt)
            self._fail(call, _shutting_down() if interrupted else error)
            self._over(call)
            if interrupted:
                raise
            return
        if isinstance(answered, Forwarding):
            if call.deadline is not None:
                self._watch(answered)
        else:
            self._runners.start(self._step, (call, answered))

    def _turn_away(self, stream: Stream) -> None:
        """End a call that has not begun: nothing will begin any more."""
        call = self._new_call(stream, Asked(stream.headers))
        call.fail(_shutting_down())
        self._over(call)

    def _new_call(self, stream: Stream, asked: Asked) -> Call:
        connection = stream.connection
        # To make one takes as long as ten calls of a function: calls that ask for the same have the same one.
        context: CallContext | None = connection.context
        if context is None or context.metadata is not asked.metadata or asked.timeout_s is not None:
            context = CallContext(
                method=asked.method,
                metadata=asked.metadata,
                peer=connection.peer,
                deadline=None if asked.timeout_s is None else trio.current_time() + asked.timeout_s,
                tls_peer=connection.tls_peer,
            )
            if asked.timeout_s is None:
                connection.context = context
        call = Call(
            stream,
            context,
            self._stopping,
            self.call_at,
            counts_messages=self._counts_messages,
            on_response=self._hear_response,
        )
        if self.answering.status_origin is not None:
            call.status_origin = self.answering.status_origin
        if self._makes_extras:
            self._add_extras(call)
        if self._tracing is not None:
            self._trace(call, asked, self._tracing)
        if self._hear_begun is not None:
            self._hear_begun(call.record)
        return call

    def _add_extras(self, call: Call) -> None:
        """Keep more of the call, for its observer."""
        stream, context = call.stream, call.context
        call.record.extras = extras = CallExtras(
            headers=stream.headers,
            stream_id=stream.id,
            tls_peer=context.tls_peer,
            started=call.started,
        )
        if self._notes_routes:
            call.context = ObservedContext.of(context, extras)

    def _trace(self, call: Call, asked: Asked, tracing: Tracing) -> None:
        """Begin the spans of a call that is sampled, and let its upstream know."""
        trace = tracing.begin(asked.traceparent, call.stream.headers, asked.method)
        if trace is not None:
            call.record.trace = trace
            metadata = call.context.metadata.with_fields(*tracing.told_upstream(trace))
            call.context = call.context.with_metadata(metadata)

    def _answer(self, call: Call, asked: "Asked") -> "Forwarding | Step":
        """Let the call's handler have it: the call on its way, or what has to be awaited in a task."""
        if asked.malformed:
            raise NoRoute(malformed(asked.method), cause="malformed_path")
        if call.stream.inbox.error is not None:
            raise call.stream.inbox.error
        answering = self.answering
        handler = answering.handlers.get(asked.method, answering.unknown_service_handler)
        if handler is None:
            raise NoRoute(f"unknown method {shortened(asked.method)}")
        if isinstance(handler, TransparentHandler):
            # A plain director's context variables are its own, as an async one's are.
            return self._context.copy().run(handler.forward_now, call, self)
        return partial(_answered_by, handler, call)

    # --------------------------------------------------------------- in a task

    async def _begin_later(self, stream: Stream, _scope: trio.CancelScope) -> None:
        self._begin(stream)

    async def _begin_after_a_pause(self, stream: Stream, _scope: trio.CancelScope) -> None:
        try:
            await trio.sleep(_PAUSE_S)
        finally:
            self._begin(stream)  # when all ends, too: so the call has its end

    async def _step(self, work: "tuple[Call, Step]", scope: trio.CancelScope) -> None:
        """Await a step of a call. Cancelled in `scope` if the caller goes, or when the deadline passes.

        Every error becomes a response here, whatever it is; only Ctrl-C and the task's own cancellation go on.
        """
        call, step = work
        over = True
        self.in_steps[call.stream] = call
        try:
            call.runs_in(scope)
            try:
                forwarding = await step()
            finally:
                call.runs_no_more()
            if forwarding is not None:
                over = False
                self._watch(forwarding)
            if not is_innermost(scope):
                # The call need not suffer, but its director has to be mended; the task ends (`CallRunners`).
                tell(self._observer, "call_failed", call.record, _left_open())
        except BaseException as error:  # noqa: BLE001  # what has to go on does
            if not is_innermost(scope) and not scope.cancel_called and _parted(error)[1] is None:
                left_open = _left_open()
                left_open.__cause__ = error
                error = left_open
            goes_on = self._contained(call, scope, error)
            if goes_on is not None:
                raise goes_on from None
        finally:
            self.in_steps.pop(call.stream, None)
            if over:
                self._over(call)

    def _contained(self, call: Call, scope: trio.CancelScope, error: BaseException) -> BaseException | None:
        """End the call with what its step has raised, and answer the part that is not the call's to keep."""
        if call.stream.inbox.error is not None and call.stream.connection.error is None:
            self._count_given_up(call, 1)  # one that is hedged has been sent upstream, more than once maybe
        if _holds(error, KeyboardInterrupt):
            self._fail(call, _shutting_down())
            return error
        cancelled, others = _parted(error)
        if cancelled is not None and not (
            scope.cancel_called or trio.current_effective_deadline() == -math.inf
        ):
            # Nothing that we are in is cancelled: it is another task's, which was kept, as a cache of outcomes does.
            cancelled, others = None, error
        if others is None:
            self._cancelled(call, scope)
        else:
            self._fail(call, others)
        return cancelled

    # ------------------------------------------------- calls on their way, without a task

    def _watch(self, forwarding: Forwarding) -> None:
        """Nobody waits for the call any more: mind its deadline."""
        deadline = forwarding.call.deadline
        if deadline is not None and not forwarding.over:
            self._deadlines[forwarding] = self._timers.add(deadline, forwarding.expire)

    def _unwatch(self, forwarding: Forwarding) -> None:
        timer = self._deadlines.pop(forwarding, None)
        if timer is not None:
            timer.cancel()

    def forwarding_over(self, forwarding: Forwarding, error: RpcError | None) -> None:
        """The call has ended, well or not."""
        if self._deadlines:
            self._unwatch(forwarding)
        call = forwarding.call
        if error is None:
            if self._given_up:
                self._count_given_up(call, -_EARNED)
        else:
            if error.side is Side.DOWNSTREAM and not call.record.response_bytes:
                self._count_given_up(call, 1)
            self._fail(call, error)
        self._over(call)

    def _count_given_up(self, call: Call, change: int) -> None:
        connection = call.stream.connection
        count = min(2 * _VAIN, self._given_up.pop(connection, 0) + change)
        if count > 0:
            self._given_up[connection] = count

    def forwarding_refused(self, forwarding: Forwarding) -> None:
        """The upstream has not processed the call."""
        self._unwatch(forwarding)
        self._runners.start(self._step, (forwarding.call, forwarding.open_again))

    # --------------------------------------------------------------------- ends

    def _refuse(self, call: Call, asked: "Asked") -> None:
        """Answer what is no gRPC call."""
        if call.stream.oversized:
            text = f"the request headers have {call.stream.oversized}"
            call.refuse(431, Status.RESOURCE_EXHAUSTED, text, cause="max_header_list_bytes")
        else:
            assert asked.refusal is not None
            call.refuse(asked.refusal[0], Status.INTERNAL, asked.refusal[1])

    def _cancelled(self, call: Call, scope: trio.CancelScope) -> None:
        """End a call whose step was cancelled: in its own scope, or with all else when the proxy stops."""
        if not scope.cancel_called:
            call.fail(_shutting_down())
        else:
            # grpcio's own words for a deadline, so that it makes no difference whose clock was first.
            error = call.stream.inbox.error or DeadlineExceeded("Deadline Exceeded")
            _note_flag(call, error)
            call.fail(error)

    def _fail(self, call: Call, error: BaseException) -> None:
        """End the call with the error's status, or with INTERNAL and no word of the cause. Total: users make errors."""
        _note_flag(call, error)
        if isinstance(error, RpcError):
            try:
                call.fail(RpcError.checked(error))
                # Where it was raised leads to the call, and the call's stream to the error: a circle.
                error.__traceback__ = None
            except KeyboardInterrupt:
                raise
            except BaseException as odd:  # noqa: BLE001  # a subclass, or an assignment
                odd.add_note(f"in the RpcError that was to end the call: {describe(error)}")
                error = odd
            else:
                return
        call.fail(RpcError(Status.INTERNAL, "internal error in the proxy", origin="proxy", cause="exception"))
        call.record.detail = describe(error)
        tell(self._observer, "call_failed", call.record, error)

    def _over(self, call: Call) -> None:
        call.record.duration_s = time.perf_counter() - call.started
        if call.record.trace is not None and self._tracing is not None:
            self._tracing.ended(call.record.trace, call.record)
        if self._hear_ended is not None:
            self._ended.append(call.record)
            if len(self._ended) == 1:
                self._turn.before_writing(self._tell_ended)

    def _tell_ended(self) -> None:
        """Tell the observer of all calls that have ended: together, as that costs half as much."""
        assert self._hear_ended is not None
        ended = tuple(self._ended)
        self._ended.clear()
        try:
            self._hear_ended(ended)
        except KeyboardInterrupt as interrupt:  # not here: this may be the task that reads for everybody
            self._nursery.start_soon(_interrupted, interrupt)


async def _interrupted(interrupt: KeyboardInterrupt) -> None:
    raise interrupt


async def _answered_by(handler: Handler, call: Call) -> None:
    _check_caller(call)
    answer = handler(call)
    if not inspect.isawaitable(answer):
        raise TypeError(f"the handler {shown(handler)} is no async function: it answered {shown(answer)}")
    await answer
    if not call.ended:
        _check_caller(call)
        raise RuntimeError(
            f"the handler {shown(handler)} has returned without ending the call; a handler awaits another one, "
            "or calls `call.end(status)`, or raises RpcError"
        )


def _note_flag(call: Call, error: BaseException) -> None:
    if call.record.extras is not None:
        call.record.extras.flag = flag_of(error)


def _check_caller(call: Call) -> None:
    """Raise if the caller has gone."""
    if call.stream.inbox.error is not None:
        raise call.stream.inbox.error


def _shutting_down() -> RpcError:
    return RpcError(Status.UNAVAILABLE, "the proxy is shutting down", origin="proxy", cause="stopping")


def _holds(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether the error is one of this kind, or a group with one in it."""
    if isinstance(error, BaseExceptionGroup):
        return any(_holds(each, kind) for each in error.exceptions)
    return isinstance(error, kind)


def _parted(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """What of an error is cancellation, and what is not."""
    if isinstance(error, trio.Cancelled):
        return error, None
    if not isinstance(error, BaseExceptionGroup):
        return None, error
    try:
        return error.split(trio.Cancelled)
    except Exception:  # noqa: BLE001  # a group of a user's own, who makes its parts
        return None, error


def _left_open() -> RuntimeError:
    return RuntimeError(
        "a cancel scope or a nursery was entered for this call and never left, as happens when a `with` block is in an "
        "async generator that is not read to its end"
    )


def _timed(hear: Callable[[CallRecord], None] | None) -> Callable[[CallRecord], None]:
    """As `hear`, and notes when the response began."""

    def response_begun(record: CallRecord) -> None:
        if record.extras is not None:
            record.extras.response_began()
        if hear is not None:
            hear(record)

    return response_begun
