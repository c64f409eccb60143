"""What is done to the trailers of a response, and to a response that is nothing but trailers."""

from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.lab.faults.actions import BadGrpcMessage, DropStatus, DropTrailers, SplitTrailersOnly
from rawgrpc_proxy.lab.faults.fault import Blow

TrailerAction = DropTrailers | SplitTrailersOnly | DropStatus | BadGrpcMessage

_STATUS = (b"grpc-status", b"grpc-message", b"grpc-status-details-bin")
_OF_HEADERS = (b"content-type",)


def changed(
    faults: list[tuple[Blow, TrailerAction]], fields: Headers, *, trailers_only: bool
) -> list[Headers | None]:
    """The header lists to be sent instead of this one; None: empty DATA. Tells what is done."""
    lists: list[Headers | None] = [fields]
    for blow, action in faults:
        last = lists[-1]
        if last is None:
            break
        match action:
            case DropTrailers() if trailers_only:
                lists[-1] = _without_status(last)
            case DropTrailers():
                lists[-1] = None
            case DropStatus():
                lists[-1] = [field for field in last if field[0] not in _STATUS[:2]]
            case BadGrpcMessage(value=value):
                kept = [field for field in last if field[0] != b"grpc-message"]
                lists[-1] = [*kept, (b"grpc-message", value)]
            case SplitTrailersOnly():
                if not trailers_only or len(lists) > 1:
                    continue
                headers = [field for field in last if field[0][:1] == b":" or field[0] in _OF_HEADERS]
                lists = [headers, [field for field in last if field not in headers]]
        blow.tell()
    return lists


def _without_status(fields: Headers) -> Headers:
    return [field for field in fields if field[0] not in _STATUS]
