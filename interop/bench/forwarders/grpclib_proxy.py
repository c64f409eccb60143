"""A forwarder as a user of grpclib would write it: python grpclib_proxy.py LISTEN_PORT UPSTREAM_PORT.

The library finds handlers in a dict from path to handler, so a dict that has an answer for every path makes a generic
one. Every method is bidirectional, which covers the four shapes of a call; a codec passes messages as the bytes they
are; all calls share one channel.
"""

import asyncio
import sys
from collections.abc import Mapping

from grpclib.client import Channel
from grpclib.client import Stream as ClientStream
from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import CodecBase
from grpclib.metadata import _MetadataLike
from grpclib.server import Server, Stream
from grpclib.utils import graceful_exit

#: Belongs to one hop: the library frames the messages anew.
HOP = frozenset({"content-length"})
#: For a load that opens a thousand connections at once: ten times the default.
BACKLOG = 1000

Bytes = Stream[bytes, bytes]


class RawCodec(CodecBase):
    """Messages are bytes."""

    __content_subtype__ = "proto"

    def encode(self, message: bytes, message_type: object) -> bytes:
        return message

    def decode(self, data: bytes, message_type: object) -> bytes:
        return data


class EveryMethod(dict[str, Handler]):
    """A handler for whatever path is asked for."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def __missing__(self, path: str) -> Handler:
        async def forward(downstream: Bytes) -> None:
            await self._forward(path, downstream)

        handler = self[path] = Handler(forward, Cardinality.STREAM_STREAM, bytes, bytes)
        return handler

    def get(self, path: str, default: object = None) -> Handler:
        return self[path]

    async def _forward(self, path: str, downstream: Bytes) -> None:
        request = self._channel.request(
            path, Cardinality.STREAM_STREAM, bytes, bytes,
            deadline=downstream.deadline, metadata=across(downstream.metadata),
        )  # fmt: skip
        async with request as upstream:
            await upstream.send_request()
            sending = asyncio.create_task(send_requests(downstream, upstream))
            try:
                await upstream.recv_initial_metadata()
                await downstream.send_initial_metadata(metadata=across(upstream.initial_metadata))
                async for message in upstream:
                    await downstream.send_message(message)
                await upstream.recv_trailing_metadata()
                await downstream.send_trailing_metadata(metadata=across(upstream.trailing_metadata))
            finally:
                sending.cancel()


async def send_requests(downstream: Bytes, upstream: ClientStream[bytes, bytes]) -> None:
    """Pass the requests on, to their end."""
    async for message in downstream:
        await upstream.send_message(message)
    await upstream.end()


def across(metadata: Mapping[str, str | bytes] | None) -> _MetadataLike:
    """What of the metadata goes to the other side."""
    return [(key, value) for key, value in (metadata or {}).items() if key not in HOP]


async def main(listen: int, upstream: int) -> None:
    codec = RawCodec()
    async with Channel("127.0.0.1", upstream, codec=codec) as channel:
        server = Server([], codec=codec)
        server._mapping = EveryMethod(channel)  # noqa: SLF001  # grpclib has no other way to answer every method
        with graceful_exit([server]):
            await server.start("127.0.0.1", listen, backlog=BACKLOG)
            await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
