"""Server in grpcio's asyncio API for the long runs: messages are bytes, and nothing is looked at.

`Echo` and `Load` answer, `Slow` answers after a minute, `Chat` echoes a stream, `Stream` sends as many messages as the
request says. `Watch` sends one message, and then nothing until it is cancelled; how many of those are open is printed
when it changes.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import AsyncIterator

import grpc
import grpc.aio

SLOW_SECONDS = 60.0
MESSAGE = bytes(1024)

open_watches = 0


async def echo(request: bytes, context: object) -> bytes:
    return request


async def slow(request: bytes, context: object) -> bytes:
    await asyncio.sleep(SLOW_SECONDS)
    return request


async def stream(request: bytes, context: object) -> AsyncIterator[bytes]:
    for _ in range(int(request)):
        yield MESSAGE


async def chat(requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


async def watch(request: bytes, context: object) -> AsyncIterator[bytes]:
    global open_watches  # noqa: PLW0603  # one number of the whole program
    open_watches += 1
    print(f"watches {open_watches}", flush=True)
    try:
        yield request
        await asyncio.Event().wait()
    finally:
        open_watches -= 1
        print(f"watches {open_watches}", flush=True)


async def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Load": grpc.unary_unary_rpc_method_handler(echo),
        "Slow": grpc.unary_unary_rpc_method_handler(slow),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "Watch": grpc.unary_stream_rpc_method_handler(watch),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("interop.Bytes", handlers),))
    port = server.add_insecure_port(f"127.0.0.1:{given.port}")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    await stop.wait()
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(main())
