"""A proxy that gives a few calls to a new version, the canary, and the others to the present one.

    python examples/canary.py 127.0.0.1:8080 127.0.0.1:50051 127.0.0.1:50052 5

The last address is the canary's, and the number its share in percent. A user (`x-user` in the metadata) always gets the
same version, since it follows from the name; calls that name none are shared out by chance. Whoever wants to see the
canary says `x-canary: yes`.
"""

import random
import signal
import sys
import zlib

import trio

from rawgrpc_proxy import CallContext, CallLog, Pool, Server, Target, transparent_handler


def wants_canary(context: CallContext, percent: float) -> bool:
    """Whether this call is one for the canary."""
    if context.metadata.get("x-canary") == "yes":
        return True
    user = context.metadata.get("x-user")
    # The hash is a number that is the same for the same name, in each process and after each restart.
    place = random.random() if user is None else zlib.crc32(str(user).encode()) / 2**32  # noqa: S311  # no secret
    return 100 * place < percent


async def main(listen: str, stable: str, canary: str, percent: float) -> None:
    """Serve until SIGTERM or SIGINT; running calls have half a minute then."""
    log = CallLog()  # each line names the upstream that the call went to
    async with Pool(observer=log) as pool:
        to_stable, to_canary = pool.target(stable), pool.target(canary)

        def director(context: CallContext, _method: str) -> tuple[CallContext, Target]:
            return context, to_canary if wants_canary(context, percent) else to_stable

        server = Server(unknown_service_handler=transparent_handler(director), observer=log)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                print("listening on", await nursery.start(server.serve, listen), flush=True)
                await anext(signals)
                server.stop(grace_s=30)


if __name__ == "__main__":
    if len(sys.argv) <= 4:
        sys.exit(__doc__)
    trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]))
