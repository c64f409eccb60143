"""A limit on the proxies of this kind that a call may pass, for proxies that lead to each other in a circle.

Hops are counted in `via` (RFC 9110 §7.6.3), the field that is there to find loops: each proxy adds an entry of its own,
and others', of whatever kind, pass it on. It is off unless asked for, since it changes the metadata of every call.
"""

from collections.abc import Awaitable

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.grpc.metadata import Metadata
from rawgrpc_proxy.proxy.director import Direction, StreamDirector

_FIELD = "via"
_PSEUDONYM = "rawgrpc-proxy"
_ENTRY = f"2.0 {_PSEUDONYM}"


def limit_hops(director: StreamDirector, limit: int) -> StreamDirector:
    """`director`, for calls that have passed fewer than `limit` proxies; the others are FAILED_PRECONDITION.

    Not UNAVAILABLE, which clients are told to try again: nothing but another configuration helps. The director sees the
    metadata with this proxy's entry; one that answers metadata without it takes its proxy out of the count.
    """

    def direct(context: CallContext, method: str) -> Direction | Awaitable[Direction]:
        hops = _hops(context.metadata)
        if hops >= limit:
            raise RpcError(
                Status.FAILED_PRECONDITION,
                f"the call has passed {hops} proxies, and the limit is {limit} (--hop-limit): they lead in a loop",
                origin="proxy",
                cause="hop_limit",
            )
        return director(context.with_metadata(context.metadata.with_added(_FIELD, _ENTRY)), method)

    return direct


def _hops(metadata: Metadata) -> int:
    """How many proxies of this kind have passed the call on."""
    entries = ",".join(str(value) for value in metadata.get_all(_FIELD)).split(",")
    return sum(_PSEUDONYM in entry.split()[1:2] for entry in entries)
