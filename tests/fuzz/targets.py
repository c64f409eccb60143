"""The targets: each takes any bytes, and raises if what has to hold does not."""

from collections.abc import Callable, Iterator

import hpack

from rawgrpc_proxy.config import ENGINES
from rawgrpc_proxy.errors import ConfigError, NotHttp2, RpcError
from rawgrpc_proxy.grpc.messages import MessageCounter, MessageReader, encode_message
from rawgrpc_proxy.grpc.path import path_problem
from rawgrpc_proxy.grpc.status import decode_grpc_message, encode_grpc_message
from rawgrpc_proxy.grpc.timeout import format_timeout, parse_timeout
from rawgrpc_proxy.http2 import field_rules
from rawgrpc_proxy.http2.hpack import HeaderDecoder, HeaderEncoder
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.proxy_protocol import MAX_HEADER_BYTES, ProxyHeader, read_header
from tests.http2 import peer as wire
from tests.http2.test_session_properties import begun, shown

Target = Callable[[bytes], None]
_NO_LIMIT = 2**30
_PROXY_2 = b"\r\n\r\n\0\r\nQUIT\n"


class Source:
    """Choices, made by the bytes one after the other; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def number(self) -> int:
        """Small mostly, and up to 2^32-1."""
        first = self.byte()
        return first if first < 0xF0 else int.from_bytes(self.take(4))

    def take(self, size: int) -> bytes:
        self._at += size
        return self._data[self._at - size : self._at]


_LISTS: tuple[list[wire.Header], ...] = (
    wire.REQUEST,
    wire.RESPONSE,
    wire.TRAILERS,
    wire.TRAILERS_ONLY,
    wire.REQUEST[1:],
    [],
)
_NAMES = (
    b":status",
    b":path",
    b":authority",
    b"host",
    b"x",
    b"X",
    b"te",
    b"content-length",
    b"grpc-timeout",
    b"",
)
_VALUES = (b"", b"100", b"200", b"999", b"/", b"a\nb", b"trailers", b"3", b"a", b"v" * 300)


def fields_of(source: Source) -> list[wire.Header]:
    """A header list: an ordinary one, and some more."""
    fields = list(_LISTS[source.byte() % len(_LISTS)])
    for _ in range(source.byte() % 4):
        name, value = _NAMES[source.byte() % len(_NAMES)], _VALUES[source.byte() % len(_VALUES)]
        fields.insert(source.byte() % (len(fields) + 1), (name, value))
    return fields


def frames_of(source: Source) -> Iterator[bytes]:  # noqa: C901, PLR0912 one branch for each kind of frame
    """Frames, sensible mostly."""
    while source:
        kind, stream_id = source.byte() % 16, source.byte() % 10
        match kind:
            case 0 | 1:
                yield wire.headers(stream_id or 1, fields_of(source), end_stream=bool(source.byte() & 1))
            case 2 | 3:
                size, end = source.number() % 20_000, bool(source.byte() & 1)
                yield wire.data(stream_id or 1, bytes(min(size, 16_384)), end_stream=end)
            case 4:
                yield wire.rst_stream(stream_id or 1, source.number())
            case 5:
                yield wire.window_update(stream_id, source.number())
            case 6:
                yield wire.settings({source.byte() % 8: source.number() for _ in range(source.byte() % 3)})
            case 7:
                yield wire.ping(b"12345678", ack=bool(source.byte() & 1))
            case 8:
                yield wire.goaway(stream_id, source.number())
            case 9:
                yield wire.priority(stream_id or 1)
            case 10:
                block = wire.block(fields_of(source))
                cut = source.byte() % (len(block) + 1)
                yield wire.headers(stream_id or 1, encoded=block[:cut], end_headers=False)
                yield wire.continuation(stream_id or 1, block[cut:], end_headers=True)
            case 11:
                yield wire.headers(stream_id or 1, encoded=source.take(source.byte()))
            case 12:
                yield wire.raw(
                    source.byte(), source.byte(), source.number() & 0x7FFFFFFF, source.take(source.byte())
                )
            case 13:
                yield wire.SETTINGS_ACK
            case 14:
                yield wire.raw(0x6, 0, 0, source.take(8))
            case _:
                yield source.take(source.byte())


def sessions(data: bytes) -> None:
    """Frames, and what is none: both engines say the same of them, whoever they come from, however they are cut."""
    source = Source(data)
    client_side, step = bool(source.byte() & 1), source.number() % 4000 + 1
    told = b"".join(frames_of(source))
    outcomes = []
    for engine in ENGINES:
        peer = begun(engine, client_side=client_side)
        events = [event for at in range(0, len(told), step) for event in peer.tell(told[at : at + step])]
        outcomes.append((shown(events), sorted(peer.session.streams), peer.session.ended))
        assert peer.session.output.owed_bytes < 2**20
    assert outcomes[0] == outcomes[1], outcomes


def header_blocks(data: bytes) -> None:
    """Our decoder against hpack's: the same lists, or both refuse; and what we encode both can read."""
    source = Source(data)
    ours, theirs = HeaderDecoder(_NO_LIMIT, 5000), hpack.Decoder(max_header_list_size=_NO_LIMIT)
    encoder, far, far_too = HeaderEncoder(), HeaderDecoder(_NO_LIMIT, 5000), hpack.Decoder()
    for _ in range(8):
        block = source.take(source.byte())
        try:
            fields: list[tuple[bytes, bytes]] | None = list(ours.decode(block))
        except hpack.HPACKError:
            fields = None
        try:
            reference = list(theirs.decode(block, raw=True))
        except hpack.HPACKError:
            reference = None
        if fields is None and reference is not None:
            assert block[0] & 0xE0 == 0x20, block  # more size updates than there may be
        else:
            assert fields == reference, (block, fields, reference)
        if fields is None:
            return
        again = encoder.encode(fields)
        assert list(far.decode(again)) == fields
        assert [tuple(field) for field in far_too.decode(again, raw=True)] == [
            tuple(field) for field in fields
        ]


