"""Tests of a client that repeats its calls: the proxy stands where its backend would be, and fails on purpose.

    pip install rawgrpc-proxy pytest
    pytest examples/test_flaky_backend.py

The client calls by grpcio if that is installed, else by this package's own client; the tests are the same. `grpc_proxy`
is a fixture that comes with the package, see docs/testing.md. Of a test that fails pytest shows the calls it has made.
"""

import time
import uuid
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import trio

from rawgrpc_proxy import Client, RpcError, Status
from rawgrpc_proxy.lab.faults import AfterBytes, AnswerHttp, BeforeHeaders, Cut, Fault, Part, Reset
from rawgrpc_proxy.testing import ProxyInThread

grpc: Any = import_module("grpc") if find_spec("grpc") else None
PRICE = "/shop.Shop/Price"

# ------------------------------------------------------------------------------ the client that is tested


class Shop:
    """Asks a shop for prices, three times at the most while it is UNAVAILABLE, with pauses that grow."""

    def __init__(self, target: str, pause_s: float = 0.02) -> None:
        self._target = target
        self._pause_s = pause_s

    def price(self, item: str) -> str:
        """What it costs. Raises `KeyError` if there is none, and `ConnectionError` if the shop cannot be asked."""
        metadata = (("x-request-id", uuid.uuid4().hex),)  # the same each time, so that the shop can tell
        for attempt in range(3):
            if attempt:
                time.sleep(self._pause_s * 2**attempt)
            status, reply = call(self._target, PRICE, item.encode(), metadata)
            if status is Status.OK:
                return reply.decode()
            if status is Status.NOT_FOUND:
                raise KeyError(item)
            if status is not Status.UNAVAILABLE:
                break
        raise ConnectionError(f"the shop says {status.name}")


# ------------------------------------------------------------------------------ its tests


@pytest.fixture
def backend(grpc_proxy: Callable[..., ProxyInThread]) -> ProxyInThread:
    """A proxy without an upstream: it answers itself."""
    proxy = grpc_proxy()
    proxy.answer(PRICE, [b"10"])
    return proxy


def test_a_shop_that_is_away_for_a_moment_is_asked_again(backend: ProxyInThread) -> None:
    backend.answer(PRICE, status="UNAVAILABLE", times=2)  # twice, and then the answer above
    assert Shop(backend.target).price("apple") == "10"
    assert [each.status for each in backend.calls] == [Status.UNAVAILABLE, Status.UNAVAILABLE, Status.OK]


def test_it_is_the_same_request_each_time(backend: ProxyInThread) -> None:
    backend.answer(PRICE, status="UNAVAILABLE", times=1)
    Shop(backend.target).price("apple")
    first, second = backend.wait_for(method=PRICE, count=2)
    assert first.request_messages == second.request_messages == [b"apple"]
    assert first.metadata["x-request-id"] == second.metadata["x-request-id"]


def test_pauses_grow(backend: ProxyInThread) -> None:
    backend.answer(PRICE, status="UNAVAILABLE", times=2)
    Shop(backend.target, pause_s=0.05).price("apple")
    first, second, third = (each.began_at for each in backend.calls)
    assert second - first >= 0.1
    assert third - second >= 0.2


def test_a_shop_that_stays_away_is_given_up(backend: ProxyInThread) -> None:
    with backend.answer(PRICE, status="UNAVAILABLE"), pytest.raises(ConnectionError, match="UNAVAILABLE"):
        Shop(backend.target).price("apple")
    assert len(backend.calls) == 3
    assert (
        Shop(backend.target).price("apple") == "10"
    )  # the answer of the `with` is gone, and the shop is back


@pytest.mark.parametrize(("status", "error"), [("NOT_FOUND", KeyError), ("INTERNAL", ConnectionError)])
def test_what_asking_again_would_not_change_is_asked_once(
    backend: ProxyInThread, status: str, error: type[Exception]
) -> None:
    backend.answer(PRICE, status=status)
    with pytest.raises(error):
        Shop(backend.target).price("plum")
    assert len(backend.calls) == 1


# What an answer cannot say: faults of the network, and of what stands in it. `faults` has all there are.


@pytest.mark.parametrize(
    "fault",
    [
        Fault(calls="first 2", where=AfterBytes(count=3), do=Cut(reset=True)),
        Fault(calls="first 2", where=BeforeHeaders(of=Part.RESPONSE), do=Reset(code="REFUSED_STREAM")),
        Fault(calls="first 2", do=AnswerHttp(status=502, body="<html>no backend</html>")),
    ],
    ids=["the link breaks in the middle of an answer", "RST_STREAM", "a load balancer without a backend"],
)
def test_what_breaks_on_the_way_is_asked_for_again(backend: ProxyInThread, fault: Fault) -> None:
    with backend.faults.add(fault) as rule:
        assert Shop(backend.target).price("apple") == "10"
    assert rule.counts.struck == 2
    assert backend.calls[-1].status is Status.OK


# ------------------------------------------------------------------------------ a unary call, by what there is

Metadata = tuple[tuple[str, str], ...]


def call(target: str, method: str, request: bytes, metadata: Metadata) -> tuple[Status, bytes]:
    """Its status, and the reply if that is OK."""
    by_what_there_is = call_by_own_client if grpc is None else call_by_grpcio
    return by_what_there_is(target, method, request, metadata)


def call_by_grpcio(target: str, method: str, request: bytes, metadata: Metadata) -> tuple[Status, bytes]:
    """Without generated code: bytes in, bytes out."""
    with grpc.insecure_channel(target) as channel:
        try:
            return Status.OK, channel.unary_unary(method)(request, metadata=metadata, timeout=10)
        except grpc.RpcError as error:
            return Status[error.code().name], b""


def call_by_own_client(target: str, method: str, request: bytes, metadata: Metadata) -> tuple[Status, bytes]:
    """The same, with an event loop for just this call."""

    async def main() -> bytes:
        async with Client(target, metadata=metadata, timeout=10) as client:
            return await client.unary_unary(method, request)

    try:
        return Status.OK, trio.run(main)
    except RpcError as error:
        return error.status, b""
