"""Caller in grpcio's asyncio API: see ../python/caller.py."""

from interop.peers.grpcio.aio_client import Client
from interop.peers.python.caller import run_async

if __name__ == "__main__":
    run_async(Client)
