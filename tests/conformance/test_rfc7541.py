"""RFC 7541, said by a caller: the blocks of a request, whose fields arrive as they were meant."""

import pytest
from trio.testing import trio_test

from rawgrpc_proxy.config import Engine
from tests.conformance.rules import COMPRESSION, ByCaller, Ends, Fine, Rule, play_as_caller
from tests.http2.peer import headers
from tests.proxy.house import a_proxy, on_every_engine

#: :method POST, :scheme http, :path /a.B/C, :authority a, te trailers, content-type application/grpc
START = b"\x83\x86\x44\x06/a.B/C\x41\x01a\x40\x02te\x08trailers\x5f\x10application/grpc"


def request(*more: bytes, first: bytes = b"") -> bytes:
    return headers(1, encoded=first + START + b"".join(more))


BROKEN = [
    Rule("2_3_3", "index 0 is none", request(b"\x80"), Ends(COMPRESSION)),
    Rule("2_3_3", "an index beyond the table", request(b"\xff\x01"), Ends(COMPRESSION)),
    Rule("2_3_3", "a name beyond the table", request(b"\x7f\x20\x01x"), Ends(COMPRESSION)),
    Rule("4_2", "a table larger than allowed", request(first=b"\x3f\xe2\x1f"), Ends(COMPRESSION)),
    Rule("4_2", "a size update behind a field", request(b"\x20"), Ends(COMPRESSION)),
    Rule("4_2", "three size updates", request(first=b"\x20\x20\x20"), Ends(COMPRESSION)),
    Rule(
        "4_4",
        "an entry that was pushed out",
        request(b"\x40\x01x" + b"\x7f\xe1\x1e" + b"v" * 4064, b"\xc0"),
        Ends(COMPRESSION),
    ),
    Rule("5_1", "an integer without an end", request(b"\xff\xff"), Ends(COMPRESSION)),
    Rule("5_1", "an integer beyond 32 bits", request(b"\xff\xff\xff\xff\xff\xff\x01"), Ends(COMPRESSION)),
    Rule("5_2", "a string that is cut short", request(b"\x00\x01x\x05abc"), Ends(COMPRESSION)),
    Rule("5_2", "a name that is cut short", request(b"\x00\x7f"), Ends(COMPRESSION)),
    Rule("5_2", "EOS in a string", request(b"\x00\x01x\x84\xff\xff\xff\xff"), Ends(COMPRESSION)),
    Rule("5_2", "padding of more than seven bits", request(b"\x00\x01x\x82\x1f\xff"), Ends(COMPRESSION)),
    Rule("5_2", "padding of zeros", request(b"\x00\x01x\x81\x18"), Ends(COMPRESSION)),
    Rule("4_2", "two size updates are fine", request(first=b"\x20\x3f\xe1\x1f"), Fine()),
    Rule(
        "5_1", "an integer may have zeros behind it", request(b"\x00\x01x\x7f\x80\x00" + b"v" * 127), Fine()
    ),
]


@on_every_engine
@pytest.mark.parametrize("rule", BROKEN, ids=str)
@trio_test
async def test_rfc7541(engine: Engine, rule: Rule[ByCaller]) -> None:
    await play_as_caller(engine, rule)


FIELDS = [
    ("6_1", "a field of the table", b"\x90", (b"accept-encoding", b"gzip, deflate")),
    ("6_2_1", "with a new name", b"\x40\x01x\x01y", (b"x", b"y")),
    ("6_2_1", "with a name of the table", b"\x7a\x01y", (b"user-agent", b"y")),
    ("6_2_2", "not indexed", b"\x00\x01x\x01y", (b"x", b"y")),
    ("6_2_2", "not indexed, with a name of the table", b"\x0f\x2b\x01y", (b"user-agent", b"y")),
    ("6_2_3", "never indexed", b"\x10\x01x\x01y", (b"x", b"y")),
    ("6_2_3", "never indexed, with a name of the table", b"\x1f\x08\x01y", (b"authorization", b"y")),
    ("2_3_2", "of the dynamic table, newest first", b"\x40\x01x\x01y\xbe", (b"x", b"y")),
    (
        "5_2",
        "Huffman-coded",
        b"\x00\x01x\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
        (b"x", b"www.example.com"),
    ),
    ("5_2", "Huffman-coded names", b"\x00\x81\xf3\x01y", (b"x", b"y")),
    ("5_2", "empty strings", b"\x00\x01x\x00", (b"x", b"")),
    ("5_1", "lengths of more than a byte", b"\x00\x01x\x7f\x81\x01" + b"v" * 256, (b"x", b"v" * 256)),
    (
        "4_1",
        "an entry as large as the table",
        b"\x40\x01x\x7f\xe0\x1e" + b"v" * 4063 + b"\xbe",
        (b"x", b"v" * 4063),
    ),
]


@on_every_engine
@pytest.mark.parametrize(
    ("block", "field"),
    [case[2:] for case in FIELDS],
    ids=[f"{section}_{name.replace(' ', '_')}" for section, name, _, _ in FIELDS],
)
@trio_test
async def test_rfc7541_fields(engine: Engine, block: bytes, field: tuple[bytes, bytes]) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = client.new_stream()
        await client.send_bytes(headers(1, encoded=START + block, end_stream=True))
        served = await house.backend.request()
        assert served.request.get_all(field[0])[-1] == field[1]
        await served.respond()
        assert (await call.answer()).status == 0


@on_every_engine
@trio_test
async def test_rfc7541_2_3_2_the_table_lives_as_long_as_the_connection(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        for number, block in enumerate(
            (START + b"\x40\x01x\x01y", b"\x83\x86\x44\x06/a.B/D\xc2\xc1\xc0\xbf")
        ):
            call = client.new_stream()
            await client.send_bytes(headers(1 + 2 * number, encoded=block, end_stream=True))
            served = await house.backend.request()
            assert served.request.get(b"x") == b"y"
            await served.respond()
            assert (await call.answer()).status == 0
