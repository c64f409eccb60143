"""RFC 7541 §4 and appendix C: the tables of both sides, block after block, and the document's own examples."""

from collections.abc import Iterable

import pytest
from trio.testing import trio_test

from rawgrpc_proxy import Status
from rawgrpc_proxy.config import Engine
from tests.conformance.exchanges import (
    CLOSED,
    Exchange,
    Scene,
    Step,
    answers,
    calls,
    play_with_a_backend,
    play_with_a_caller,
    quiet,
    told,
)
from tests.http2.peer import HEADER_TABLE_SIZE, Header, headers, settings
from tests.proxy.house import on_every_engine

TE_AND_TYPE = b"\x00\x02te\x08trailers\x0f\x10\x10application/grpc"
REQUEST = b"\x83\x86\x04\x06/a.B/C\x01\x01a" + TE_AND_TYPE
RESPONSE = b"\x88\x0f\x10\x10application/grpc"
"""Neither touches the table."""
X_Y, X_Z, X_W = (b"\x40\x01x\x01" + value for value in (b"y", b"z", b"w"))
"""To be put into the table, where each takes 34 bytes."""
NEWEST, SECOND, THIRD = b"\xbe", b"\xbf", b"\xc0"


def table_of(size: int) -> bytes:
    """The change to a table of so many bytes, at most 158."""
    return bytes([0x20 | size]) if size < 31 else bytes([0x3F, size - 31])


WHOLE_TABLE, TABLE_OF_1337 = b"\x3f\xe1\x1f", b"\x3f\x9a\x0a"
Block = tuple[bytes, bytes, list[bytes] | None]
"""How a header block begins and ends, and the values of `x` in it; None if it cannot be decoded."""
BOTH: Block = (b"", X_Y + X_Z, [b"y", b"z"])
TABLES: list[tuple[str, str, list[Block]]] = [
    ("4_3", "a smaller table keeps the newest", [BOTH, (table_of(34), NEWEST, [b"z"])]),
    ("4_3", "a smaller table loses the oldest", [BOTH, (table_of(34), SECOND, None)]),
    (
        "4_3",
        "a table that is just large enough keeps all",
        [BOTH, (table_of(68), SECOND + NEWEST, [b"y", b"z"])],
    ),
    ("4_3", "one byte less is too little", [BOTH, (table_of(67), SECOND, None)]),
    ("4_3", "one byte less than an entry is a table of nothing", [BOTH, (table_of(33), NEWEST, None)]),
    ("4_3", "a table of nothing has nothing", [BOTH, (table_of(0), NEWEST, None)]),
    ("4_3", "what is lost does not come back", [BOTH, (table_of(0) + WHOLE_TABLE, NEWEST, None)]),
    ("4_3", "a change loses entries without a field", [BOTH, (table_of(34), b"", []), (b"", SECOND, None)]),
    (
        "4_3",
        "a larger table keeps what there is",
        [BOTH, (table_of(34), b"", []), (WHOLE_TABLE, X_W + NEWEST + SECOND, [b"w", b"w", b"z"])],
    ),
    ("4_3", "a table lives with a size of nothing", [(table_of(0), X_Y, [b"y"]), (b"", X_Z, [b"z"])]),
    ("4_4", "a table of nothing takes nothing", [(table_of(0), X_Y, [b"y"]), (b"", NEWEST, None)]),
    (
        "4_4",
        "the oldest makes room",
        [(table_of(68), X_Y + X_Z + X_W, [b"y", b"z", b"w"]), (b"", THIRD, None)],
    ),
    (
        "4_4",
        "no more than need be makes room",
        [(table_of(68), X_Y + X_Z + X_W, [b"y", b"z", b"w"]), (b"", NEWEST + SECOND, [b"w", b"z"])],
    ),
    (
        "4_4",
        "an entry larger than the table empties it",
        [BOTH, (table_of(70), b"\x40\x01x\x26" + b"v" * 38, [b"v" * 38]), (b"", NEWEST, None)],
    ),
    (
        "4_4",
        "the name of the entry that makes room may be used",
        [(table_of(34), X_Y + b"\x7e\x01z" + NEWEST, [b"y", b"z", b"z"])],
    ),
    (
        "C_1_2",
        "a table of 1337 bytes takes as many",
        [(TABLE_OF_1337, b"\x40\x01x\x7f\x99\x09" + b"v" * 1304 + NEWEST, [b"v" * 1304] * 2)],
    ),
    (
        "C_1_2",
        "a table of 1337 bytes takes no more",
        [(TABLE_OF_1337, b"\x40\x01x\x7f\x9a\x09" + b"v" * 1305 + NEWEST, None)],
    ),
    ("C_1_1", "a table of 10 bytes takes nothing", [(b"\x2a", X_Y, [b"y"]), (b"", NEWEST, None)]),
]


