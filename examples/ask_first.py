"""A proxy that asks another service before it lets a call through: whether this caller may have that method.

    python examples/ask_first.py 127.0.0.1:8080 127.0.0.1:50050 127.0.0.1:50051

The first address is the proxy's own, the second that of the service which is asked, the third the upstream's. Asked is
`/com.example.Access/May`: it takes a StringValue, the method, with the caller's `authorization` in the metadata, and
answers a BoolValue. No means PERMISSION_DENIED; no answer within a second, UNAVAILABLE.
"""

import signal
import sys

import trio
from google.protobuf.wrappers_pb2 import BoolValue, StringValue

from rawgrpc_proxy import (
    CallContext,
    CallLog,
    Client,
    Pool,
    RpcError,
    Server,
    Status,
    Target,
    codec,
    transparent_handler,
)


async def main(listen: str, access: str, upstream: str) -> None:
    """Serve until SIGTERM or SIGINT; running calls have half a minute then."""
    log = CallLog()
    async with Pool(observer=log) as pool, Client(pool.target(access), codec=codec(), timeout=1) as client:
        target = pool.target(upstream)

        # Cancelled if the caller gives up, and then the question is, too.
        async def director(context: CallContext, method: str) -> tuple[CallContext, Target]:
            who = context.metadata.get("authorization")
            asked = client.unary_unary(
                "/com.example.Access/May",
                StringValue(value=method),
                BoolValue,
                metadata=() if who is None else {"authorization": who},
            )
            try:
                allowed = (await asked).value
            except RpcError as error:
                raise RpcError(Status.UNAVAILABLE, "nobody can say who may call this") from error
            if not allowed:
                raise RpcError(Status.PERMISSION_DENIED, f"{method} is not for you")
            return context, target

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
