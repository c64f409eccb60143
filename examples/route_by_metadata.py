"""A proxy that routes by metadata: a call goes to the cluster that its `x-env` names, and to the first one without it.

    python examples/route_by_metadata.py 127.0.0.1:8080 prod=127.0.0.1:50051 staging=127.0.0.1:50052

`x-env` goes no further. What names none of them is refused here, before anything is sent upstream.
"""

import signal
import sys

import trio

from rawgrpc_proxy import CallContext, CallLog, Pool, RpcError, Server, Status, Target, transparent_handler


async def main(listen: str, clusters: dict[str, str]) -> None:
    """Serve until SIGTERM or SIGINT; running calls have half a minute then."""
    log = CallLog()
    async with Pool(observer=log) as pool:
        targets = {name: pool.target(address) for name, address in clusters.items()}
        default = next(iter(targets))

        # Called once for each call, in the event loop: it must not block.
        def director(context: CallContext, _method: str) -> tuple[CallContext, Target]:
            name = context.metadata.get("x-env", default)
            if name not in targets:
                raise RpcError(Status.INVALID_ARGUMENT, f"x-env is none of {', '.join(targets)}")
            return context.with_metadata(context.metadata.without("x-env")), targets[name]

        server = Server(unknown_service_handler=transparent_handler(director), observer=log)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                print("listening on", await nursery.start(server.serve, listen), flush=True)
                await anext(signals)
                server.stop(grace_s=30)


if __name__ == "__main__":
    if len(sys.argv) <= 2:
        sys.exit(__doc__)
    trio.run(main, sys.argv[1], dict(pair.split("=", 1) for pair in sys.argv[2:]))
