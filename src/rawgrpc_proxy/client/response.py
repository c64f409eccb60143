"""`ResponseInbox`: holds what comes of a response until the call takes it, and says what its end means.

What it does not do: read messages. The invariants: the place of the call is given back when its stream is over, or, if
the call may be made once more, with the call; a response that was complete is not spoilt by what comes after it.

Owns: "Responses" of the gRPC over HTTP/2 specification, for those who receive them.
"""

import trio

from rawgrpc_proxy.client.places import Place
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.custom_metadata import Value, response_headers_of
from rawgrpc_proxy.errors import RpcError, Side
from rawgrpc_proxy.grpc.metadata import Metadata
from rawgrpc_proxy.grpc.status import decode_grpc_message, http_cause, parse_status, status_from_http
from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.http2.headers import FixedHeaders, HeaderList, Headers
from rawgrpc_proxy.net.inbox import Creditor, Inbox
from rawgrpc_proxy.net.local_sender import LocalSender
from rawgrpc_proxy.net.stream import Stream

_GRPC = b"application/grpc"
_NONE = FixedHeaders()
_SHOWN = 100


class ResponseInbox(Inbox):
    """The sink of a stream that the client has opened. Several tasks may wait for what comes."""

    __slots__ = ("headers", "is_closed", "may_be_refused", "place")

    def __init__(self, connection: Creditor, stream_id: int, place: Place) -> None:
        super().__init__(connection, stream_id)
        self.place: Place | None = place
        self.headers: FixedHeaders | None = None
        """The response headers; empty of a response that has but trailers."""
        self.may_be_refused = True
        """Whether the call would be made once more: then its place is kept until another one is found."""
        self.is_closed = False

    def response(self, headers: HeaderList, end_stream: bool) -> None:
        self.headers = _NONE if end_stream else headers
        if not end_stream:
            problem = _of_no_grpc(headers)
            if problem is not None:
                self.failed(problem)
        super().response(headers, end_stream)
        if end_stream:
            self._wake_sender()

    def data(self, data: Data, credit: int, end_stream: bool) -> None:
        if self.error is None:
            super().data(data, credit, end_stream)
            if end_stream:
                self._wake_sender()

    def trailers(self, headers: HeaderList) -> None:
        if self.error is None:
            super().trailers(headers)
            self._wake_sender()

    def failed(self, error: RpcError) -> None:
        if self.error is None:
            super().failed(error)

    def closed(self) -> None:
        self._wake_sender()
        super().closed()
        self.is_closed = True
        if not (self.may_be_refused and self.error is not None and self.error.retry_safe):
            self.release()

    def release(self) -> None:
        """Give the place back, if that has not been done."""
        place, self.place = self.place, None
        if place is not None:
            place.give_back()

    def outcome(self) -> RpcError | None:
        """What the end of the response says, which has come: None if all is well."""
        trailers = self.trailers_received or []
        fields = dict(trailers)
        status = parse_status(fields.get(b"grpc-status"))
        if status is Status.OK:
            return None
        if status is not None:
            message = decode_grpc_message(fields.get(b"grpc-message", b""))
            return _from_upstream(status, message, trailers)
        http_status = fields.get(b":status", b"200")
        if http_status != b"200":
            return _from_http(http_status)
        return _from_upstream(Status.UNKNOWN, "the response has no grpc-status", trailers)

    def check_takes_requests(self) -> None:
        """Raise if nobody will take more of the request: the call has failed, or its response has ended."""
        if self.ended:
            error = self.outcome()
            if error is not None:
                raise error
            raise trio.BrokenResourceError(
                "the server has ended the call with status OK, and reads no more requests"
            )
        if self.error is not None:
            raise self.error

    async def wait_for_headers(self) -> None:
        """Wait until the response has begun. Raises the `RpcError` that came instead."""
        while self.error is None and self.headers is None:
            await self._wait()
        if self.error is not None:
            raise self.error

    async def _wait(self) -> None:
        if self._event is None:
            self._event = trio.Event()
        await self._event.wait()

    def _wake_sender(self) -> None:
        if self.sender is not None:
            self.sender.wake()


class RequestSender(LocalSender):
    """Sends messages of a request, and gives up when the response has ended."""

    __slots__ = ("_response",)

    def __init__(self, stream: Stream, response: ResponseInbox) -> None:
        super().__init__(stream)
        self._response = response

    def check(self) -> None:
        self._response.check_takes_requests()


def _of_no_grpc(headers: HeaderList) -> RpcError | None:
    """Why this is no gRPC response, if it is none; then what follows is a page for people."""
    if headers[0][1] != b"200":
        return _from_http(headers[0][1])
    content_type = next((value for name, value in headers if name == b"content-type"), b"")
    if content_type[: len(_GRPC)] != _GRPC:
        shown = content_type[:_SHOWN].decode("latin-1")
        return _from_upstream(Status.UNKNOWN, f"this is no gRPC response: its content-type is {shown!r}", ())
    return None


def _from_http(http_status: bytes) -> RpcError:
    number = int(http_status)
    return RpcError(
        status_from_http(number),
        f"HTTP status {number}, and no grpc-status",
        side=Side.UPSTREAM,
        origin="http",
        cause=http_cause(number),
    )


def _from_upstream(status: Status, message: str, trailers: "Headers | tuple[()]") -> RpcError:
    """The error, with as much of the trailing metadata as can be metadata."""
    metadata: list[tuple[str, Value]] = []
    for field in trailers:
        if field[0][:1] == b":":
            continue
        try:
            pairs = list(Metadata((field,)))
            response_headers_of(pairs)
        except ValueError:
            continue  # a peer may say anything; `call.trailers` has all of it
        metadata += pairs
    return RpcError(status, message, trailing_metadata=metadata, side=Side.UPSTREAM, origin="upstream")
