"""`HedgedStreams`: several upstream streams as one, to which a request goes until it is known which of them counts."""

from typing import Protocol

from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.http2.stream_state import CreditSource
from rawgrpc_proxy.net.stream import Stream


class HedgedCall(Protocol):
    """Who has the streams. Called from the middle of a reader's work: must neither wait nor raise."""

    def streams(self) -> list[Stream]:
        """The streams that the request goes to."""

    def first_counts(self) -> Stream:
        """The request is too long to be kept: it goes on to the first attempt alone. Answers its stream."""


class HedgedStreams(Stream):
    """Stands for the streams of all attempts."""

    __slots__ = ("_hedged_call",)

    def __init__(self, call: HedgedCall, first: Stream) -> None:
        super().__init__(first.connection, first.id, first.headers)
        self._hedged_call = call

    def send_headers(self, headers: Headers, end_stream: bool = False) -> None:
        for stream in self._hedged_call.streams():
            stream.send_headers(headers, end_stream)

    def send_data(
        self, data: Data, end_stream: bool = False, source: CreditSource | None = None, credit: int = 0
    ) -> None:
        if source is not None:
            self._hedged_call.first_counts().send_data(data, end_stream, source, credit)
            return
        for stream in self._hedged_call.streams():
            stream.send_data(data, end_stream)

    def reset(self, error_code: int) -> None:
        for stream in self._hedged_call.streams():
            stream.reset(error_code)
