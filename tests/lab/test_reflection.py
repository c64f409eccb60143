"""A server's own reflection is a schema, whichever version it speaks, and a hostile one costs no more than its call."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from google.protobuf import descriptor_pb2
from trio.testing import trio_test

from rawgrpc_proxy import RpcError, Status
from rawgrpc_proxy.client.client import Client
from rawgrpc_proxy.grpc.codec import identity_codec
from rawgrpc_proxy.lab import reflection
from rawgrpc_proxy.lab.descriptors import decoder_of
from rawgrpc_proxy.lab.protobuf_guess import delimited_fields
from rawgrpc_proxy.lab.readable import Payload
from rawgrpc_proxy.lab.reflection import METHODS, reflected
from rawgrpc_proxy.server.server import Server
from rawgrpc_proxy.services.methods import ServedCall, stream_stream
from tests.lab.test_protobuf_guess import delimited, number


def files() -> dict[bytes, bytes]:
    """A service, and in another file its messages."""
    service = descriptor_pb2.FileDescriptorProto(name="s.proto", package="p", dependency=["m.proto"])
    service.service.add(name="S").method.add(name="Do", input_type=".p.M", output_type=".p.M")
    messages = descriptor_pb2.FileDescriptorProto(name="m.proto", package="p")
    messages.message_type.add(name="M").field.add(name="word", number=1, type=9, label=1)
    return {b"s.proto": service.SerializeToString(), b"m.proto": messages.SerializeToString()}


async def answers(requests: AsyncIterator[bytes], _call: ServedCall) -> AsyncIterator[bytes]:
    """As grpc-java and grpcio do: one file for each question."""
    async for request in requests:
        original = delimited(2, request)
        if delimited_fields(request, 7):
            yield original + delimited(6, delimited(1, delimited(1, b"p.S")))
        elif delimited_fields(request, 4) == [b"p.S"]:
            yield original + delimited(4, delimited(1, files()[b"s.proto"]))
        else:
            [name] = delimited_fields(request, 3)
            yield original + delimited(4, delimited(1, files()[name]))


async def nonsense(requests: AsyncIterator[bytes], _call: ServedCall) -> AsyncIterator[bytes]:
    """Each file needs another one."""
    at = 0
    async for request in requests:
        if delimited_fields(request, 7):
            yield delimited(6, delimited(1, delimited(1, b"p.S")) + b"\xff\xff")
        at += 1
        yield delimited(4, delimited(1, delimited(1, b"%d" % at) + delimited(3, b"%d" % (at + 1))))


@asynccontextmanager
async def a_client(method: str, how: object = answers) -> AsyncIterator[Client]:
    server = Server(codec=identity_codec())
    server.add_method(method, stream_stream(how, bytes))  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        address = await nursery.start(partial(server.serve, "127.0.0.1:0"))
        async with Client(address) as client:
            yield client
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("method", METHODS)
@trio_test
async def test_the_schema_is_asked_for_and_messages_are_read_by_it(method: str) -> None:
    async with a_client(method) as client:
        descriptors = await reflected(client)
    said = decoder_of(descriptors, "x")("/p.S/Do", True, Payload(data=b"\x0a\x02hi", is_whole=True))
    assert said is not None
    assert said.json == {"word": "hi"}


@trio_test
async def test_a_server_without_reflection_says_so() -> None:
    async with a_client("/other.S/Do") as client:
        with pytest.raises(RpcError) as raised:
            await reflected(client)
    assert raised.value.status is Status.UNIMPLEMENTED


@trio_test
async def test_files_without_end_are_not_asked_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflection, "MAX_FILES", 20)
    async with a_client(METHODS[0], nonsense) as client:
        with pytest.raises(RpcError, match="more than 20 files"):
            await reflected(client)


def test_fields_are_found_as_far_as_a_message_goes() -> None:
    data = number(1, 300) + delimited(2, b"a") + b"\x19" + bytes(8) + b"\x25" + bytes(4) + delimited(2, b"b")
    assert delimited_fields(data, 2) == [b"a", b"b"]
    assert delimited_fields(data + b"\x12\x05x", 2) == [b"a", b"b"]
    assert delimited_fields(data + b"\x0b" + delimited(2, b"c"), 2) == [b"a", b"b"]
