"""Secrets in metadata are known by their names, and nothing of them is shown."""

import pytest

from rawgrpc_proxy.lab.redact import REDACTED, Redactor


@pytest.mark.parametrize(
    "name", ["authorization", "cookie", "set-cookie", "x-api-key", "X-Auth-Token", "my-client-secret-bin"]
)
def test_usual_secrets_are_left_out(name: str) -> None:
    assert Redactor().shown([(name.encode(), b"s3cr3t")]) == [(name, REDACTED)]


def test_other_fields_are_shown_as_they_are() -> None:
    fields = [(b":path", b"/a/b"), (b"grpc-timeout", b"1S"), (b"x-user", b"\xe4")]
    assert Redactor().shown(fields) == [(":path", "/a/b"), ("grpc-timeout", "1S"), ("x-user", "ä")]


def test_more_names_can_be_given_and_everything_can_be_shown() -> None:
    assert Redactor(more=["X-User"]).shown([(b"x-user", b"alice")]) == [("x-user", REDACTED)]
    assert Redactor(show_all=True).shown([(b"cookie", b"a=b")]) == [("cookie", "a=b")]