def x_heard(values: list[bytes]) -> Step:
    """The backend has heard these values of `x`."""

    async def step(scene: Scene) -> None:
        assert scene.served[-1].request.get_all(b"x") == values

    return step


def x_told(number: int, values: list[bytes]) -> Step:
    """The caller has been told these values of `x`."""

    async def step(scene: Scene) -> None:
        answer = await scene.calls[number].answer()
        assert answer.headers is not None
        assert answer.headers.get_all(b"x") == values

    return step


def by_a_caller(blocks: Iterable[Block]) -> Iterable[Step]:
    """The blocks in requests."""
    last = 0
    for number, (first, rest, values) in enumerate(blocks):
        stream = 1 + 2 * number
        yield headers(stream, encoded=first + REQUEST + rest, end_stream=True)
        if values is None:
            yield from (f"GOAWAY {last} COMPRESSION_ERROR", CLOSED)
        else:
            yield from (answers(), x_heard(values))
            yield from (f"HEADERS {stream} 200", f"HEADERS {stream} grpc-status 0 END_STREAM")
        last = stream


def by_a_backend(blocks: Iterable[Block]) -> Iterable[Step]:
    """The blocks in responses."""
    for number, (first, rest, values) in enumerate(blocks):
        stream = 1 + 2 * number
        yield from (calls(), f"HEADERS {stream} /a.B/C END_STREAM")
        yield headers(stream, encoded=first + RESPONSE + rest, end_stream=True)
        if values is None:
            yield from ("GOAWAY 0 COMPRESSION_ERROR", CLOSED, told(Status.UNAVAILABLE, number))
        else:
            yield x_told(number, values)


# --- The proxy's own tables ---

X = (b"x", b"y")
SIZES: list[tuple[str, list[int], bytes]] = [
    ("nothing", [0], table_of(0)),
    ("less than an entry", [33], table_of(33)),
    ("half", [100], table_of(100)),
    ("nothing and then all", [0, 4096], table_of(0) + WHOLE_TABLE),
    ("less and then more", [60, 100], table_of(60) + table_of(100)),
    ("less and then even less", [100, 60], table_of(60)),
    ("up and down and up", [100, 60, 120, 80], table_of(60) + table_of(80)),
    ("more than we want", [65_536], b""),
    ("as much as before", [4096], b""),
]


def begins(stream: int, number: int, changes: bytes) -> Step:
    """That block of the stream begins with these changes of the size, no others, and has `x` in it."""

    async def step(scene: Scene) -> None:
        block = scene.wire.blocks[stream][number]
        assert block.startswith(changes)
        assert block[len(changes)] & 0xE0 != 0x20
        assert X in scene.wire.lists[stream][-1]

    return step


def allowed(*sizes: int) -> Iterable[Step]:
    """The peer allows tables of these sizes, one after the other, and holds the proxy to the smallest at first."""

    async def hold(scene: Scene) -> None:
        scene.wire.decoder.max_allowed_table_size = sizes[-1]

    yield b"".join(settings({HEADER_TABLE_SIZE: size}) for size in sizes)
    yield from ["SETTINGS ACK"] * len(sizes)
    yield hold


