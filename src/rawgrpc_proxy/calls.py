"""The calls of a server, each from its request to its one end.

What it does not do: speak HTTP/2 (the connection does), or forward (a handler does).
The invariants: a call's trouble never leaves it; every error of a call becomes a response here and nowhere else; every
call ends in exactly one record.
"""

import contextvars
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import attrs
import trio

from rawgrpc_proxy.call import Call, CallContext, Handler
from rawgrpc_proxy.call_runners import CallRunners
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.deadlines import Deadlines, Timer
from rawgrpc_proxy.errors import DeadlineExceeded, NoRoute, RpcError
from rawgrpc_proxy.forwarding import Forwarding
from rawgrpc_proxy.grpc.metadata import Headers, Metadata
from rawgrpc_proxy.grpc.timeout import parse_timeout
from rawgrpc_proxy.handler import TransparentHandler
from rawgrpc_proxy.http2.header_blocks import HeaderList
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.net.turn import current_turn
from rawgrpc_proxy.observe.observer import ServerObserver
from rawgrpc_proxy.tell import tell

# One service segment, one method segment, nothing that a router further on could read differently.
_PATH = re.compile(rb"/(?!\.{1,2}/)[!-~]+/(?!\.{1,2}\Z)[!-~]+\Z")
_NOT_IN_SEGMENT = re.compile(rb"[/?#\\%]")
_CONTENT_TYPE = re.compile(rb"application/grpc(?:\Z|[+;])")
_BEGUN_A_READ = 32
"""More calls than this in one read, and the others get their turn before the rest begins."""

Step = Callable[[], Awaitable[Forwarding | None]]
"""What may have to wait. Answers the forwarding that goes on without a task; None when the call is over."""


@attrs.frozen(kw_only=True)
class Service:
    """What answers the calls of a server: the handlers by method, and the one for all other methods."""

    handlers: Mapping[str, Handler]
    unknown_service_handler: Handler | None
    observer: ServerObserver | None


