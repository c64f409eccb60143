"""The story of a proxied call: ask the director, open the upstream stream, splice, settle the status, release.

`transparent_handler(director)` makes the handler that does it; `register_service` puts it on single methods. Nothing
here touches a message: once the streams are spliced, their bytes go from one connection's reader to the other's
output, and the call's task waits for the end. Errors are raised; the server makes them into responses.
"""

from typing import Protocol

import trio

from rawgrpc_proxy.call import Call, CallContext, Handler
from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.director import StreamDirector, ask
from rawgrpc_proxy.errors import DeadlineExceeded, RpcError, StreamReset
from rawgrpc_proxy.grpc.metadata import Headers
from rawgrpc_proxy.grpc.status import decode_grpc_message, parse_status, status_from_http
from rawgrpc_proxy.grpc.timeout import format_timeout
from rawgrpc_proxy.net.splice import Splice
from rawgrpc_proxy.pool import PoolConn

_FRESH_CONNECTIONS = 3


def transparent_handler(director: StreamDirector) -> Handler:
    """A handler that passes every call on, unchanged, to where `director` says.

    Use it as a server's `unknown_service_handler`, or on single methods with `register_service`. All request headers
    are forwarded unless the director changes them. A call that provably was not processed (REFUSED_STREAM, GOAWAY) is
    sent once more while nothing of its response has arrived and its request fits into 64 KiB.
    """

    async def forward(call: Call) -> None:
        context, conn = await ask(director, call.context)
        lease = _Lease(conn)
        call.record.upstream = conn.address
        splice = Splice(call.stream)
        try:
            await _open(call, context, lease, splice)
            await splice.wait_for_response()
            if _may_try_again(splice):
                await lease.trade()
                await _open(call, context, lease, splice)
                await splice.wait_for_response()
        finally:
            splice.abandon(ErrorCode.CANCEL)
            lease.close()
            _record(call, splice)
        if splice.upstream_error is not None:
            raise _settled(splice.upstream_error, call.context.deadline)
        await splice.wait_for_delivery()
        if splice.downstream_error is not None:
            raise splice.downstream_error

    return forward


class MethodTable(Protocol):
    """Where handlers are registered: a `Server`."""

    def add_handler(self, path: str, handler: Handler) -> None:
        """Let `handler` answer the method `path`."""


def register_service(
    server: MethodTable, director: StreamDirector, service_name: str, *method_names: str
) -> None:
    """Proxy the named methods of one service, and no others.

    A method of the service that is not named goes to the server's unknown-service handler, or is UNIMPLEMENTED.
    """
    handler = transparent_handler(director)
    for method_name in method_names:
        server.add_handler(f"/{service_name}/{method_name}", handler)


class _Lease:
    """The pooled connection that a call holds: one at a time, and each is given back once."""

    __slots__ = ("conn",)

    def __init__(self, conn: PoolConn) -> None:
        self.conn = conn

    async def trade(self) -> None:
        """Take another connection to the same address instead. If there is none, this one is kept."""
        fresh = await self.conn.again()
        self.conn.close()
        self.conn = fresh

    def close(self) -> None:
        self.conn.close()


async def _open(call: Call, context: CallContext, lease: _Lease, splice: Splice) -> None:
    """Open the upstream stream and join it to the call.

    A connection may have gone between the director's choice and now; nothing has left the proxy then, so another one
    from the same pool is as good.
    """
    for _ in range(_FRESH_CONNECTIONS):
        if lease.conn.has_room:
            break
        await lease.trade()
    if call.stream.inbox.error is not None:
        # The caller gave up in the moment in which the connection was there.
        raise call.stream.inbox.error
    headers = _upstream_headers(context)
    size = context.metadata.next_hop_size
    conn = lease.conn
    if conn.has_room and size > conn.peer_max_header_list_bytes:
        raise RpcError(
            Status.RESOURCE_EXHAUSTED,
            f"the request headers have {size} bytes; {conn.address} takes {conn.peer_max_header_list_bytes}",
            origin="proxy",
        )
    turn = call.stream.connection.turn
    turn.collecting = True
    try:
        splice.join(conn.open_stream(headers, end_stream=splice.request_is_empty))
    finally:
        turn.flush_if_last()


def _may_try_again(splice: Splice) -> bool:
    """Whether the upstream provably did not process the call, its request is still here, and somebody waits."""
    error = splice.upstream_error
    return (
        error is not None
        and error.retry_safe
        and splice.replay is not None
        and splice.downstream_error is None
    )


def _settled(error: RpcError, deadline: float | None) -> RpcError:
    """The caller's error for an upstream's. An upstream that watches the deadline too cancels the stream then."""
    if (
        isinstance(error, StreamReset)
        and error.error_code == ErrorCode.CANCEL
        and deadline is not None
        and trio.current_time() >= deadline
    ):
        return DeadlineExceeded("Deadline Exceeded")
    return error


def _upstream_headers(context: CallContext) -> Headers:
    """The call's headers for the upstream, with the time that is left."""
    headers = context.metadata.next_hop
    if context.deadline is None:
        return headers
    left = context.deadline - trio.current_time()
    if left <= 0:
        raise DeadlineExceeded("Deadline Exceeded")
    timeout = (b"grpc-timeout", format_timeout(left))
    return [timeout if header[0] == b"grpc-timeout" else header for header in headers]


def _record(call: Call, splice: Splice) -> None:
    """Note what passed, and the status the upstream gave."""
    call.response_passed_on(headers=splice.response_headers is not None, ended=splice.response_ended)
    record = call.record
    record.request_bytes, record.request_messages = splice.request_bytes, splice.request_messages.count
    record.response_bytes, record.response_messages = splice.response_bytes, splice.response_messages.count
    if not splice.response_ended or splice.response_headers is None:
        return
    last = dict(splice.response_trailers or splice.response_headers)
    status = parse_status(last.get(b"grpc-status"))
    if status is not None:
        record.status, record.origin = status, "upstream"
        record.detail = decode_grpc_message(last.get(b"grpc-message", b""))
        return
    http_status = int(splice.response_headers[0][1])
    record.status, record.origin = status_from_http(http_status), f"HTTP {http_status}"
    record.detail = "the upstream sent no grpc-status"
