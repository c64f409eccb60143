"""What came of a call: the error its caller is told, and what its record says.

What it does not do: end anything.
"""

import trio

from rawgrpc_proxy.call import Call
from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.errors import DeadlineExceeded, RpcError, StreamReset
from rawgrpc_proxy.grpc.messages import count_of, is_exact
from rawgrpc_proxy.grpc.status import decode_grpc_message, http_cause, parse_status, status_from_http
from rawgrpc_proxy.http2.headers import HeaderList
from rawgrpc_proxy.proxy.splice import Splice

_SHORT_MESSAGE = 64
"""Longer ones are not kept with the list they came in: decoded they may take four times as much, or more."""


def settled(error: RpcError, deadline: float | None) -> RpcError:
    """The caller's error for an upstream's. An upstream that watches the deadline too cancels the stream then."""
    if (
        isinstance(error, StreamReset)
        and error.error_code == ErrorCode.CANCEL
        and deadline is not None
        and trio.current_time() >= deadline
    ):
        return DeadlineExceeded("Deadline Exceeded")
    return error


def note_outcome(call: Call, splice: Splice) -> None:
    """Note what passed, and the status the upstream gave."""
    call.response_passed_on(headers=splice.http_status is not None, ended=splice.response_ended)
    record = call.record
    record.request_bytes, record.response_bytes = splice.request_bytes, splice.response_bytes
    requests, responses = splice.request_messages, splice.response_messages
    if type(requests) is int and type(responses) is int:  # as of most, without a call for each
        record.request_messages, record.response_messages = requests, responses
    elif requests is not None and responses is not None:
        record.request_messages, record.response_messages = count_of(requests), count_of(responses)
        record.messages_are_exact = is_exact(requests) and is_exact(responses)
    if not splice.response_ended or splice.http_status is None:
        return
    last = splice.response_trailers
    status, message = (None, None) if last is None else last.once(_told)
    if last is not None and status is not None:
        if message is None:
            message = decode_grpc_message(dict(last)[b"grpc-message"])
        record.status, record.origin, record.detail = status, "upstream", message
        return
    record.detail = "the upstream sent no grpc-status"
    http_status = int(splice.http_status)
    record.status, record.origin = status_from_http(http_status), "http"
    record.cause = http_cause(http_status)


def telling_status(call: Call, splice: Splice) -> Status | None:
    """The status of a call whose time tells how fast its upstream is, after `note_outcome`; None for all others.

    OK, of one message for one message: how long a stream takes is its peers' affair. DEADLINE_EXCEEDED: too slow. With
    several attempts there were pauses, too.
    """
    if splice.response_ended:
        record = call.record
        is_unary = record.request_messages == record.response_messages == 1
        return Status.OK if is_unary and record.status is Status.OK and record.repeats is None else None
    if call.deadline is not None and trio.current_time() >= call.deadline:
        return Status.DEADLINE_EXCEEDED
    return None


def _told(last: HeaderList) -> tuple[Status | None, str | None]:
    """The status in a list that ends a response, and its message; None if it is a long one."""
    fields = dict(last)
    message = fields.get(b"grpc-message", b"")
    text = decode_grpc_message(message) if len(message) <= _SHORT_MESSAGE else None
    return parse_status(fields.get(b"grpc-status")), text
