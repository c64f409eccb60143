"""Raw bytes pass a proxying codec, messages go to its parent."""

import subprocess
import sys
from typing import TypeVar

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, UninterpretedOption
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import ConfigError, RpcError
from rawgrpc_proxy.grpc.codec import Codec, codec, codec_with_parent, identity_codec

T = TypeVar("T")


class UpperCase:
    """A parent codec whose messages are str: upper case on the wire, lower case in the hand."""

    name = "upper"

    def marshal(self, value: object) -> bytes:
        assert isinstance(value, str)
        return value.upper().encode()

    def unmarshal(self, data: bytes, into: type[T]) -> T:
        return into(data.decode().lower())  # type: ignore[call-arg]


CODECS = [codec(), codec_with_parent(UpperCase()), codec_with_parent(identity_codec())]


@pytest.mark.parametrize("proxying", CODECS, ids=lambda proxying: proxying.name)
@given(payload=st.binary())
def test_what_is_read_raw_is_what_is_written(proxying: Codec, payload: bytes) -> None:
    assert proxying.marshal(proxying.unmarshal(payload, bytes)) == payload
    assert proxying.marshal(proxying.unmarshal(payload, bytearray)) == payload
    assert proxying.marshal(proxying.unmarshal(payload, memoryview)) == payload


@pytest.mark.parametrize("raw", [bytes, bytearray, memoryview])
def test_raw_bytes_come_as_the_type_that_was_asked_for(raw: type) -> None:
    assert type(codec().unmarshal(b"\x0a\x01x", raw)) is raw


def test_a_buffer_is_reusable_once_it_is_marshalled() -> None:
    proxying = codec()
    buffer = bytearray(b"first")
    first = proxying.marshal(buffer)
    buffer[:] = b"other"
    second = proxying.marshal(memoryview(buffer))
    buffer[:] = b"third"
    assert (first, second) == (b"first", b"other")


def test_protobuf_messages_go_to_the_protobuf_codec() -> None:
    proxying = codec()
    payload = proxying.marshal(StringValue(value="hello"))
    assert payload == b"\x0a\x05hello"
    assert proxying.unmarshal(payload, StringValue) == StringValue(value="hello")


def test_messages_of_any_other_kind_go_to_the_parent() -> None:
    proxying = codec_with_parent(UpperCase())
    assert proxying.marshal("hello") == b"HELLO"
    assert proxying.unmarshal(b"HELLO", str) == "hello"


def test_a_proxying_codec_is_named_after_its_parent() -> None:
    assert codec().name == "proxy>proto"
    assert codec_with_parent(UpperCase()).name == "proxy>upper"
    assert codec_with_parent(codec_with_parent(identity_codec())).name == "proxy>proxy>bytes"


@pytest.mark.parametrize("strict", [codec(), identity_codec()], ids=lambda strict: strict.name)
def test_a_type_that_no_codec_handles_is_a_type_error(strict: Codec) -> None:
    with pytest.raises(TypeError, match=r"takes .*, not dict"):
        strict.marshal({})
    with pytest.raises(TypeError, match=r"makes .*, not dict"):
        strict.unmarshal(b"", dict)


def test_a_payload_that_is_not_the_message_is_an_internal_error() -> None:
    with pytest.raises(RpcError, match="cannot decode a message of type FileDescriptorProto") as caught:
        codec().unmarshal(b"\xff", FileDescriptorProto)
    assert (caught.value.status, caught.value.origin) == (Status.INTERNAL, "proxy")


def test_a_message_without_its_required_fields_is_an_internal_error() -> None:
    incomplete = UninterpretedOption.NamePart(name_part="x")
    with pytest.raises(RpcError, match="cannot encode a message of type NamePart") as caught:
        codec().marshal(incomplete)
    assert caught.value.status is Status.INTERNAL


def test_without_protobuf_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    with pytest.raises(ConfigError, match=r"pip install 'rawgrpc-proxy\[protobuf\]'"):
        codec()
    assert codec_with_parent(identity_codec()).marshal(b"raw") == b"raw"


def test_importing_the_codecs_does_not_import_protobuf() -> None:
    program = "import sys, rawgrpc_proxy.grpc.codec; sys.exit('google.protobuf' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})
