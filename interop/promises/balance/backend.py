"""Server in grpcio's asyncio API that says who it is: `Who` answers its port, after a pause if it is to be slow."""

from __future__ import annotations

import argparse
import asyncio
import signal

import grpc
import grpc.aio


async def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pause-ms", type=float, default=0)
    given = parser.parse_args()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])

    async def who(request: bytes, context: object) -> bytes:
        if given.pause_ms:
            await asyncio.sleep(given.pause_ms / 1000)
        return b"%d" % port

    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Who": grpc.unary_unary_rpc_method_handler(who),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("interop.Balance", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    await stop.wait()
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(main())
