"""Caller in grpclib: see ../python/caller.py."""

from interop.peers.grpclib.client import Client
from interop.peers.python.caller import run_async

if __name__ == "__main__":
    run_async(Client)
