"""A proxy that writes what passes as JSON Lines: each call's begin, each message as it passes, and each call's end.

    python examples/tap_to_json.py 127.0.0.1:8080 127.0.0.1:50051 > calls.jsonl
    jq -r 'select(.event == "end") | [.method, .status, .ended_by] | @tsv' calls.jsonl

The fields are those of docs/tap.md, and what is in messages is guessed, without a .proto. Secrets in metadata are left
out. `rawgrpc-proxy tap -o FILE` does the same; this is the place to start from if you want it otherwise.
"""

import signal
import sys

import trio

from rawgrpc_proxy import CallContext, Pool, Server, Target, transparent_handler
from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.lab import Filter, Rows, Views, guessed, json_of


async def main(listen: str, upstream: str) -> None:
    """Serve until SIGTERM or SIGINT; running calls have half a minute then."""
    # Events become rows, and each row a line (json_of ends it). Nothing here may wait for long: it is called where
    # calls are passed on.
    rows = Rows(
        lambda row: print(json_of(row), end="", flush=True),
        mode="messages",  # or "frames"
        filters=[Filter.parse("method!=/grpc.health.v1.Health/*")],
        decode=guessed,
    )
    # A tap of callers' connections; those to the upstream carry the same calls once more.
    tap = Views(rows.tell, sides=[Side.DOWNSTREAM], payload_bytes=4096)
    async with Pool() as pool:
        target = pool.target(upstream)

        def director(context: CallContext, _method: str) -> tuple[CallContext, Target]:
            return context, target

        server = Server(unknown_service_handler=transparent_handler(director), tap=tap)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                print("listening on", await nursery.start(server.serve, listen), file=sys.stderr, flush=True)
                await anext(signals)
                server.stop(grace_s=30)


if __name__ == "__main__":
    if len(sys.argv) <= 2:
        sys.exit(__doc__)
    trio.run(main, sys.argv[1], sys.argv[2])