def fields(data: bytes) -> None:
    """The rules for fields end with a yes, or with a short sentence, for any list."""
    source = Source(data)
    listed = fields_of(source) + [
        (source.take(source.byte() % 20), source.take(source.byte() % 40)) for _ in range(source.byte() % 5)
    ]
    for rule in (
        field_rules.request_problem,
        field_rules.response_problem,
        field_rules.trailers_problem,
        field_rules.request_trailers_problem,
    ):
        problem = rule(listed)
        assert problem is None or 0 < len(problem) < 400
        assert rule(listed) == problem
    assert (field_rules.content_length(listed) or 0) >= -1


def messages(data: bytes) -> None:
    """However messages are cut into frames, the reader and the counter find the same ones."""
    source = Source(data)
    stream = b"".join(
        encode_message(source.take(source.byte() % 40), compressed=bool(source.byte() & 1))
        * (1 + source.byte() % 30)
        for _ in range(source.byte() % 12)
    )
    stream += source.take(source.byte())
    reader, counter, read = MessageReader(max_message_bytes=2**32), MessageCounter(), 0
    try:
        at = 0
        while at < len(stream):
            size = 1 + source.number() % 3000
            counter.feed(memoryview(stream)[at : at + size])
            read += len(reader.feed(stream[at : at + size]))
            at += size
            assert counter.count == read or not counter.exact
    except RpcError:
        return


def texts(data: bytes) -> None:
    """Timeouts, messages of statuses, paths, addresses: read or refused, and what is read is written the same."""
    try:
        seconds = parse_timeout(data)
    except ValueError:
        pass
    else:
        assert seconds >= 0
        assert parse_timeout(format_timeout(seconds or 1e-9)) <= (seconds or 1e-9) * 1.0001 + 1e-9
    text = decode_grpc_message(data)
    assert decode_grpc_message(encode_grpc_message(text)) == text
    path_problem(data)
    try:
        address = Address.parse(data.decode("latin-1"))
    except ConfigError:
        return
    assert Address.parse(str(address)) == address


def proxy_headers(data: bytes) -> None:
    """PROXY headers end where they say, name what fits into a line, and are the same however they are cut."""
    source = Source(data)
    beginning = (b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", _PROXY_2, _PROXY_2 + b"\x21")[
        source.byte() % 6
    ]
    start = beginning + data[1:]
    first = _proxy_header(start)
    for size in range(len(start)):
        here = _proxy_header(start[:size])
        assert here is None or here == first
        assert here is not None or size < MAX_HEADER_BYTES
    if isinstance(first, ProxyHeader):
        assert _proxy_header(start[: first.size - 1]) is None
        assert first.source is None or (first.source.isprintable() and " " not in first.source)


def _proxy_header(start: bytes) -> ProxyHeader | str | None:
    try:
        return read_header(start)
    except NotHttp2 as error:
        return error.message


TARGETS: dict[str, Target] = {
    target.__name__: target for target in (sessions, header_blocks, fields, messages, texts, proxy_headers)
}
