"""Records calls, plays them again to a new version of the server, and says what has changed.

    python examples/record_and_replay.py recording.jsonl

All of it is in this one program, and in memory: two versions of a server, the proxy that records, and a client. With
real ones `rawgrpc-proxy record -o FILE` stands before the server, and `rawgrpc-proxy replay FILE --to ADDRESS` calls
the new one (docs/recording.md). A file is never written over: give a name that is free.
"""

import sys
from pathlib import Path

import trio

from rawgrpc_proxy import RpcError, ServedCall, Server, Status, identity_codec, unary_unary
from rawgrpc_proxy.lab import Recorder
from rawgrpc_proxy.testing import in_memory, replayed

PRICES = {b"apple": b"10", b"pear": b"20"}


def shop(prices: dict[bytes, bytes]) -> Server:
    """A server with one method: the price of an item."""

    async def price(item: bytes, _call: ServedCall) -> bytes:
        if item not in prices:
            raise RpcError(Status.NOT_FOUND, f"no {item.decode()} today")
        return prices[item]

    server = Server(codec=identity_codec())
    server.add_method("/shop.Shop/Price", unary_unary(price, bytes))
    return server


async def main(file: Path) -> None:
    """Record, and replay twice."""
    # The recorder is a tap: it sees each frame of the proxy's connections, and a thread writes it to the file.
    with Recorder(file) as recorder:
        async with in_memory(shop(PRICES), taps=[recorder]) as house:
            for item in (b"apple", b"pear", b"plum"):
                try:
                    answer = (await house.client.unary_unary("/shop.Shop/Price", item)).decode()
                except RpcError as error:
                    answer = str(error)
                print(f"recorded: {item.decode()}? {answer}")

    # The same version: the same answers, so there is nothing to tell.
    print("the same version:", await replayed(file, shop(PRICES)) or "no difference")

    print("the next version:")
    for difference in await replayed(file, shop(PRICES | {b"pear": b"25", b"plum": b"7"})):
        print("  " + difference)


if __name__ == "__main__":
    if len(sys.argv) <= 1:
        sys.exit(__doc__)
    trio.run(main, Path(sys.argv[1]))
