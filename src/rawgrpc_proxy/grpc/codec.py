"""Codecs: what turns a message into the bytes of its payload and back, for calls the proxy serves itself.

Calls that are forwarded never come here, their bytes are spliced. This module does not frame messages (see
`rawgrpc_proxy.grpc.messages`) and does not compress them. It can be imported without protobuf, which is
imported when a protobuf codec is made. The invariant: raw bytes pass a proxying codec unchanged both ways,
whatever its parent; what `marshal` answers never changes afterwards, so a buffer that was marshalled may be
used again at once.
"""

from typing import Protocol, TypeVar

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import ConfigError, RpcError

T = TypeVar("T")

_RAW = (bytes, bytearray, memoryview)


class Codec(Protocol):
    """A way to encode messages.

    Both methods raise `TypeError` for a type the codec does not handle, and `RpcError` INTERNAL for a
    message that it handles and that is broken.
    """

    @property
    def name(self) -> str:
        """What the codec is called, like "proto"."""

    def marshal(self, value: object) -> bytes:
        """The payload for this message."""

    def unmarshal(self, data: bytes, into: type[T]) -> T:
        """The message of type `into` that this payload holds."""


def codec() -> Codec:
    """The proxying codec with protobuf as its parent, called "proxy>proto".

    Raises `ConfigError` where protobuf is not installed.
    """
    return codec_with_parent(_ProtobufCodec())


def codec_with_parent(fallback: Codec) -> Codec:
    """A codec that passes `bytes`, `bytearray` and `memoryview` as they are; other types go to `fallback`.

    This lets one server proxy most methods and serve some itself with real message types.
    """
    return _ProxyingCodec(fallback)


def identity_codec() -> Codec:
    """A codec for raw bytes and nothing else, called "bytes": the parent where there is no protobuf."""
    return _BytesCodec()


class _BytesCodec:
    name = "bytes"

    def marshal(self, value: object) -> bytes:
        if not isinstance(value, _RAW):
            raise TypeError(
                f"the codec 'bytes' takes bytes, bytearray or memoryview, not {_name(type(value))}"
            )
        return bytes(value)

    def unmarshal(self, data: bytes, into: type[T]) -> T:
        if not issubclass(into, _RAW):
            raise TypeError(f"the codec 'bytes' makes bytes, bytearray or memoryview, not {_name(into)}")
        return into(data)


class _ProxyingCodec:
    def __init__(self, parent: Codec) -> None:
        self.name = f"proxy>{parent.name}"
        self._parent = parent
        self._raw = _BytesCodec()

    def marshal(self, value: object) -> bytes:
        return (self._raw if isinstance(value, _RAW) else self._parent).marshal(value)

    def unmarshal(self, data: bytes, into: type[T]) -> T:
        return (self._raw if issubclass(into, _RAW) else self._parent).unmarshal(data, into)


class _ProtobufCodec:
    name = "proto"

    def __init__(self) -> None:
        try:
            # Here and not above: the proxy runs without protobuf, and does not wait for its import.
            from google.protobuf import message as protobuf  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError(
                "the protobuf codec needs protobuf: pip install 'rawgrpc-proxy[protobuf]', "
                "or use codec_with_parent() with a codec of your own"
            ) from error
        self._message_type = protobuf.Message
        self._encode_error = protobuf.EncodeError
        self._decode_error = protobuf.DecodeError

    def marshal(self, value: object) -> bytes:
        if not isinstance(value, self._message_type):
            raise TypeError(f"the codec 'proto' takes protobuf messages, not {_name(type(value))}")
        try:
            return value.SerializeToString()
        except self._encode_error as error:
            raise _broken("encode", type(value)) from error

    def unmarshal(self, data: bytes, into: type[T]) -> T:
        if not issubclass(into, self._message_type):
            raise TypeError(f"the codec 'proto' makes protobuf messages, not {_name(into)}")
        try:
            return into.FromString(data)
        except self._decode_error as error:
            raise _broken("decode", into) from error


def _broken(verb: str, message_type: type) -> RpcError:
    text = f"cannot {verb} a message of type {_name(message_type)}"
    return RpcError(Status.INTERNAL, text, origin="proxy", cause="codec")


def _name(some_type: type) -> str:
    return some_type.__name__