def to_a_caller(sizes: list[int], changes: bytes) -> Iterable[Step]:
    """Four responses with the same trailers, of which the last two come after the change."""
    for stream in (1, 3, 5, 7):
        if stream == 5:
            yield from allowed(*sizes)
        yield from (headers(stream, end_stream=True), answers(trailers=[(b"grpc-status", b"0"), X]))
        yield from (f"HEADERS {stream} 200", f"HEADERS {stream} grpc-status 0 END_STREAM")
        if stream == 5:
            yield begins(stream, 0, changes)
        yield begins(stream, 1, b"")


def to_a_backend(sizes: list[int], changes: bytes) -> Iterable[Step]:
    """Four requests with the same metadata, of which the last two come after the change."""
    for stream in (1, 3, 5, 7):
        if stream == 5:
            yield from allowed(*sizes)
        yield from (calls(None, X), f"HEADERS {stream} /a.B/C END_STREAM")
        yield begins(stream, 0, changes if stream == 5 else b"")


BY_CALLERS = [
    *(Exchange(section, name, [*by_a_caller(blocks)]) for section, name, blocks in TABLES),
    *(
        Exchange("4_2", f"a table of {name}", [*to_a_caller(sizes, changes)])
        for name, sizes, changes in SIZES
    ),
]
BY_BACKENDS = [
    *(Exchange(section, name, [*by_a_backend(blocks)]) for section, name, blocks in TABLES),
    *(
        Exchange("4_2", f"a table of {name}", [*to_a_backend(sizes, changes)])
        for name, sizes, changes in SIZES
    ),
]


@on_every_engine
@pytest.mark.parametrize("rule", BY_CALLERS, ids=str)
@trio_test
async def test_rfc7541_tables_with_a_caller(engine: Engine, rule: Exchange) -> None:
    await play_with_a_caller(engine, rule)


@on_every_engine
@pytest.mark.parametrize("rule", BY_BACKENDS, ids=str)
@trio_test
async def test_rfc7541_tables_with_a_backend(engine: Engine, rule: Exchange) -> None:
    await play_with_a_backend(engine, rule)


# --- Appendix C ---

