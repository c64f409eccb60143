"""`Server`: listens, checks requests, finds each call's handler, and stops gracefully.

What it does not do: forward calls (that is a handler's work) or speak HTTP/2 (that is a connection's).
The invariants: a connection's trouble never leaves its task, a call's never leaves its own; every error of a call
becomes a response here and nowhere else; every call ends in exactly one record.
"""

import math
import re
import resource
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

import trio

from rawgrpc_proxy.call import Call, CallContext, CallRecord, Handler
from rawgrpc_proxy.call_runners import CallRunners
from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.errors import ConfigError, ConnectionFailed, DeadlineExceeded, NoRoute, RpcError
from rawgrpc_proxy.grpc.codec import Codec, codec_with_parent, identity_codec
from rawgrpc_proxy.grpc.codec import codec as protobuf_codec
from rawgrpc_proxy.grpc.metadata import Headers, Metadata
from rawgrpc_proxy.grpc.timeout import parse_timeout
from rawgrpc_proxy.http2.events import StreamReset
from rawgrpc_proxy.http2.header_blocks import HeaderList
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.connection import Connection, current_turn
from rawgrpc_proxy.net.listen import accept_forever, bound_address, open_listener
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.net.transport import SocketTransport, StreamTransport, Transport
from rawgrpc_proxy.services.methods import MethodKind

# One service segment, one method segment, nothing that a router further on could read differently.
_PATH = re.compile(rb"/(?!\.{1,2}/)[!-~]+/(?!\.{1,2}\Z)[!-~]+\Z")
_NOT_IN_SEGMENT = re.compile(rb"[/?#\\%]")
_CONTENT_TYPE = re.compile(rb"application/grpc(?:\Z|[+;])")
_FD_SHARE = 0.4


class ServerObserver(Protocol):
    """Hears of what a server does. Called from its hot path: must not wait, must not raise."""

    def call_ended(self, record: CallRecord) -> None:
        """A call is over."""

    def call_failed(self, record: CallRecord, error: BaseException) -> None:
        """A handler raised something that is no `RpcError`; the caller was only told INTERNAL."""

    def stream_refused(self, peer: str, reset: StreamReset) -> None:
        """A request was malformed, or one too many, and never became a call."""

    def connection_failed(self, peer: str, error: ConnectionFailed) -> None:
        """A downstream connection ended by a fault of its peer."""

    def accept_failed(self, error: OSError | None) -> None:
        """No connection could be accepted: the process, or the server (None), is at its limit."""


