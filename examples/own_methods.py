"""A proxy that answers some methods itself, and passes on all others.

    python examples/own_methods.py 127.0.0.1:8080 127.0.0.1:50051

Its own are `/com.example.Greeter/Hello`, which takes a StringValue and answers one, `/com.example.Greeter/Count`, which
answers a stream of them, and the health service. Messages are protobuf's: pip install 'rawgrpc-proxy[protobuf]'.
"""

import signal
import sys
from collections.abc import AsyncIterator

import trio
from google.protobuf.wrappers_pb2 import Int64Value, StringValue

from rawgrpc_proxy import (
    CallContext,
    CallLog,
    Health,
    Pool,
    RpcError,
    ServedCall,
    Server,
    Status,
    Target,
    transparent_handler,
    unary_stream,
    unary_unary,
)


# One message in, one out. What it raises as RpcError is the call's status; any other error is INTERNAL.
async def hello(request: StringValue, call: ServedCall) -> StringValue:
    """Greet whoever has a name."""
    if not request.value:
        raise RpcError(Status.INVALID_ARGUMENT, "who are you?")
    call.trailing_metadata.append(("x-served-by", "the proxy"))
    return StringValue(value=f"hello {request.value}")


# One message in, many out: an async generator. It waits by itself while its caller does not read on.
async def count(request: StringValue, _call: ServedCall) -> AsyncIterator[Int64Value]:
    """Count the letters."""
    for number, _letter in enumerate(request.value, start=1):
        yield Int64Value(value=number)


async def main(listen: str, upstream: str) -> None:
    """Serve until SIGTERM or SIGINT; running calls have half a minute then."""
    log = CallLog()
    async with Pool(observer=log) as pool:
        target = pool.target(upstream)

        # It is asked about methods that nobody here answers.
        def director(context: CallContext, _method: str) -> tuple[CallContext, Target]:
            return context, target

        server = Server(unknown_service_handler=transparent_handler(director), observer=log)
        server.add_method("/com.example.Greeter/Hello", unary_unary(hello, StringValue))
        server.add_method("/com.example.Greeter/Count", unary_stream(count, StringValue))
        for path, method in Health().methods().items():
            server.add_method(path, method)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                print("listening on", await nursery.start(server.serve, listen), flush=True)
                await anext(signals)
                server.stop(grace_s=30)


if __name__ == "__main__":
    if len(sys.argv) <= 2:
        sys.exit(__doc__)
    trio.run(main, sys.argv[1], sys.argv[2])
