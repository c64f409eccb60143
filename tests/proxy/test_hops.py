"""The limit on proxies that a call may pass."""

import pytest

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.grpc.metadata import Metadata
from rawgrpc_proxy.proxy.director import Direction
from rawgrpc_proxy.proxy.hops import limit_hops


def asked(limit: int, *via: bytes) -> Metadata:
    """The metadata that the director sees of a call with these values of `via`."""
    seen: list[CallContext] = []

    def director(context: CallContext, _method: str) -> Direction:
        seen.append(context)
        raise RpcError(Status.ABORTED)

    metadata = Metadata([(b":path", b"/p.S/M"), *((b"via", value) for value in via)])
    with pytest.raises(RpcError) as refused:
        limit_hops(director, limit)(CallContext(method="/p.S/M", metadata=metadata, peer="unix:"), "/p.S/M")
    if not seen:
        raise refused.value
    return seen[0].metadata


def test_each_proxy_adds_itself_and_keeps_what_others_have_added() -> None:
    assert asked(1).get_all("via") == ["2.0 rawgrpc-proxy"]
    assert asked(1, b"1.1 edge").get_all("via") == ["1.1 edge", "2.0 rawgrpc-proxy"]


@pytest.mark.parametrize(
    "via",
    [
        (b"2.0 rawgrpc-proxy", b"2.0 rawgrpc-proxy"),
        (b"2.0 rawgrpc-proxy, 2.0 rawgrpc-proxy (a comment)",),
        (b"1.1 edge,2.0 rawgrpc-proxy", b"2.0 rawgrpc-proxy"),
    ],
)
def test_a_call_that_has_passed_as_many_as_it_may_is_refused_and_not_to_be_tried_again(
    via: tuple[bytes, ...],
) -> None:
    assert asked(3, *via).get_all("via")[-1] == "2.0 rawgrpc-proxy"
    with pytest.raises(RpcError, match="has passed 2 proxies, and the limit is 2") as refused:
        asked(2, *via)
    assert refused.value.status is Status.FAILED_PRECONDITION


@pytest.mark.parametrize(
    "via", [b"", b",", b"rawgrpc-proxy", b"1.1 rawgrpc-proxy-2", b"2.0 other (rawgrpc-proxy)"]
)
def test_what_names_no_proxy_of_this_kind_is_not_counted(via: bytes) -> None:
    asked(1, via)
