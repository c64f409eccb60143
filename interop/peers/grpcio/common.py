"""What grpcio's two APIs have in common: options, methods and their handlers, and what a server's call can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from interop.peers.python.messages import MESSAGE_LIMIT, METADATA_LIMIT, PACKAGE, Metadata, Method
from interop.peers.python.service import SERVED
from interop.peers.python.tls import Tls, server_tls

OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.max_metadata_size", METADATA_LIMIT),
    ("grpc.absolute_max_metadata_size", METADATA_LIMIT),
]
#: A port belongs to one server: with the library's default two could share one and take calls from one another.
SERVER_OPTIONS = [*OPTIONS, ("grpc.so_reuseport", 0)]
STATUS = {code.value[0]: code for code in grpc.StatusCode}


def method_handler(method: Method, behaviour: Callable[..., Any]) -> grpc.RpcMethodHandler[Any, Any]:
    """Wrap a behaviour of either API for the kind of the method."""
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[method.client_streaming, method.server_streaming]
    return make(behaviour, method.request_type.FromString, method.response_type.SerializeToString)


def generic_handlers(
    handler: Callable[[Method], grpc.RpcMethodHandler[Any, Any]],
) -> tuple[grpc.GenericRpcHandler, ...]:
    """The handlers of all services, as a server of either API takes them."""
    return tuple(
        grpc.method_handlers_generic_handler(
            f"{PACKAGE}.{service}",
            {
                method.name: handler(method)
                for method in SERVED.values()
                if method.path.startswith(f"/{PACKAGE}.{service}/")
            },
        )
        for service in ("TestService", "RecordService")
    )


def multicallable(channel: Any, method: Method) -> Any:
    """The library's callable for a method, on a channel of either API."""
    kinds = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    return kinds[method.client_streaming, method.server_streaming](
        method.path,
        request_serializer=method.request_type.SerializeToString,
        response_deserializer=method.response_type.FromString,
    )


def channel_to(host: str, port: int, tls: Tls | None, api: Any = grpc) -> Any:
    """A channel of either API."""
    target = f"{host}:{port}"
    if tls is None:
        return api.insecure_channel(target, OPTIONS)
    return api.secure_channel(target, grpc.ssl_channel_credentials(*tls.bytes()), OPTIONS)


def add_port(server: Any) -> int:
    """Have a server of either API listen, with TLS if the command line says so."""
    tls = server_tls()
    port: int
    if tls is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        authorities, key, certificate = tls.bytes()
        credentials = grpc.ssl_server_credentials(
            [(key or b"", certificate or b"")], authorities, require_client_auth=authorities is not None
        )
        port = server.add_secure_port("127.0.0.1:0", credentials)
    return port


class ServerCallBase:
    """What of a `ServerCall` is the same in both APIs."""

    authority = ""  # not shown by the library

    def __init__(self, context: Any) -> None:
        self._context = context
        self._gzip = False
        self.metadata: Metadata = [(key, value) for key, value in context.invocation_metadata() or ()]
        remaining = context.time_remaining()
        # A call without a deadline has decades, or None.
        self.has_deadline = remaining is not None and remaining < 1e6

    def set_trailers(self, metadata: Metadata) -> None:
        self._context.set_trailing_metadata(tuple(metadata))

    def compress_next(self, on: bool) -> None:
        if self._gzip and not on:
            self._context.disable_next_message_compression()

    def _allow_gzip(self, gzip: bool) -> None:
        self._gzip = gzip
        if gzip:
            self._context.set_compression(grpc.Compression.Gzip)
