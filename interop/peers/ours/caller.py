"""Caller in rawgrpc_proxy's own `Client`: see ../python/caller.py."""

from interop.peers.ours.client import open_client
from interop.peers.python.caller import run_trio

if __name__ == "__main__":
    run_trio(open_client)
