"""`Server`: listens, knows the handlers, runs the connections, and stops gracefully.

What it does not do: answer calls (`dispatch.py`), forward them (a handler), or speak HTTP/2 (a connection).
The invariant: a connection's trouble never leaves its task.
"""

import contextlib
import itertools
import math
import socket
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from functools import partial

import attrs
import trio

from rawgrpc_proxy.call import Handler
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.descriptors import DescriptorPlan, remedy
from rawgrpc_proxy.errors import (
    ConfigError,
    ConnectionFailed,
    ConnectionLimit,
    NotHttp2,
    ProxyFault,
    ProxyStopping,
    Side,
)
from rawgrpc_proxy.grpc.codec import Codec, codec_with_parent, identity_codec
from rawgrpc_proxy.grpc.codec import codec as protobuf_codec
from rawgrpc_proxy.grpc.path import path_problem
from rawgrpc_proxy.grpc.status_origin import StatusOrigin
from rawgrpc_proxy.http2.events import StreamReset
from rawgrpc_proxy.net.accept_share import current_accept_share
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.connection import Connection
from rawgrpc_proxy.net.connection_facts import connection_fact
from rawgrpc_proxy.net.keepalive import Keepalive
from rawgrpc_proxy.net.lifetime import Lifetime
from rawgrpc_proxy.net.listen import accept_on_each, address_of, bound_address, open_listeners
from rawgrpc_proxy.net.networks import Networks
from rawgrpc_proxy.net.proxy_peers import read_source
from rawgrpc_proxy.net.tapped import Tap, Wrap, looked_into
from rawgrpc_proxy.net.tls import TlsContext, TlsTransport, context_of, tls_problem
from rawgrpc_proxy.net.transport import SocketTransport, StreamTransport, Transport
from rawgrpc_proxy.observe.observer import ServerObserver
from rawgrpc_proxy.observe.report import OpenCallsReport, OpenConnection
from rawgrpc_proxy.observe.tell import tell
from rawgrpc_proxy.observe.tracing import Tracing
from rawgrpc_proxy.server.dispatch import Answering, Calls
from rawgrpc_proxy.server.making_room import MakingRoom
from rawgrpc_proxy.server.open_calls import OpenCallsWatch
from rawgrpc_proxy.services.methods import MethodKind
from rawgrpc_proxy.stopping import Stopping

_LEAVES_WITHIN_S = 1.0
"""A caller who makes room for another one has so long to show that he knows, else he goes without."""


@attrs.frozen(kw_only=True)
class _Arrivals:
    """What is done with the connections that come to one `serve`."""

    proxies: Networks
    ssl_context: TlsContext | None
    settings: Http2Settings
    calls: Calls


