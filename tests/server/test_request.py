"""What request headers ask for: the method, the deadline, and whether it is a gRPC call."""

import pytest

from rawgrpc_proxy.server.request import Asked

REQUEST = {
    b":method": b"POST",
    b":scheme": b"http",
    b":path": b"/a.B/C",
    b":authority": b"x",
    b"te": b"trailers",
    b"content-type": b"application/grpc",
}


def asked(**changes: bytes) -> Asked:
    fields = {name.encode().replace(b"_", b"-"): value for name, value in changes.items()}
    return Asked(
        [
            *(
                REQUEST | {b":" + name if b":" + name in REQUEST else name: v for name, v in fields.items()}
            ).items()
        ]
    )


def test_a_call_names_its_method_and_has_no_deadline_of_itself() -> None:
    call = asked()
    assert (call.method, call.malformed, call.refusal, call.timeout_s) == ("/a.B/C", False, None, None)
    assert call.metadata[":authority"] == "x"


@pytest.mark.parametrize(
    ("timeout", "seconds"), [(b"1S", 1.0), (b" 250m ", 0.25), (b"123456789S", None), (b"soon", None)]
)
def test_a_timeout_is_a_deadline_if_it_can_be_read(timeout: bytes, seconds: float | None) -> None:
    assert asked(grpc_timeout=timeout).timeout_s == seconds


@pytest.mark.parametrize("subtype", [b"", b"+proto", b"+json", b";charset=utf-8"])
def test_every_subtype_of_grpc_is_a_call(subtype: bytes) -> None:
    assert asked(content_type=b"application/grpc" + subtype).refusal is None


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"method": b"GET"}, 405),
        ({"content_type": b"application/json"}, 415),
        ({"content_type": b"application/grpcx"}, 415),
        ({"scheme": b"ftp"}, 400),
        ({"authority": b"user@host"}, 400),
    ],
)
def test_what_is_no_grpc_call_is_refused_with_an_http_status(changes: dict[str, bytes], status: int) -> None:
    refusal = asked(**changes).refusal
    assert refusal is not None
    assert refusal[0] == status


def test_a_path_that_names_no_method_is_malformed() -> None:
    assert asked(path=b"/a.B/../C").malformed
    assert asked(path=b"/api/v1/a.B/C").malformed is False
