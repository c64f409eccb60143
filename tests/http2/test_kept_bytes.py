"""What a connection keeps of headers while it has no stream: bounded, whatever its peers have sent; gone with it."""

import gc
import itertools
import random
from collections.abc import Callable, Iterator

import hpack
import pytest

from rawgrpc_proxy.http2 import hpack as blocks
from rawgrpc_proxy.http2.field_rules import checks_for
from rawgrpc_proxy.http2.headers import FixedHeaders, HeaderList, size_of
from rawgrpc_proxy.http2.hpack import HeaderDecoder, HeaderEncoder
from rawgrpc_proxy.proxy.splice import _passed_on
from rawgrpc_proxy.server.request import Asked
from tests.http2.peer import REQUEST, Header

OF_REQUESTS, OF_RESPONSES = 42 * 1024, 22 * 1024  # 64 KiB for a connection
SHARED_BYTES = 4 * 1024 * 1024

Blocks = Iterator[bytes]
_numbers = itertools.count(1_000_000)


def tiny(rng: random.Random) -> Header:
    """The smallest name and value that are objects of their own: most of what they take is overhead."""
    return bytes(rng.choices(range(97, 123), k=2)), bytes(rng.choices(range(33, 127), k=2))


def literals(*fields: Header) -> bytes:
    return b"".join(blocks._literal(0x00, 0x0F, field) for field in fields)


def insertions(*fields: Header) -> bytes:
    return b"".join(blocks._literal(0x40, 0x3F, field) for field in fields)


def a_request(*more: Header) -> list[Header]:
    return [*REQUEST[:2], (b":path", b"/a/%d" % next(_numbers)), *REQUEST[3:], *more]


def of_many_literals() -> Blocks:
    rng = random.Random(9)
    while True:
        count = rng.randrange(60)
        yield literals(*a_request(*[(b"x%02d" % number, b"%d" % next(_numbers)) for number in range(count)]))


def of_tiny_literals() -> Blocks:
    rng = random.Random(9)
    while True:
        yield literals(*a_request(*[tiny(rng) for _ in range(rng.randrange(60))]))


def with_blanks() -> Blocks:
    rng = random.Random(9)
    while True:
        yield literals(*a_request(*[(b"x", b" %d" % next(_numbers)) for _ in range(rng.randrange(30))]))


def with_paths_that_are_none() -> Blocks:
    while True:
        path = "/é\x99".encode("latin-1") * 40 + b"%d" % next(_numbers)
        yield literals(REQUEST[0], REQUEST[1], (b":path", path))


def behind_a_full_table() -> Blocks:
    rng = random.Random(9)
    yield insertions(*[tiny(rng) for _ in range(130)])
    yield from of_tiny_literals()


def of_long_entries() -> Blocks:
    """Each answer refers to a path and a value of a kilobyte, which calls copy."""
    yield insertions((b":path", b"/a/" + b"p" * 1500), (b"y", b" " + b"y" * 1000))
    while True:
        yield (
            literals(*REQUEST[:2])
            + b"\xbf"
            + literals(REQUEST[3])
            + b"\xbe"
            + literals((b"x", b"%d" % next(_numbers)))
        )


def of_long_paths() -> Blocks:
    """Each answer refers to a path of a kilobyte, of which calls make a text."""
    yield insertions((b":path", b"/a/" + b"p" * 1000))
    while True:
        yield (
            literals(*REQUEST[:2]) + b"\xbe" + literals(REQUEST[3]) + literals((b"x", b"%d" % next(_numbers)))
        )


def of_huffman_codes() -> Blocks:
    encoder = hpack.Encoder()
    while True:
        value = b"a" * 1000 + b"%d" % next(_numbers)
        yield encoder.encode([(n, v, True) for n, v in a_request((b"x", value))], huffman=True)


HOSTILE = [
    of_many_literals,
    of_tiny_literals,
    with_blanks,
    with_paths_that_are_none,
    behind_a_full_table,
    of_long_entries,
    of_long_paths,
    of_huffman_codes,
]


def fullest(blocks: Blocks, *, of_requests: bool) -> int:
    """After how many of these blocks a decoder keeps the most."""
    decoder, kept = HeaderDecoder(2**20, 10_000, of_requests=of_requests), [0]
    for block in itertools.islice(blocks, 100):
        decoder.decode(block)
        kept.append(decoder._kept_bytes)
    return max(range(len(kept)), key=lambda count: (kept[count], count))


def use(headers: HeaderList) -> None:
    """As a call does: it leaves on the list whatever is worked out from it."""
    headers.once(checks_for((1000, 2**20)).request)
    _ = headers.once(Asked).metadata.next_hop_size
    headers.once(_passed_on)
    headers.once(size_of)


def receive(blocks: Blocks, count: int, *, of_requests: bool) -> HeaderDecoder:
    decoder = HeaderDecoder(2**20, 10_000, of_requests=of_requests)
    for block in itertools.islice(blocks, count):
        headers = decoder.decode(block)
        if headers[0] == REQUEST[0]:
            use(headers)
    return decoder


def send(kept: list[FixedHeaders], *, tiny_fields: int, of_requests: bool) -> HeaderEncoder:
    """As many of the smallest fields in the table, and as many answers as there may be."""
    encoder = HeaderEncoder(of_requests=of_requests)
    rng = random.Random(9)
    for field in [tiny(rng) for _ in range(tiny_fields)]:
        for _ in range(2):
            encoder.encode([field])
    for headers in kept:
        encoder.encode(headers)
    return encoder


