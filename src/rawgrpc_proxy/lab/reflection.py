"""The schema that a server tells by itself: gRPC server reflection, versions v1 and v1alpha.

What it does not do: read the schema (`descriptors.py`). Nothing that a server answers makes it raise anything but
`RpcError`, and what it may send is bounded: `MAX_FILES` files of `MAX_BYTES` bytes together.
"""

from collections.abc import Iterator

from rawgrpc_proxy.client.calls import StreamStreamCall
from rawgrpc_proxy.client.client import Client
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.lab.protobuf_guess import delimited_fields

METHODS = tuple(
    f"/grpc.reflection.{each}.ServerReflection/ServerReflectionInfo" for each in ("v1", "v1alpha")
)
MAX_FILES = 2000
MAX_BYTES = 16 << 20

# Fields of ServerReflectionRequest and ServerReflectionResponse.
_FILE_BY_FILENAME, _FILE_CONTAINING_SYMBOL, _LIST_SERVICES = 3, 4, 7
_FILE_DESCRIPTORS, _SERVICES = 4, 6
_NAME, _DEPENDENCY = 1, 3  # of a ServiceResponse and of a FileDescriptorProto


async def reflected(client: Client) -> bytes:
    """The `FileDescriptorSet` of all services that the server lists. Raises `RpcError`. Waits for the server."""
    for method in METHODS[:-1]:
        try:
            return await _ask(client, method)
        except RpcError as error:
            if error.status is not Status.UNIMPLEMENTED:
                raise
    return await _ask(client, METHODS[-1])


async def _ask(client: Client, method: str) -> bytes:
    async with client.stream_stream(method) as call:
        listed = await _answer(call, _LIST_SERVICES, b"*", _SERVICES)
        services = [name for each in listed for name in delimited_fields(each, _NAME)]
        files: dict[bytes, bytes] = {}
        for service in services:
            _take(files, await _answer(call, _FILE_CONTAINING_SYMBOL, service, _FILE_DESCRIPTORS))
        asked: set[bytes] = set()
        while (missing := _missing(files) - asked) and len(asked) < MAX_FILES:
            for name in missing:
                asked.add(name)
                _take(files, await _answer(call, _FILE_BY_FILENAME, name, _FILE_DESCRIPTORS))
        await call.done_sending()
    return b"".join(_delimited(1, each) for each in files.values())


async def _answer(call: StreamStreamCall[bytes], question: int, about: bytes, answer: int) -> list[bytes]:
    """What the server says to this: the entries of the list that answers it; none if it answers otherwise."""
    await call.send(_delimited(question, about))
    response = await call.receive()
    if response is None:
        raise RpcError(Status.INTERNAL, "the server's reflection ends before it has answered")
    return [entry for each in delimited_fields(response, answer) for entry in delimited_fields(each, 1)]


def _take(files: dict[bytes, bytes], more: list[bytes]) -> None:
    for each in more:
        for name in delimited_fields(each, _NAME):
            files.setdefault(name, each)
            break
    if len(files) > MAX_FILES or sum(map(len, files.values())) > MAX_BYTES:
        raise RpcError(
            Status.RESOURCE_EXHAUSTED,
            f"the server's reflection tells more than {MAX_FILES} files, or {MAX_BYTES} bytes",
        )


def _missing(files: dict[bytes, bytes]) -> set[bytes]:
    needed = {name for each in files.values() for name in delimited_fields(each, _DEPENDENCY)}
    return needed - set(files)


def _delimited(number: int, value: bytes) -> bytes:
    return bytes(_varint(number << 3 | 2)) + bytes(_varint(len(value))) + value


def _varint(value: int) -> Iterator[int]:
    while value >> 7:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value
