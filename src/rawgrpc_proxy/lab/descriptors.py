"""Messages read by their schema: a file of descriptors, of `protoc --include_imports --descriptor_set_out=FILE`.

Needs protobuf (`pip install 'rawgrpc-proxy[protobuf]'`). A method that is not in the file, and a message that its
schema does not fit, are read without one.
"""

import importlib.util
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.lab.protobuf_guess import Json
from rawgrpc_proxy.lab.readable import Decoder, Payload, Readable, guessed

_MAX_TEXT = 2000


def by_descriptors(file: Path) -> Decoder:
    """A decoder for the methods of this file. Raises `ConfigError`."""
    try:
        descriptor_set = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    return decoder_of(descriptor_set, str(file))


def check_protobuf() -> None:
    """Raise `ConfigError` where protobuf is not installed."""
    if importlib.util.find_spec("google") is None or importlib.util.find_spec("google.protobuf") is None:
        raise ConfigError("this needs the package protobuf: pip install 'rawgrpc-proxy[protobuf]'")


def decoder_of(descriptor_set: bytes, source: str) -> Decoder:
    """A decoder for the methods of a `FileDescriptorSet`. Raises `ConfigError`, which names the source."""
    check_protobuf()
    from google.protobuf import (  # noqa: PLC0415  # an extra
        descriptor_pb2,
        descriptor_pool,
        json_format,
        message_factory,
    )

    try:
        files = descriptor_pb2.FileDescriptorSet.FromString(descriptor_set).file
    except Exception:  # noqa: BLE001  # protobuf's own, which differ from version to version
        raise ConfigError(
            f"{source} is no set of descriptors; make one with protoc --descriptor_set_out"
        ) from None
    pool = descriptor_pool.DescriptorPool()
    methods = {}
    try:
        for each in _needed_first(files):
            pool.Add(each)
            pool.FindFileByName(each.name)  # protobuf in pure Python only now looks whether all is there
        for each in files:
            for service in each.service:
                name = f"{each.package}.{service.name}".lstrip(".")
                for method in pool.FindServiceByName(name).methods:
                    methods[f"/{name}/{method.name}"] = tuple(
                        message_factory.GetMessageClass(kind)
                        for kind in (method.input_type, method.output_type)
                    )
    except Exception as error:  # noqa: BLE001  # the same
        raise ConfigError(
            f"{source}: {error}; make it with protoc --include_imports --descriptor_set_out"
        ) from None

    def decode(method: str, is_request: bool, payload: Payload) -> Readable | None:
        kinds = methods.get(method)
        if kinds is None or not payload.is_whole:
            return guessed(method, is_request, payload)
        try:
            message = kinds[0 if is_request else 1].FromString(payload.data)
            said: Json = json_format.MessageToDict(
                message, preserving_proto_field_name=True, descriptor_pool=pool
            )
        except Exception:  # noqa: BLE001  # the same; and it is a peer's message
            return guessed(method, is_request, payload)
        return Readable(json.dumps(said, ensure_ascii=False)[:_MAX_TEXT], said)

    return decode


def _needed_first(files: Iterable[Any]) -> Iterator[Any]:
    """The files, each behind those that it imports."""
    by_name = {each.name: each for each in files}
    # Files that are begun stay in the line until those they need are done; a circle, which protoc forbids, ends there.
    line = list(reversed(by_name))
    begun: set[str] = set()
    done: set[str] = set()
    while line:
        name = line[-1]
        needs = [each for each in by_name[name].dependency if each in by_name and each not in begun]
        if name not in begun and needs:
            begun.add(name)
            line += needs
            continue
        line.pop()
        if name not in done:
            begun.add(name)
            done.add(name)
            yield by_name[name]