class Calls:
    """Answers the calls of any number of connections, in tasks of `nursery` where they need one."""

    __slots__ = ("_context", "_deadlines", "_fresh", "_observer", "_runners", "_service", "_timers")

    def __init__(self, nursery: trio.Nursery, service: Service) -> None:
        self._service = service
        self._observer = service.observer
        self._runners = CallRunners(nursery, current_turn())
        self._deadlines = Deadlines(nursery)
        self._context = contextvars.copy_context()
        self._fresh: list[Stream] = []
        self._timers: dict[Forwarding, Timer] = {}

    def take(self, stream: Stream) -> None:
        """The peer has opened `stream` for a call."""
        self._fresh.append(stream)

    def begin(self) -> None:
        """Begin the calls that were taken. Never waits.

        Called when all of a read has been heard: a call that came and went in one read then leaves no trace upstream.
        """
        if not self._fresh:
            return
        fresh, self._fresh = self._fresh, []
        for stream in fresh[:_BEGUN_A_READ]:
            self._begin(stream)
        for stream in fresh[_BEGUN_A_READ:]:
            self._runners.start(self._begin_later, stream)

    def close(self) -> None:
        """All connections have ended. The tasks end with their calls, the idle ones now."""
        self._runners.close()
        self._deadlines.close()

    # ----------------------------------------------------------- without a task

    def _begin(self, stream: Stream) -> None:
        headers = stream.headers
        assert isinstance(headers, HeaderList)
        asked: _Asked | None = headers.asked
        if asked is None:
            asked = _Asked(headers)
            if asked.error is None:  # texts of errors are long, and seldom asked for again
                headers.asked = asked
        call = _new_call(stream, asked)
        if self._refused(call, asked):
            self._over(call)
            return
        try:
            begun = self._begun(call, asked)
        except Exception as error:  # noqa: BLE001  # user code may raise anything; one call must not end the others
            self._fail(call, error)
            self._over(call)
            return
        if isinstance(begun, Forwarding):
            self._watch(begun)
        else:
            self._runners.start(self._step, (call, begun))

    def _begun(self, call: Call, asked: "_Asked") -> "Forwarding | Step":
        """The call on its way, or what has to be awaited in a task."""
        if asked.error is not None:
            raise asked.error()
        if call.stream.inbox.error is not None:
            raise call.stream.inbox.error
        service = self._service
        handler = service.handlers.get(asked.method, service.unknown_service_handler)
        if handler is None:
            raise NoRoute(f"unknown method {asked.method}")
        if isinstance(handler, TransparentHandler):
            # A plain director's context variables are its own, as an async one's are.
            return self._context.copy().run(handler.begin_now, call, self)
        return partial(_answered_by, handler, call)

    # --------------------------------------------------------------- in a task

    async def _begin_later(self, stream: Stream, _scope: trio.CancelScope) -> None:
        self._begin(stream)

    async def _step(self, work: "tuple[Call, Step]", scope: trio.CancelScope) -> None:
        """Await a step of a call. Cancelled in `scope` if the caller goes, or when the deadline passes.

        Every error becomes a response here.
        """
        call, step = work
        over = True
        try:
            self._enter(call, scope)
            try:
                forwarding = await step()
            finally:
                self._leave(call, scope)
            if forwarding is not None:
                over = False
                self._watch(forwarding)
        except trio.Cancelled:
            self._cancelled(call, scope)
            raise
        except Exception as error:  # noqa: BLE001  # user code may raise anything; one call must not end the others
            self._fail(call, error)
        except BaseExceptionGroup as group:
            # The call was cancelled while tasks of the handler's own ran.
            cancelled, errors = group.split(trio.Cancelled)
            if cancelled is None or not (errors is None or isinstance(errors, Exception)):
                raise
            if errors is None:
                self._cancelled(call, scope)
            else:
                self._fail(call, errors)
            raise cancelled from None
        finally:
            if over:
                self._over(call)

    def _enter(self, call: Call, scope: trio.CancelScope) -> None:
        """Have the scope cancelled when the call's deadline passes, or its caller goes."""
        inbox = call.stream.inbox
        inbox.on_failed = scope
        if inbox.error is not None:
            scope.cancel()  # it went while the call waited for a task
        if call.context.deadline is not None:
            scope.deadline = call.context.deadline

    def _leave(self, call: Call, scope: trio.CancelScope) -> None:
        call.stream.inbox.on_failed = None
        if call.context.deadline is not None and not scope.cancel_called:
            scope.deadline = math.inf

    # ------------------------------------------------- calls on their way, without a task

    def _watch(self, forwarding: Forwarding) -> None:
        """Nobody waits for the call any more: mind its deadline."""
        deadline = forwarding.call.context.deadline
        if deadline is not None and not forwarding.over:
            self._timers[forwarding] = self._deadlines.add(deadline, forwarding.expire)

    def _unwatch(self, forwarding: Forwarding) -> None:
        if self._timers:
            timer = self._timers.pop(forwarding, None)
            if timer is not None:
                timer.cancel()

    def forwarding_over(self, forwarding: Forwarding, error: RpcError | None) -> None:
        """The call has ended, well or not."""
        self._unwatch(forwarding)
        call = forwarding.call
        if error is not None:
            self._fail(call, error)
        self._over(call)

    def forwarding_misled(self, forwarding: Forwarding, error: ValueError) -> None:
        """Somebody has given back the call's lease before us."""
        tell(self._observer, "call_failed", forwarding.call.record, error)

    def forwarding_refused(self, forwarding: Forwarding) -> None:
        """The upstream has not processed the call."""
        self._unwatch(forwarding)
        self._runners.start(self._step, (forwarding.call, forwarding.open_again))

    # --------------------------------------------------------------------- ends

    def _refused(self, call: Call, asked: "_Asked") -> bool:
        """Answer what is no gRPC call, and say whether it was one of those."""
        if call.stream.oversized:
            text = f"the request headers have {call.stream.oversized}"
            call.refuse(431, Status.RESOURCE_EXHAUSTED, text)
        elif asked.refusal is not None:
            call.refuse(asked.refusal[0], Status.INTERNAL, asked.refusal[1])
        else:
            return False
        return True

    def _cancelled(self, call: Call, scope: trio.CancelScope) -> None:
        """End a call whose step was cancelled: in its own scope, or with all else when the proxy stops."""
        if not scope.cancel_called:
            call.fail(RpcError(Status.UNAVAILABLE, "the proxy is shutting down", origin="proxy"))
        else:
            # grpcio's own words for a deadline, so that it makes no difference whose clock was first.
            call.fail(call.stream.inbox.error or DeadlineExceeded("Deadline Exceeded"))

    def _fail(self, call: Call, error: Exception) -> None:
        """End the call with the error's status, or with INTERNAL and no word of the cause."""
        if isinstance(error, RpcError):
            try:
                call.fail(error)
                # Where it was raised leads to the call, and the call's stream to the error: a circle.
                error.__traceback__ = None
            except (TypeError, ValueError) as bad_metadata:
                bad_metadata.add_note(f"in the trailing metadata of {error!r}")
                error = bad_metadata
            else:
                return
        call.fail(RpcError(Status.INTERNAL, "internal error in the proxy", origin="proxy"))
        call.record.detail = f"{type(error).__name__}: {error}"
        tell(self._observer, "call_failed", call.record, error)

    def _over(self, call: Call) -> None:
        call.record.duration_s = time.perf_counter() - call.started
        if self._observer is not None:
            tell(self._observer, "call_ended", call.record)