class Server:
    """A gRPC server whose unknown methods go to `unknown_service_handler` (usually `transparent_handler(director)`).

    `codec` turns payloads into messages for the methods that are served here; by default protobuf's, if it is
    installed, else raw bytes. `max_connections` bounds the downstream connections; by default 40 % of the process's
    limit on file descriptors, which leaves as many for the upstreams.
    """

    def __init__(
        self,
        *,
        unknown_service_handler: Handler | None = None,
        codec: Codec | None = None,
        settings: Http2Settings | None = None,
        observer: ServerObserver | None = None,
        max_connections: int | None = None,
    ) -> None:
        self._unknown_service_handler = unknown_service_handler
        self._handlers: dict[str, Handler] = {}
        self._codec = codec or _default_codec()
        self._settings = settings or Http2Settings()
        self._observer = observer
        soft_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._max_connections = max_connections or max(16, int(min(soft_limit, 1 << 20) * _FD_SHARE))
        self._connections: set[Connection] = set()
        self._accepted = 0
        self._accepting: set[trio.CancelScope] = set()
        self._handshaking: set[trio.CancelScope] = set()
        self._stop = trio.Event()
        self._grace_s = 0.0

    def add_handler(self, path: str, handler: Handler) -> None:
        """Let `handler` answer the method `path` (`/package.Service/Method`).

        Raises `ConfigError` for a bad path or one that is taken.
        """
        if _path_problem(path.encode()) is not None:
            raise ConfigError(f"{path!r} is no gRPC method; write /package.Service/Method")
        if path in self._handlers:
            raise ConfigError(f"{path} has a handler already")
        self._handlers[path] = handler

    def add_method(self, path: str, method: MethodKind) -> None:
        """Serve `path` here: `server.add_method("/pkg.Greeter/Hello", unary_unary(hello, HelloRequest))`."""
        self.add_handler(path, method(self._codec))

    @property
    def open_connections(self) -> int:
        """Downstream connections that are open now."""
        return len(self._connections)

    @property
    def open_calls(self) -> int:
        """Calls that run now."""
        return sum(len(connection.streams) for connection in self._connections)

    async def serve(
        self,
        address: str | socket.socket,
        *,
        ssl_context: ssl.SSLContext | None = None,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve on `address` (`HOST:PORT`, port 0 for a free one, or `unix:PATH`; or a listening socket) until `stop`.

        Started with `nursery.start` it answers the address it really listens on. Raises `ConfigError` if it cannot
        listen there. Cancellation closes everything at once. May run several times, on several addresses.
        """
        listener = _listen(address) if isinstance(address, str) else address
        scope = trio.CancelScope()
        if self._stop.is_set():
            scope.cancel()
        self._accepting.add(scope)
        try:
            async with trio.open_nursery() as nursery:

                def on_accept(sock: socket.socket, peer: str) -> None:
                    if self._accepted >= self._max_connections:
                        sock.close()
                        self._accept_failed(None)
                    else:
                        self._accepted += 1
                        nursery.start_soon(self._serve_connection, sock, peer, ssl_context)

                task_status.started(str(bound_address(listener)))
                with scope:
                    await accept_forever(listener, on_accept, self._accept_failed)
                _close_listener(listener)
                await self._stop.wait()
                for connection in list(self._connections):
                    nursery.start_soon(connection.drain, self._grace_s)
        finally:
            self._accepting.discard(scope)
            _close_listener(listener)

    def stop(self, *, grace_s: float = 0.0) -> None:
        """Stop accepting at once, let calls finish for up to `grace_s` seconds, then close. `serve` returns then."""
        self._grace_s = grace_s
        self._stop.set()
        for scope in self._accepting:
            scope.cancel()
        for scope in self._handshaking:
            scope.deadline = min(scope.deadline, trio.current_time() + grace_s)

    # ------------------------------------------------------------ connections

    async def _serve_connection(
        self, sock: socket.socket, peer: str, ssl_context: ssl.SSLContext | None
    ) -> None:
        try:
            transport = await self._transport(sock, peer, ssl_context)
            if transport is not None:
                await self._run_connection(transport, peer)
        except Exception as error:  # noqa: BLE001  # a fault of ours in one connection must not end the others
            self._connection_failed(
                peer, ConnectionFailed(f"fault in the proxy: {error!r}", error_code=ErrorCode.INTERNAL_ERROR)
            )
        finally:
            self._accepted -= 1

    async def _run_connection(self, transport: Transport, peer: str) -> None:
        async with trio.open_nursery() as calls:
            runners = CallRunners(calls, self._run_call, current_turn())

            def on_refused(reset: StreamReset) -> None:
                if self._observer is not None:
                    self._observer.stream_refused(peer, reset)

            connection = Connection(
                transport, self._settings, client_side=False, on_request=runners.start, on_refused=on_refused
            )
            self._connections.add(connection)
            if self._stop.is_set():
                # Accepted in the very moment of the stop.
                calls.start_soon(connection.drain, self._grace_s)
            try:
                await connection.run()
            finally:
                self._connections.discard(connection)
                runners.close()
            error = connection.error
            if error is not None and error.error_code != ErrorCode.NO_ERROR:
                self._connection_failed(peer, error)

    async def _transport(
        self, sock: socket.socket, peer: str, ssl_context: ssl.SSLContext | None
    ) -> Transport | None:
        """The connection's link, TLS done; None if the peer did not get that far."""
        if ssl_context is None:
            return SocketTransport(sock, peer)
        sock.settimeout(0)
        stream = trio.SSLStream(
            trio.SocketStream(trio.socket.from_stdlib_socket(sock)),
            ssl_context,
            server_side=True,
            https_compatible=True,
        )
        scope = trio.CancelScope(deadline=trio.current_time() + self._settings.handshake_timeout_s)
        self._handshaking.add(scope)
        cause: object = "the handshake was not done in time"
        try:
            with scope:
                await stream.do_handshake()
            if not scope.cancelled_caught:
                return StreamTransport(stream, peer)
        except (OSError, trio.BrokenResourceError) as error:
            cause = error.__cause__ or error
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        finally:
            self._handshaking.discard(scope)
        await trio.aclose_forcefully(stream)
        self._connection_failed(
            peer, ConnectionFailed(f"no TLS: {cause}", error_code=ErrorCode.INADEQUATE_SECURITY)
        )
        return None

    def _connection_failed(self, peer: str, error: ConnectionFailed) -> None:
        if self._observer is not None:
            self._observer.connection_failed(peer, error)

    def _accept_failed(self, error: OSError | None) -> None:
        if self._observer is not None:
            self._observer.accept_failed(error)

    # ------------------------------------------------------------------ calls

    async def _run_call(self, stream: Stream, oversized: bool, scope: trio.CancelScope) -> None:
        """Answer one call, in `scope`. Every error becomes a response here."""
        headers = stream.headers
        assert isinstance(headers, HeaderList)
        asked: _Asked | None = headers.asked
        if asked is None:
            asked = headers.asked = _Asked(headers)
        call = _new_call(stream, asked)
        started = time.perf_counter()
        try:
            if not self._refused(call, asked, oversized):
                await self._answer(call, scope)
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
            call.record.duration_s = time.perf_counter() - started
            if self._observer is not None:
                self._observer.call_ended(call.record)

    def _cancelled(self, call: Call, scope: trio.CancelScope) -> None:
        """End a call whose handler was cancelled: in its own scope, or with all else when the proxy stops."""
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
            except (TypeError, ValueError) as bad_metadata:
                bad_metadata.add_note(f"in the trailing metadata of {error!r}")
                error = bad_metadata
            else:
                return
        call.fail(RpcError(Status.INTERNAL, "internal error in the proxy", origin="proxy"))
        call.record.detail = f"{type(error).__name__}: {error}"
        if self._observer is not None:
            self._observer.call_failed(call.record, error)

    async def _answer(self, call: Call, scope: trio.CancelScope) -> None:
        """Let the handler answer, until it is done, or cancelled: the caller has gone, or the deadline passed."""
        handler = self._handlers.get(call.context.method, self._unknown_service_handler)
        if handler is None:
            raise NoRoute(f"unknown method {call.context.method}")
        inbox = call.stream.inbox
        if inbox.error is not None:
            raise inbox.error
        deadline = call.context.deadline
        if deadline is not None:
            scope.deadline = deadline
        inbox.on_failed = scope
        try:
            await handler(call)
        finally:
            inbox.on_failed = None
            if deadline is not None and not scope.cancel_called:
                scope.deadline = math.inf

    def _refused(self, call: Call, asked: "_Asked", oversized: bool) -> bool:
        """Answer what is no gRPC call, and say whether it was one of those."""
        if oversized:
            limit = self._settings.max_header_list_bytes
            call.refuse(431, Status.RESOURCE_EXHAUSTED, f"the request headers are longer than {limit} bytes")
        elif asked.refusal is not None:
            call.refuse(asked.refusal[0], Status.INTERNAL, asked.refusal[1])
        elif asked.error is not None:
            raise asked.error()
        else:
            return False
        return True


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
        if (problem := _path_problem(path)) is not None:
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


def _path_problem(path: bytes) -> str | None:
    """What keeps this :path from being `/service/method`."""
    if _PATH.match(path) and path.count(b"/") == 2 and not _NOT_IN_SEGMENT.search(path.replace(b"/", b"")):  # noqa: PLR2004
        return None
    return f"malformed method name: {path[:128].decode('latin-1')!r}"


def _default_codec() -> Codec:
    try:
        return protobuf_codec()
    except ConfigError:
        return codec_with_parent(identity_codec())


def _listen(address: str) -> socket.socket:
    return open_listener(Address.parse(address, may_choose_port=True))


def _close_listener(listener: socket.socket) -> None:
    if listener.fileno() >= 0:
        trio.lowlevel.notify_closing(listener)
        listener.close()
