"""Caller in grpcio's synchronous API: see ../python/caller.py."""

from interop.peers.grpcio.client import Client
from interop.peers.python.caller import run_sync

if __name__ == "__main__":
    run_sync(Client)