async def _answered_by(handler: Handler, call: Call) -> None:
    if call.stream.inbox.error is not None:
        raise call.stream.inbox.error
    await handler(call)


class _Asked:
    """What request headers ask for. Worked out once for each header list, which clients repeat."""

    __slots__ = ("error", "metadata", "method", "refusal", "timeout_s")

    def __init__(self, headers: Headers) -> None:
        fields = dict(headers)
        path = fields[b":path"]
        self.method = path.decode("latin-1")
        self.metadata = Metadata(headers)
        self.refusal = _refusal(fields)
        """The HTTP status and the reason for what is no gRPC call."""
        self.error: Callable[[], RpcError] | None = None
        """Makes the error of a call that cannot be."""
        self.timeout_s: float | None = None
        if (problem := path_problem(path)) is not None:
            self.error = partial(NoRoute, problem)
        try:
            timeout = fields.get(b"grpc-timeout")
            self.timeout_s = None if timeout is None else parse_timeout(timeout)
        except ValueError as error:
            self.error = partial(RpcError, Status.INTERNAL, str(error), origin="proxy")


def _refusal(fields: dict[bytes, bytes]) -> tuple[int, str] | None:
    if fields[b":method"] != b"POST":
        return 405, "a gRPC call is a POST request"
    if not _CONTENT_TYPE.match(fields.get(b"content-type", b"")):
        return 415, "the content-type of a gRPC call is application/grpc"
    if fields[b":scheme"] not in {b"http", b"https"} or b"@" in fields.get(b":authority", b""):
        return 400, "the :scheme or the :authority of the request is invalid"
    return None


def _new_call(stream: Stream, asked: _Asked) -> Call:
    connection = stream.connection
    context = CallContext(
        method=asked.method,
        metadata=asked.metadata,
        peer=connection.peer,
        deadline=None if asked.timeout_s is None else trio.current_time() + asked.timeout_s,
        tls_peer=connection.tls_peer,
    )
    return Call(stream, context)


def path_problem(path: bytes) -> str | None:
    """What keeps this :path from being `/service/method`."""
    if _PATH.match(path) and path.count(b"/") == 2 and not _NOT_IN_SEGMENT.search(path.replace(b"/", b"")):  # noqa: PLR2004
        return None
    return f"malformed method name: {path[:128].decode('latin-1')!r}"
