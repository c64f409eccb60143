"""For tests of gRPC clients and servers: the proxy in the middle, which sees what passes. See docs/testing.md.

`ProxyInThread` is for tests that are no trio programs; with pytest there is the fixture `grpc_proxy`. `in_memory` and
`replayed` are for trio, in virtual time.
"""

from rawgrpc_proxy.testing.in_memory import InMemory, in_memory
from rawgrpc_proxy.testing.in_thread import ProxyInThread, Removable
from rawgrpc_proxy.testing.replayed import replayed
from rawgrpc_proxy.testing.seen_calls import Keeps, SeenCall

__all__ = ["InMemory", "Keeps", "ProxyInThread", "Removable", "SeenCall", "in_memory", "replayed"]
