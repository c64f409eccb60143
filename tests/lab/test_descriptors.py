"""Messages are read by their schema, where there is one."""

from pathlib import Path

from google.protobuf import descriptor_pb2

from rawgrpc_proxy.lab.descriptors import by_descriptors
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
