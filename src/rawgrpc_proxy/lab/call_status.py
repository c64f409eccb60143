"""The status of a call, as a gRPC client makes it out of what it has seen of the stream."""

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.grpc.status import parse_status, status_from_http, status_from_reset
from rawgrpc_proxy.http2.frames import GOAWAY
from rawgrpc_proxy.lab.events import Sender, Stream


def status_seen(
    stream: Stream, sender: Sender | None, frame_type: int | None, error_code: int | None
) -> Status:
    """Of a stream that was ended by this frame; no `sender`: the link has closed."""
    if stream.grpc_status is not None:
        return parse_status(str(stream.grpc_status).encode()) or Status.OK
    if sender is None or frame_type == GOAWAY:
        return Status.UNAVAILABLE
    if error_code is not None:
        return Status.CANCELLED if sender is Sender.CLIENT else status_from_reset(error_code)
    return status_from_http(stream.http_status or 200)
