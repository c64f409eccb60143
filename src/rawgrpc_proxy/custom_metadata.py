"""Custom metadata as users write it, keys and values: which gRPC allows, and the header that each becomes.

What it does not do: read what peers have sent (`grpc/metadata.py`). The invariant: what `header_of` answers can be
sent as it is.

Owns: "Custom-Metadata" of the gRPC over HTTP/2 specification, as far as it binds those who write it.
"""

import binascii
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

Value = str | bytes
"""What metadata holds: `bytes` under a key that ends in "-bin", `str` under any other."""

# RFC 9113 §8.2.2 forbids all of these in HTTP/2 but `te`; that one is between two neighbours, and the proxy
# sends its own.
HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade")
)

_OF_A_RESPONSE = frozenset((b"content-type", b"grpc-status", b"grpc-message"))
"""What a response says once, and by other means than metadata."""

_KEY = re.compile(r"[0-9a-z_.-]+")
_ASCII_VALUE = re.compile(r"[ -~]*")


def header_of(key: str, value: Value) -> tuple[bytes, bytes]:
    """The header for a key and a value that come from a user.

    Raises `TypeError` for a key that is no `str`, and for a value that is not `bytes` under a "-bin" key or not `str`
    elsewhere; `ValueError` for a key or value that gRPC forbids.
    """
    if not isinstance(key, str):
        raise TypeError(f"a metadata key is str, not {type(key).__name__}")
    key = key.lower()
    if key.startswith(":"):
        raise ValueError(
            f"{key} exists once and is not custom metadata; set it with with_value({key!r}, ...)"
        )
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a metadata key: {key!r}; a key is made of letters, digits, '_', '-' and '.'")
    name = key.encode()
    if name in HOP_BY_HOP:
        raise ValueError(f"{key!r} concerns one connection only and cannot be metadata of a call")
    if not key.endswith("-bin"):
        return name, checked_text(key, value).encode()
    if not isinstance(value, bytes):
        raise TypeError(f"the key {key!r} ends in '-bin', so its value is bytes, not {type(value).__name__}")
    # The specification asks for base64 without padding from those who write it.
    return name, binascii.b2a_base64(value, newline=False).rstrip(b"=")


def headers_of(pairs: Mapping[str, Value] | Iterable[tuple[str, Value]]) -> list[tuple[bytes, bytes]]:
    """The headers for these keys and values, in order. Errors as in `header_of`, `TypeError` for what is no pair."""
    headers = []
    given: Iterable[Any] = pairs.items() if isinstance(pairs, Mapping) else pairs
    for pair in given:
        if not isinstance(pair, tuple | list) or len(pair) != 2:  # noqa: PLR2004
            raise TypeError(f"metadata is made of pairs (key, value), and a {type(pair).__name__} is none")
        headers.append(header_of(*pair))
    return headers


def response_headers_of(
    pairs: Mapping[str, Value] | Iterable[tuple[str, Value]],
) -> list[tuple[bytes, bytes]]:
    """As `headers_of`, for a response: its status, message and content-type are no metadata (`ValueError`)."""
    headers = headers_of(pairs)
    for name, _ in headers:
        if name in _OF_A_RESPONSE:
            raise ValueError(
                f"{name.decode()!r} cannot be metadata of a response: the proxy writes it itself"
            )
    return headers


def checked_text(key: str, value: Value) -> str:
    """The value, if it can be sent as text. Errors as in `header_of`."""
    if not isinstance(value, str):
        raise TypeError(
            f"the value of {key!r} is str, not {type(value).__name__}; bytes need a key that ends in '-bin'"
        )
    if not _ASCII_VALUE.fullmatch(value):
        raise ValueError(
            f"the value of {key!r} has characters outside printable ASCII; any bytes can go under '-bin' keys"
        )
    if value != value.strip():
        # RFC 9113 §8.2.1: a strict peer resets the stream over this.
        raise ValueError(f"the value of {key!r} begins or ends with a space, which HTTP/2 forbids")
    return value
