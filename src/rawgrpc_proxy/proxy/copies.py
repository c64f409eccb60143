"""`Copies`: several upstream streams as one, to which a call's request goes until it is known which of them counts."""

from typing import Protocol

from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.http2.stream_state import CreditSource
from rawgrpc_proxy.net.stream import Stream


class Copied(Protocol):
    """Who has the streams. Called from the middle of a reader's work: must neither wait nor raise."""

    def copies(self) -> list[Stream]:
        """The streams that the request goes to."""

    def first_counts(self) -> Stream:
        """The request is too long to be kept: it goes on to the first attempt alone. Answers its stream."""


class Copies(Stream):
    """Stands for the streams of all attempts."""

    __slots__ = ("_copied",)

    def __init__(self, copied: Copied, first: Stream) -> None:
        super().__init__(first.connection, first.id, first.headers)
        self._copied = copied

    def send_headers(self, headers: Headers, end_stream: bool = False) -> None:
        for stream in self._copied.copies():
            stream.send_headers(headers, end_stream)

    def send_data(
        self, data: Data, end_stream: bool = False, source: CreditSource | None = None, credit: int = 0
    ) -> None:
        if source is not None:
            self._copied.first_counts().send_data(data, end_stream, source, credit)
            return
        for stream in self._copied.copies():
            stream.send_data(data, end_stream)

    def reset(self, error_code: int) -> None:
        for stream in self._copied.copies():
            stream.reset(error_code)
