"""What the upstream is asked: the headers of a call as its director has left them, with the time that is left.

What it does not do: choose the upstream, or send anything. The invariant: only a list that makes a request goes out.
"""

import trio

from rawgrpc_proxy.call import Call, CallContext
from rawgrpc_proxy.errors import DeadlineExceeded
from rawgrpc_proxy.grpc.metadata import TE_TRAILERS, Metadata
from rawgrpc_proxy.grpc.timeout import format_timeout
from rawgrpc_proxy.http2.field_rules import request_problem
from rawgrpc_proxy.http2.headers import Headers


def upstream_headers(call: Call, context: CallContext) -> Headers:
    """The headers for the upstream, with the time that is left.

    Raises `DeadlineExceeded` if none is left, and `TypeError` or `ValueError` if what the director answered as
    metadata makes no request.
    """
    asked, metadata = call.context, context.metadata
    if metadata is not asked.metadata:
        _check(metadata)
    headers = metadata.next_hop
    if call.deadline is None:
        if asked.deadline is None:
            return headers
        # The director has taken it away.
        return [header for header in headers if header[0] != b"grpc-timeout"]
    left = call.deadline - trio.current_time()
    if left <= 0:
        raise DeadlineExceeded("Deadline Exceeded")
    timeout = (b"grpc-timeout", format_timeout(left))
    told = [timeout if header[0] == b"grpc-timeout" else header for header in headers]
    if context is not asked and timeout not in told:
        # The place that the protocol gives it.
        told.insert(told.index(TE_TRAILERS) + 1, timeout)
    return told


def _check(metadata: object) -> None:
    """See that a director's metadata make a request: an upstream may end the whole connection over one that is none."""
    if not isinstance(metadata, Metadata):
        raise TypeError(f"the metadata of a call are a Metadata, not {type(metadata).__name__}")
    if metadata.by_hand:
        problem = request_problem(metadata.next_hop)
        if problem is not None:
            raise ValueError(
                f"the director's metadata make no request: {problem}; start from context.metadata and change it with "
                "with_value, with_added and without"
            )
