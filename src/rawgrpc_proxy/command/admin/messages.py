"""What is asked over HTTP and what is answered, as values; how they become bytes is `http.py`'s."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import attrs


@attrs.frozen(kw_only=True)
class Request:
    """One request, complete."""

    method: str
    path: str
    """As it came, percent escapes included, without the query."""
    query: str = ""
    """What stands behind `?`."""
    host: str | None = None
    """Whom it was sent to: the target's authority or the field Host, with its port if there is one. HTTP/1.0 may have
    none."""
    fields: Mapping[str, str] = attrs.field(factory=dict)
    """By their names in lower case; values of one name are joined by commas (RFC 9110 §5.3)."""
    peer: str = ""
    """`HOST:PORT`, or `unix:`."""
    body: bytes = b""
    """Its content."""


class Stream(Protocol):
    """Content without an end in sight. The connection ends with it."""

    async def run(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Send pieces until cancelled, or until all is said. `send` waits for the socket."""

    def close(self) -> None:
        """Called once, whether it has run or not. Must not wait, or raise."""


@attrs.frozen(kw_only=True)
class Response:
    """What is answered."""

    status: int = 200
    fields: Mapping[str, str] = attrs.field(factory=dict)
    """Content-Length, Date and Connection are added."""
    body: bytes | Stream = b""


class Refused(Exception):
    """The request is answered with an error, of which the text says what to do instead."""

    def __init__(self, status: int, text: str, **fields: str) -> None:
        """Give it a status, words, and fields such as `Allow`."""
        super().__init__(text)
        self.status = status
        self.text = text
        self.fields = fields

    def response(self) -> Response:
        """Answer what the peer gets."""
        return text_response(self.text, status=self.status, fields=self.fields)


def text_response(text: str, *, status: int = 200, fields: Mapping[str, str] | None = None) -> Response:
    """Answer these words."""
    return Response(
        status=status,
        fields={"Content-Type": "text/plain; charset=utf-8", **(fields or {})},
        body=(text + "\n").encode("utf-8", "backslashreplace"),
    )


OnFault = Callable[[str, BaseException], None]
"""Hears what went wrong on our side: where, and the exception. Must not wait, or raise."""