class Server:
    """A gRPC server whose unknown methods go to `unknown_service_handler` (usually `transparent_handler(director)`).

    `codec` turns payloads into messages for the methods that are served here; by default protobuf's, if it is
    installed, else raw bytes. `max_connections` bounds the downstream connections; by default they get what
    `DescriptorPlan` leaves them of the process's limit on file descriptors. When there are so many, the youngest that
    has no call makes room for the next one, see `making_room.py`; if there is none, the next one is closed. `tracing`
    says which calls are traced; `tap` sees all bytes of the connections that it asks for, `wrap` puts something between
    them and their peers. `status_origin_trailer` is the name of a trailer that tells callers who has made the status
    that they get, and what it comes of, see `grpc/status_origin.py`; `ConfigError` for a name that is none.
    """

    def __init__(
        self,
        *,
        unknown_service_handler: Handler | None = None,
        codec: Codec | None = None,
        settings: Http2Settings | None = None,
        observer: ServerObserver | None = None,
        max_connections: int | None = None,
        tracing: Tracing | None = None,
        status_origin_trailer: str | None = None,
        tap: Tap | None = None,
        wrap: Wrap | None = None,
    ) -> None:
        self._handlers: dict[str, Handler] = {}
        self._codec = codec or _default_codec()
        self._settings = settings or Http2Settings()
        self._observer = observer
        self._tap = tap
        self._wrap = wrap
        self._stopping = Stopping()
        self._stop_by = math.inf
        """When, on trio's clock, the calls that are left are ended."""
        self._answering = Answering(
            handlers=self._handlers,
            unknown_service_handler=unknown_service_handler,
            observer=observer,
            stopping=self._stopping,
            tracing=tracing,
            status_origin=None if status_origin_trailer is None else StatusOrigin(status_origin_trailer),
        )
        self._max_connections = max_connections or DescriptorPlan.of_this_process().downstream
        self._why_no_more = "set by max_connections" if max_connections else remedy()
        self._open_calls = OpenCallsWatch()
        self._calls: list[Calls] = []
        """One for each `serve` that runs."""
        self._connections: dict[Connection, trio.Nursery] = {}
        """Each with the nursery for what else it needs."""
        self._accepted = 0
        self._handshaking: dict[trio.CancelScope, float] = {}
        """What bounds each handshake that is under way, and when it began."""
        self._making_room = MakingRoom()

    def add_handler(self, path: str, handler: Handler) -> None:
        """Let `handler` answer the method `path` (`/package.Service/Method`), which is compared as a whole.

        Raises `ConfigError` for a bad path or one that is taken.
        """
        if path_problem(path.encode()) is not None:
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
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    @property
    def open_calls(self) -> int:
        """Calls that run now."""
        return sum(len(connection.streams) for connection in self._connections)

    def open_call_facts(self, limit: int = 100) -> OpenCallsReport:
        """How many calls are open, by method, and `limit` of them: those on which nothing has moved for longest.

        For each of those, among other things, in words what it waits for. `quiet_s` is the least that it can be; asked
        each second it is right to a second. Waits for nothing, and looks at every open call, some microseconds each.
        """
        steps = self.open_call_steps(limit)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                facts: OpenCallsReport = end.value
                return facts

    def open_call_steps(self, limit: int = 100) -> Generator[None, None, OpenCallsReport]:
        """The same in steps of a few milliseconds, between which calls can go on; returned by the generator.

        A call that ends meanwhile may be there or not.
        """
        return self._open_calls.facts(self._connections, self._calls, limit)

    def open_connection_facts(self, limit: int = 1000) -> list[OpenConnection]:
        """Of at most `limit` downstream connections, the oldest first, how they are. Some microseconds each."""
        return [
            connection_fact("downstream", connection.peer, connection)
            for connection in itertools.islice(self._connections, max(limit, 0))
        ]

    async def serve(
        self,
        address: str | socket.socket | Sequence[socket.socket],
        *,
        ssl_context: TlsContext | None = None,
        proxy_protocol: Collection[str] = (),
        handlers: Mapping[str, Handler] | None = None,
        unknown_service_handler: Handler | None = None,
        settings: Http2Settings | None = None,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve on `address` until `stop`: `HOST:PORT`, `:PORT`, `unix:PATH`, or sockets that listen.

        A name is every address that it has on this machine, see `open_listeners`; port 0 is a free one. Started
        with `nursery.start` it answers the address it really listens on. Raises `ConfigError` if it cannot listen
        there. `ssl_context` may be a function that answers one for each handshake. Of what comes here, `handlers`
        answer these methods as well, or instead of the server's, and `unknown_service_handler` and `settings` take the
        place of the server's. Cancellation closes everything at once. May run several times, on several addresses.

        `proxy_protocol` names the load balancers in front, by networks (`"10.0.0.0/8"`, `"2001:db8::7"`), or `"unix"`
        for all who connect to a Unix socket. They have to begin with a PROXY header (version 1 or 2, before TLS), and
        whom it names is the connection's `peer` here. Nobody else is believed: others are served as they come, and one
        that sends such a header is hung up on.
        """
        proxies = Networks.parse(proxy_protocol)
        settings = settings or self._settings
        answering = self._answering
        if handlers:
            answering = attrs.evolve(answering, handlers={**self._handlers, **handlers})
        if unknown_service_handler is not None:
            answering = attrs.evolve(answering, unknown_service_handler=unknown_service_handler)
        listeners, where = _listen(address)
        share = current_accept_share()
        calls: Calls | None = None
        try:
            async with trio.open_nursery() as tasks_of_calls:
                calls = Calls(tasks_of_calls, answering)
                arrivals = _Arrivals(proxies=proxies, ssl_context=ssl_context, settings=settings, calls=calls)
                self._calls.append(calls)
                async with trio.open_nursery() as nursery:

                    def on_accept(sock: socket.socket, peer: str) -> None:
                        if self._accepted >= self._max_connections and not self._make_room():
                            sock.close()
                            self._turned_away()
                        else:
                            self._accepted += 1
                            if share is not None:
                                share.opened()
                            nursery.start_soon(serve_connection, sock, peer)

                    async def serve_connection(sock: socket.socket, peer: str) -> None:
                        try:
                            await self._serve_connection(sock, peer, arrivals)
                        finally:
                            self._accepted -= 1
                            if share is not None:
                                share.closed()

                    task_status.started(str(where))
                    with self._stopping.ends():
                        await accept_on_each(listeners, on_accept, self._accept_failed, share)
                    _close_listeners(listeners)
                calls.close()
        finally:
            self._calls = [each for each in self._calls if each is not calls]
            _close_listeners(listeners)

    async def serve_stream(self, stream: trio.abc.Stream, *, peer: str = "memory") -> None:
        """Serve one connection, over any trio stream: in memory, through a tunnel. Returns when it is over.

        `peer` is what directors and logs know the caller by. It ends with `stop`, too; cancellation closes it at once.
        """
        calls: Calls | None = None
        try:
            async with trio.open_nursery() as tasks_of_calls:
                calls = Calls(tasks_of_calls, self._answering)
                self._calls.append(calls)
                transport = StreamTransport(stream, peer)
                try:
                    await self._run_connection(transport, peer, calls, self._settings)
                except Exception as error:  # noqa: BLE001  # as for connections that were accepted
                    self._connection_failed(peer, ProxyFault(error))
                calls.close()
        finally:
            self._calls = [each for each in self._calls if each is not calls]

    def stop(self, *, grace_s: float = 0.0) -> None:
        """Stop accepting at once, let calls finish for up to `grace_s` seconds, then close. `serve` returns then.

        Methods that watch `stopping` (`Health`'s Watch does) end by themselves. A second call can shorten the time that
        is left, and not lengthen it.
        """
        self._stop_by = min(self._stop_by, trio.current_time() + grace_s)
        self._stopping.set()
        for connection, nursery in self._connections.items():
            nursery.start_soon(connection.drain, self._grace_left_s)
        for scope in self._handshaking:
            scope.deadline = min(scope.deadline, self._stop_by)

    @property
    def _grace_left_s(self) -> float:
        return max(0.0, self._stop_by - trio.current_time())

    # ------------------------------------------------------------ connections

    async def _serve_connection(self, sock: socket.socket, peer: str, arrivals: "_Arrivals") -> None:
        timeout_s = arrivals.settings.handshake_timeout_s
        try:
            if arrivals.proxies and peer in arrivals.proxies:
                source = await self._source(sock, peer, timeout_s)
                if source is None:
                    return
                peer = source
            transport = await self._transport(sock, peer, arrivals.ssl_context, timeout_s)
            if transport is not None:
                await self._run_connection(transport, peer, arrivals.calls, arrivals.settings)
        except Exception as error:  # noqa: BLE001  # a fault of ours in one connection must not end the others
            self._connection_failed(peer, ProxyFault(error))

    async def _run_connection(
        self, transport: Transport, peer: str, calls: Calls, settings: Http2Settings
    ) -> None:
        async with trio.open_nursery() as nursery:
            transport = looked_into(transport, self._tap, self._wrap, Side.DOWNSTREAM, nursery)

            def on_refused(reset: StreamReset) -> None:
                tell(self._observer, "stream_refused", peer, reset)

            def retire(error: ProxyStopping) -> None:
                nursery.start_soon(connection.drain, settings.max_connection_age_grace_s, error)

            def on_change() -> None:
                if lifetime is not None:
                    lifetime.changed()

            connection = Connection(
                transport,
                settings,
                client_side=False,
                on_request=calls.take,
                on_read=calls.begin,
                on_refused=on_refused,
                on_limit=partial(tell, self._observer, "limit_reached", peer),
                on_change=on_change if settings.max_connection_idle_s < math.inf else None,
            )
            self._connections[connection] = nursery
            tell(self._observer, "connection_opened", peer, transport.tls_version)
            if self._stopping.is_set():
                # Accepted in the very moment of the stop.
                nursery.start_soon(connection.drain, self._grace_left_s)
            keepalive = Keepalive(
                connection,
                calls.call_at,
                interval_s=settings.downstream_keepalive_s,
                timeout_s=settings.keepalive_timeout_s,
            )
            lifetime = Lifetime.of(connection, calls.call_at, retire, settings)
            try:
                await connection.run()
            finally:
                keepalive.stop()
                if lifetime is not None:
                    lifetime.stop()
                del self._connections[connection]
                self._making_room.gone(connection)
                calls.forget(connection)
                error = connection.error
                age_s = trio.current_time() - connection.opened_at
                tell(
                    self._observer, "connection_closed", peer, error, age_s, connection.session.streams_opened
                )
            if error is not None and error.error_code != ErrorCode.NO_ERROR:
                self._connection_failed(peer, error)

    async def _source(self, sock: socket.socket, peer: str, timeout_s: float) -> str | None:
        """Whom a load balancer connects for; None if it does not say so, and the connection is closed."""
        began = trio.current_time()
        source: str | None = None
        try:
            with self._handshake(timeout_s) as scope:
                source = await read_source(sock, peer)
            if scope.cancelled_caught and not self._stopping.is_set():
                limit = f"within {timeout_s:g} s (handshake_timeout_s)"
                if trio.current_time() < began + timeout_s:
                    limit = "before its place was needed (max_connections)"
                raise NotHttp2(
                    f"no PROXY header {limit}, from a peer that proxy_protocol says sends one first"
                )
        except NotHttp2 as error:
            self._connection_failed(peer, error)
        finally:
            if source is None:
                sock.close()
        return source

    async def _transport(
        self, sock: socket.socket, peer: str, ssl_context: TlsContext | None, timeout_s: float
    ) -> Transport | None:
        """The connection's link, TLS done; None if the peer did not get that far."""
        if ssl_context is None:
            return SocketTransport(sock, peer)
        transport = TlsTransport(sock, peer, context_of(ssl_context), server_side=True)
        began = trio.current_time()
        cause: object = "the handshake was not done in time"
        try:
            with self._handshake(timeout_s) as scope:
                await transport.handshake()
            if not scope.cancelled_caught:
                if transport.alpn_protocol == "h2":
                    tell(self._observer, "tls_handshake_done", peer, trio.current_time() - began)
                    return transport
                # RFC 9113 §3.3: whoever has not agreed on HTTP/2 would take our frames for something else.
                cause = "the peer does not offer 'h2' by ALPN, or the ssl_context does not (set_alpn_protocols(['h2']))"
        except (OSError, trio.ClosedResourceError) as error:
            if not transport.heard:  # a health check of the port; in plaintext it makes no line either
                await transport.aclose()
                return None
            cause = tls_problem(error) if isinstance(error, OSError) else error
        except BaseException:
            await transport.aclose()
            raise
        await transport.aclose()
        failure = ConnectionFailed(f"no TLS: {cause}", error_code=ErrorCode.INADEQUATE_SECURITY)
        tell(self._observer, "tls_handshake_failed", peer, trio.current_time() - began, failure)
        self._connection_failed(peer, failure)
        return None

    @contextlib.contextmanager
    def _handshake(self, timeout_s: float) -> Iterator[trio.CancelScope]:
        """For what a peer has to do first: within this time, not beyond a stop, and only while its place is free."""
        began = trio.current_time()
        with trio.CancelScope(deadline=min(began + timeout_s, self._stop_by)) as scope:
            self._handshaking[scope] = began
            try:
                yield scope
            finally:
                self._handshaking.pop(scope, None)
                self._making_room.gone(scope)

    def _make_room(self) -> bool:
        """Whether one more connection has its place, though all are taken: another one may go for it."""
        making_room = self._making_room
        while self._accepted - making_room.leaving >= self._max_connections:
            leaver = making_room.choose(self._connections, self._handshaking, trio.current_time())
            if leaver is None:
                return False
            if isinstance(leaver, trio.CancelScope):
                leaver.cancel()
                continue
            text = (
                f"all {self._max_connections} places are taken: one without a call makes room for another one"
            )
            tell(self._observer, "limit_reached", leaver.peer, "max_connections", text)
            error = ProxyStopping("the connection has made room for another one", why="max_connections")
            self._connections[leaver].start_soon(leaver.drain, math.inf, error, _LEAVES_WITHIN_S)
        return True

    def _connection_failed(self, peer: str, error: ConnectionFailed) -> None:
        tell(self._observer, "connection_failed", peer, error)

    def _accept_failed(self, error: OSError) -> None:
        tell(self._observer, "accept_failed", error)

    def _turned_away(self) -> None:
        self._accept_failed(
            ConnectionLimit(f"{self._accepted} connections are open, as many as may be: {self._why_no_more}")
        )


def _default_codec() -> Codec:
    try:
        return protobuf_codec()
    except ConfigError:
        return codec_with_parent(identity_codec())


def _listen(
    address: str | socket.socket | Sequence[socket.socket],
) -> tuple[Sequence[socket.socket], Address]:
    """The listening sockets, and what clients connect to."""
    if isinstance(address, str):
        asked = Address.parse(address, to_listen=True)
        listeners: Sequence[socket.socket] = open_listeners(asked)
        return listeners, address_of(listeners, asked)
    listeners = [address] if isinstance(address, socket.socket) else address
    return listeners, bound_address(listeners[0])


def _close_listeners(listeners: Sequence[socket.socket]) -> None:
    for listener in listeners:
        if listener.fileno() >= 0:
            trio.lowlevel.notify_closing(listener)
            listener.close()