C_3 = [
    "828684410f7777772e6578616d706c652e636f6d",
    "828684be58086e6f2d6361636865",
    "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
]
C_4 = [
    "828684418cf1e3c2e5f23a6ba0ab90f4ff",
    "828684be5886a8eb10649cbf",
    "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
]
C_5 = [
    (
        "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54"
        "6e1768747470733a2f2f7777772e6578616d706c652e636f6d"
    ),
    "4803333037c1c0bf",
    (
        "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738"
        "666f6f3d4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b"
        "2076657273696f6e3d31"
    ),
]
C_6 = [
    "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
    "4883640effc1c0bf",
    (
        "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af"
        "27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007"
    ),
]
TABLE_OF_256 = b"\x3f\xe1\x01"
"""The examples of responses have a table of 256 bytes."""
REDIRECT: list[Header] = [
    (b"cache-control", b"private"),
    (b"date", b"Mon, 21 Oct 2013 20:13:21 GMT"),
    (b"location", b"https://www.example.com"),
]
RESPONSES: list[list[Header]] = [
    [(b":status", b"302"), *REDIRECT],
    [(b":status", b"307"), *REDIRECT],
    [
        (b":status", b"200"),
        (b"cache-control", b"private"),
        (b"date", b"Mon, 21 Oct 2013 20:13:22 GMT"),
        (b"location", b"https://www.example.com"),
        (b"content-encoding", b"gzip"),
        (b"set-cookie", b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
    ],
]
IN_THE_TABLE: list[Header] = [
    (b":authority", b"www.example.com"),
    (b"cache-control", b"no-cache"),
    (b"custom-key", b"custom-value"),
]


def heard(*fields: Header) -> Step:
    """The backend has heard these among others."""

    async def step(scene: Scene) -> None:
        assert {*fields} <= {*scene.served[-1].request.fields}

    return step


def requests_of(blocks: list[str]) -> list[Step]:
    """The requests of an example, which are no gRPC calls, and a call that takes its fields from their table."""
    steps: list[Step] = []
    for stream, block in zip((1, 3, 5), blocks, strict=True):
        steps += [
            headers(stream, encoded=bytes.fromhex(block), end_stream=True),
            f"HEADERS {stream} 405 grpc-status 13 END_STREAM",
        ]
    call = b"\x83\x86\x04\x06/a.B/C" + THIRD + TE_AND_TYPE + SECOND + NEWEST
    return [*steps, headers(7, encoded=call, end_stream=True), answers(), heard(*IN_THE_TABLE)]


def request_with(block: str, field: Header) -> list[Step]:
    """A call with a field of an example."""
    encoded = REQUEST + bytes.fromhex(block)
    return [headers(1, encoded=encoded, end_stream=True), answers(), heard(field)]


PATH = b"\x83\x86" + bytes.fromhex("040c2f73616d706c652f70617468") + b"\x01\x01a" + TE_AND_TYPE
EXAMPLES = [
    Exchange(
        "C_2_1",
        "literal with indexing",
        request_with(
            "400a637573746f6d2d6b65790d637573746f6d2d686561646572", (b"custom-key", b"custom-header")
        ),
    ),
    Exchange(
        "C_2_2",
        "literal without indexing",
        [headers(1, encoded=PATH, end_stream=True), answers(), heard((b":path", b"/sample/path"))],
    ),
    Exchange(
        "C_2_3",
        "literal never indexed",
        request_with("100870617373776f726406736563726574", (b"password", b"secret")),
    ),
    Exchange(
        "C_2_4",
        "indexed",
        [
            headers(1, encoded=b"\x82\x86\x04\x06/a.B/C\x01\x01a" + TE_AND_TYPE, end_stream=True),
            *("HEADERS 1 405 grpc-status 13 END_STREAM", quiet),
        ],
    ),
    Exchange("C_3", "requests without Huffman coding", requests_of(C_3)),
    Exchange("C_4", "requests with Huffman coding", requests_of(C_4)),
]


def was_told(number: int, fields: list[Header]) -> Step:
    """The caller has been told these fields and no others."""

    async def step(scene: Scene) -> None:
        answer = await scene.calls[number].answer()
        assert answer.headers is not None
        assert answer.headers.fields == fields

    return step


def responses_of(blocks: list[str]) -> list[Step]:
    """The responses of an example, each to a call."""
    steps: list[Step] = []
    for number, block in enumerate(blocks):
        stream = 1 + 2 * number
        encoded = bytes.fromhex(block) if number else TABLE_OF_256 + bytes.fromhex(block)
        steps += [
            *(calls(), f"HEADERS {stream} /a.B/C END_STREAM"),
            *(headers(stream, encoded=encoded, end_stream=True), was_told(number, RESPONSES[number])),
        ]
    return steps


@on_every_engine
@pytest.mark.parametrize("rule", EXAMPLES, ids=str)
@trio_test
async def test_rfc7541_examples_of_requests(engine: Engine, rule: Exchange) -> None:
    await play_with_a_caller(engine, rule)


@on_every_engine
@pytest.mark.parametrize(
    "rule",
    [
        Exchange("C_5", "responses without Huffman coding", responses_of(C_5)),
        Exchange("C_6", "responses with Huffman coding", responses_of(C_6)),
    ],
    ids=str,
)
@trio_test
async def test_rfc7541_examples_of_responses(engine: Engine, rule: Exchange) -> None:
    await play_with_a_backend(engine, rule)
