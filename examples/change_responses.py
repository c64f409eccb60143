"""A proxy at the edge: what backends say of themselves stays inside, and each response names the edge it came through.

    python examples/change_responses.py 127.0.0.1:8080 127.0.0.1:50051 edge-1

Of responses `server` and `x-internal-shard` are removed, from headers and from trailers, and `x-served-by` is set;
messages and statuses pass as they are. Calls without a deadline get one.
"""

import signal
import sys

import trio

from rawgrpc_proxy import CallContext, CallLog, Pool, ResponseChanges, Server, Target, transparent_handler

LONGEST_S = 30


async def main(listen: str, upstream: str, edge: str) -> None:
    """Serve until SIGTERM or SIGINT; running calls have half a minute then."""
    log = CallLog()
    # Made once: it is checked here, and the same for all calls.
    changes = ResponseChanges(remove=["server", "x-internal-shard"], set_values={"x-served-by": edge})
    async with Pool(observer=log) as pool:
        target = pool.target(upstream)

        def director(context: CallContext, _method: str) -> tuple[CallContext, Target]:
            if context.deadline is None:
                context = context.with_timeout(LONGEST_S)
            return context.with_response_changes(changes), target

        server = Server(unknown_service_handler=transparent_handler(director), observer=log)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                print("listening on", await nursery.start(server.serve, listen), flush=True)
                await anext(signals)
                server.stop(grace_s=30)


if __name__ == "__main__":
    if len(sys.argv) <= 3:
        sys.exit(__doc__)
    trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3])
