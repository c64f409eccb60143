"""Messages are read by their schema, where there is one."""

from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.lab.descriptors import by_descriptors, decoder_of
from rawgrpc_proxy.lab.readable import Payload


def test_messages_are_read_by_their_schema(tmp_path: Path) -> None:
    files = descriptor_pb2.FileDescriptorSet()
    file = files.file.add(name="a.proto", package="a", syntax="proto3")
    message = file.message_type.add(name="M")
    message.field.add(name="user_name", number=1, type=9, label=1)
    message.field.add(name="delta", number=2, type=17, label=1)
    file.service.add(name="S").method.add(name="Do", input_type=".a.M", output_type=".a.M")
    path = tmp_path / "set"
    path.write_bytes(files.SerializeToString())
    decode = by_descriptors(path)
    said = decode("/a.S/Do", True, Payload(data=b"\x0a\x03bob\x10\x03", is_whole=True))
    assert said is not None
    assert said.json == {"user_name": "bob", "delta": -2}
    # What does not fit the schema, or is of no method of it, is guessed.
    for method, data in (("/a.S/Do", b"\x0a\x02\xff\xff"), ("/a.S/Other", b"\x0a\x02hi")):
        said = decode(method, False, Payload(data=data, is_whole=True))
        assert said is not None
        assert isinstance(said.json, list)


def test_files_may_come_in_any_order() -> None:
    files = descriptor_pb2.FileDescriptorSet()
    top = files.file.add(name="top.proto", package="t", dependency=["a.proto", "b.proto"])
    top.service.add(name="S").method.add(name="Do", input_type=".t.A", output_type=".t.B")
    a = files.file.add(name="a.proto", package="t", dependency=["b.proto"])
    a.message_type.add(name="A").field.add(name="b", number=1, type=11, label=1, type_name=".t.B")
    files.file.add(name="b.proto", package="t").message_type.add(name="B").field.add(
        name="n", number=1, type=5, label=1
    )
    said = decoder_of(files.SerializeToString(), "x")(
        "/t.S/Do", True, Payload(data=b"\x0a\x02\x08\x05", is_whole=True)
    )
    assert said is not None
    assert said.json == {"b": {"n": 5}}


def test_a_set_that_is_not_complete_is_refused() -> None:
    files = descriptor_pb2.FileDescriptorSet()
    file = files.file.add(name="a.proto", dependency=["gone.proto"])
    file.service.add(name="S").method.add(name="Do", input_type=".Gone", output_type=".Gone")
    with pytest.raises(ConfigError, match=r"^x: .*--include_imports"):
        decoder_of(files.SerializeToString(), "x")