def traced(make: Callable[[], object], repeat: int = 5) -> float:
    """What each of the things made takes that nothing else has."""
    tracemalloc = pytest.importorskip("tracemalloc")  # PyPy has none
    make()
    blocks._lists.clear()
    gc.collect()
    tracemalloc.start()
    try:
        made = [make() for _ in range(repeat)]
        blocks._lists.clear()
        gc.collect()
        return float(tracemalloc.get_traced_memory()[0] / len(made))
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("of_requests", [True, False])
@pytest.mark.parametrize("blocks", HOSTILE)
def test_a_decoder_keeps_no_more_than_its_share(blocks: Callable[[], Blocks], of_requests: bool) -> None:
    share = OF_REQUESTS if of_requests else OF_RESPONSES
    count = fullest(blocks(), of_requests=of_requests)

    kept = traced(lambda: receive(blocks(), count, of_requests=of_requests))

    assert share / 5 < kept <= share


@pytest.mark.parametrize("tiny_fields", [0, 65, 400])
@pytest.mark.parametrize("of_requests", [True, False])
def test_an_encoder_keeps_no_more_than_its_share(tiny_fields: int, of_requests: bool) -> None:
    """Also when the table is full of the smallest fields, which take several times what RFC 7541 counts for them."""
    share = OF_REQUESTS if of_requests else OF_RESPONSES
    lists = [FixedHeaders([*REQUEST, (b"cookie", b"%d" % number)]) for number in range(200)]
    encoder, kept = send([], tiny_fields=tiny_fields, of_requests=of_requests), [0]
    for headers in lists:
        encoder.encode(headers)
        kept.append(encoder._kept_bytes)
    fullest = kept.index(max(kept))

    empty, full = (
        traced(lambda: send(lists[:count], tiny_fields=tiny_fields, of_requests=of_requests))  # noqa: B023
        for count in (0, fullest)
    )

    assert max(empty, share / 3) < full <= share


def test_what_all_connections_share_is_bounded_in_bytes() -> None:
    tracemalloc = pytest.importorskip("tracemalloc")  # PyPy has none
    blocks._lists.clear()
    gc.collect()
    tracemalloc.start()
    try:
        most = 0
        for _ in range(50):
            decoder = HeaderDecoder(2**20, 10_000)
            for _ in range(200):
                use(decoder.decode(literals(*a_request())))
            most = max(most, len(blocks._lists.by_fields))
            assert tracemalloc.get_traced_memory()[0] <= SHARED_BYTES + OF_REQUESTS
        assert most > 1000, "worth its while"
    finally:
        tracemalloc.stop()
        blocks._lists.clear()


def test_an_honest_client_s_methods_find_room() -> None:
    """Ten of them, in turn: each list is worked out once."""
    encoder, decoder = HeaderEncoder(), HeaderDecoder(2**20, 10_000)
    requests = [
        [
            *REQUEST[:2],
            (b":path", b"/package.Service/Method%d" % number),
            *REQUEST[3:],
            (b"authorization", b"Bearer" * 30),
        ]
        for number in range(10)
    ]
    for _ in range(4):
        answers = [decoder.decode(encoder.encode(headers)) for headers in requests]

    for headers, answer in zip(requests, answers, strict=True):
        assert decoder.decode(encoder.encode(headers)) is answer


def test_nothing_of_a_caller_s_own_outlives_its_connections() -> None:
    """Neither with the shared lists, nor with the connection to the upstream, which goes on."""
    upstream = HeaderEncoder()

    def a_caller() -> None:
        encoder, decoder = HeaderEncoder(), HeaderDecoder(2**20, 10_000)
        secret = b"-".join([b"alice", b"s", b"secret"])
        for name in (b"authorization", b"x-api-key", b"token-bin"):
            for _ in range(4):
                headers = decoder.decode(encoder.encode([*REQUEST, (name, secret)]))
                use(headers)
                if name == b"authorization":
                    upstream.encode(headers.once(Asked).metadata.next_hop)

    a_caller()
    gc.collect()

    assert not [
        thing
        for thing in gc.get_objects()
        # Not isinstance: it asks the proxies of weakref, too, which raise when what they stand for is gone.
        if issubclass(type(thing), HeaderList | FixedHeaders) and b"secret" in repr(thing).encode()
    ]
    assert b"secret" not in repr(list(upstream._table)).encode()
    assert not upstream._answers


def kept_by_all() -> int:
    """What all that lives keeps. PyPy finds out in steps what lives no more."""
    for _ in range(3):
        gc.collect()
    return blocks._kept.bytes


def test_all_connections_together_keep_so_much_and_give_it_back() -> None:
    before = kept_by_all()
    decoders = [HeaderDecoder(200_000, 1000) for _ in range(400)]
    for decoder in decoders:
        for _ in range(40):
            decoder.decode(literals(*a_request((b"x", b"%d" % next(_numbers) * 100))))
    assert 11 * 2**20 < blocks._kept.bytes <= 12 * 2**20
    late = HeaderDecoder(200_000, 1000)
    block = literals(*a_request((b"x", b"y" * 2500)))
    assert late.decode(block) == late.decode(block)
    assert late.decode(block) is not late.decode(block)
    del decoder, decoders
    assert kept_by_all() <= before
    assert late.decode(block) is late.decode(block)


def test_an_encoder_gives_back_what_it_has_kept() -> None:
    before = kept_by_all()
    encoder = HeaderEncoder()
    # Of the static table: whether others are kept depends on what else their hashes meet.
    lists = [FixedHeaders([(b":method", b"POST"), (b":path", b"/")]) for _ in range(20)]
    for fields in lists * 4:
        encoder.encode(fields)
    held = kept_by_all()
    lists.pop()
    del fields
    assert before < kept_by_all() < held
    del encoder
    assert kept_by_all() <= before
