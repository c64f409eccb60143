"""A forwarder as a user of grpcio would write it: python grpcio_proxy.py LISTEN_PORT UPSTREAM_PORT.

A generic handler takes every method as bidirectional, which covers the four shapes of a call; messages pass as the
bytes they are, for no serializer is given; all calls share one channel.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterable

import grpc
import grpc.aio

#: Belong to one hop: the library writes its own, and frames the messages anew.
HOP = frozenset({"content-length", "user-agent"})

#: For a load that opens ten thousand calls at once, of which the server drops some by default.
ROOM = (("grpc.server.max_pending_requests", 20_000), ("grpc.server.max_pending_requests_hard_limit", 20_000))

Metadata = tuple[tuple[str, str | bytes], ...]
BidiCall = grpc.aio.StreamStreamMultiCallable[bytes, bytes]


class Forwarder(grpc.GenericRpcHandler):
    """Answers every method with what the upstream answers."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._methods: dict[str, BidiCall] = {}

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        method = self._methods.get(details.method)
        if method is None:
            method = self._methods[details.method] = self._channel.stream_stream(details.method)

        async def forward(
            requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
        ) -> AsyncIterator[bytes]:
            call = method(
                requests, timeout=context.time_remaining(), metadata=across(context.invocation_metadata())
            )
            try:
                await context.send_initial_metadata(across(await call.initial_metadata()))
                async for message in call:
                    yield message
                context.set_trailing_metadata(across(await call.trailing_metadata()))
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "", across(error.trailing_metadata()))

        return grpc.stream_stream_rpc_method_handler(forward)


def across(metadata: Iterable[tuple[str, str | bytes]] | None) -> Metadata:
    """What of the metadata goes to the other side."""
    return tuple((key, value) for key, value in metadata or () if key not in HOP)


async def main(listen: str, upstream: str) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{upstream}") as channel:
        server = grpc.aio.server(options=ROOM)
        server.add_generic_rpc_handlers((Forwarder(channel),))
        server.add_insecure_port(f"127.0.0.1:{listen}")
        await server.start()
        await stopping.wait()
        await server.stop(None)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
