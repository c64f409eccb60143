"""The messages of grpc.health.v1.Health, without protobuf."""

import pytest

from rawgrpc_proxy import RpcError, Status
from rawgrpc_proxy.grpc.health import read_service, request_for


@pytest.mark.parametrize("service", ["", "a.B", "ä", "x" * 127])
def test_a_request_is_read_as_it_was_written(service: str) -> None:
    assert read_service(request_for(service)) == service


def test_the_last_of_two_names_counts() -> None:
    assert read_service(request_for("a") + request_for("b")) == "b"


NO_REQUESTS = [
    b"\x0a",
    b"\x0a\x05a",
    b"\x08\x01",
    b"\x0a\x80",
    b"\x0a\x02\xff\xfe",
    b"\x0a" + b"\xff" * 11,
    b"\x0a" + b"\xff" * 4_000_000,  # a number without end, to be refused at once
]


@pytest.mark.parametrize("payload", NO_REQUESTS, ids=range(len(NO_REQUESTS)))
def test_what_is_no_request_is_an_error(payload: bytes) -> None:
    with pytest.raises(RpcError, match="is no grpc") as caught:
        read_service(payload)
    assert caught.value.status == Status.INTERNAL
