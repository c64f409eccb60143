"""The messages of grpc.health.v1.Health, without protobuf."""

import pytest

from rawgrpc_proxy import RpcError, Status
from rawgrpc_proxy.grpc.health import ServingStatus, read_service, read_status, request_for, response_of


@pytest.mark.parametrize("service", ["", "a.B", "ä", "x" * 127, "x" * 128, "x" * 16_383])
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


@pytest.mark.parametrize("status", ServingStatus)
def test_a_response_is_read_as_it_was_written(status: ServingStatus) -> None:
    assert read_status(response_of(status)) == status


RESPONSES = [
    (b"", ServingStatus.UNKNOWN),
    (b"\x08\x02\x08\x01", ServingStatus.SERVING),
    (b"\x08\x09", ServingStatus.UNKNOWN),
    (b"\x10\x02\x08\x01\x1a\x02\x08\x02", ServingStatus.SERVING),
    (b"\x08\x01\x25abcd\x29abcdefgh", ServingStatus.SERVING),
]


@pytest.mark.parametrize(("payload", "status"), RESPONSES, ids=range(len(RESPONSES)))
def test_of_a_response_the_last_status_counts_and_fields_of_others_do_not(
    payload: bytes, status: ServingStatus
) -> None:
    assert read_status(payload) == status


@pytest.mark.parametrize(
    "payload", [b"\x08", b"\x0a\x05a", b"\x25abc", b"\x0b", b"\x08" + b"\xff" * 1_000_000]
)
def test_what_is_no_response_is_an_error(payload: bytes) -> None:
    with pytest.raises(RpcError, match="is no grpc") as caught:
        read_status(payload)
    assert caught.value.status == Status.INTERNAL
