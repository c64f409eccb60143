"""A recording is what has passed, byte for byte, and what is left of a file that was cut is true."""

import base64
import json
import os
import stat
import tempfile
import threading
from pathlib import Path
from time import process_time
from typing import Any

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import trio_test

from rawgrpc_proxy import Status
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.errors import ConfigError, Side
from rawgrpc_proxy.http2 import frames as h2
from rawgrpc_proxy.lab.events import Sender
from rawgrpc_proxy.lab.frame_cutter import FrameCutter
from rawgrpc_proxy.lab.recorder import Recorder
from rawgrpc_proxy.lab.recording import (
    Bytes,
    Closed,
    End,
    Frame,
    Head,
    Lost,
    Next,
    Opened,
    Record,
    line_of,
    read,
    records,
)
from rawgrpc_proxy.net.tapped import Link
from tests.net.test_tapped import Seen
from tests.proxy.house import a_proxy, on_every_engine

CLIENT, SERVER = Sender.CLIENT, Sender.SERVER
DOWN = Link(number=1, side=Side.DOWNSTREAM, peer="127.0.0.1:5", tls=None)
REQUEST = [(b":method", b"POST"), (b":path", b"/pkg.S/Do"), (b"authorization", b"Bearer s3cret")]
HEAD = Head(id="abc", part=1, started="2026-01-02T03:04:05.000006Z")


def header_frame(block: bytes, flags: int = h2.END_HEADERS, kind: int = h2.HEADERS) -> bytes:
    return h2.frame_header(kind, flags, 1, len(block)) + block


class Both:
    """A tap that records, and keeps what it was told."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.seen: list[Seen] = []

    def link(self, link: Link) -> Any:
        taps = [Seen(link), self._recorder.link(link)]
        self.seen.append(taps[0])  # type: ignore[arg-type]

        class Twice:
            def __getattr__(self, name: str) -> Any:
                def tell(*data: bytes) -> None:
                    for tap in taps:
                        getattr(tap, name)(*data)

                return tell

        return Twice()


@on_every_engine
@trio_test
async def test_every_byte_of_both_sides_of_a_proxy_is_in_the_file(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    with Recorder(path) as recorder:
        tap = Both(recorder)
        async with a_proxy(engine, tap=tap, pool={"tap": tap}) as house:
            client = await house.client()
            call = await client.request(body=b"x" * 100_000)
            served = await house.backend.request()
            await served.request_body()
            await served.respond(b"y" * 100_000)
            assert (await call.answer()).status == Status.OK
    recording = read(path)
    assert recording.complete
    down, up = recording.links
    for link, seen in ((down, tap.seen[0]), (up, tap.seen[1])):
        received, sent = (CLIENT, SERVER) if link.side is Side.DOWNSTREAM else (SERVER, CLIENT)
        assert link.bytes_of(received) == seen.received_bytes
        assert link.bytes_of(sent) == seen.sent_bytes
        assert (link.side, link.peer, link.lost) == (seen.link.side, seen.link.peer, None)
        assert link.closed_at is not None
        times = [entry.at for entry in link.entries]
        assert link.opened_at <= times[0]
        assert times == sorted(times)
    lists = [entry.headers for entry in down.entries if isinstance(entry, Frame) and entry.headers]
    assert b":path" in dict(lists[0])
    assert (b"grpc-status", b"0") in lists[-1]


def test_a_file_is_read_with_nothing_but_json_and_base64_and_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    with Recorder(path) as recorder:
        tap = recorder.link(DOWN)
        assert tap is not None
        tap.received(h2.PREFACE + h2.settings({}) + header_frame(hpack.Encoder().encode(REQUEST)))
        tap.sent(h2.SETTINGS_ACK[:5])
        tap.closed()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    head, opened, preface, settings, headers, rest, closed, end = map(
        json.loads, path.read_text(encoding="ascii").splitlines()
    )
    assert (head["kind"], head["format"], head["version"], head["part"]) == (
        "recording",
        "rawgrpc-recording",
        1,
        1,
    )
    assert (opened["kind"], opened["side"], opened["peer"]) == ("open", "downstream", "127.0.0.1:5")
    assert base64.b64decode(preface["raw"]) == h2.PREFACE
    assert (settings["type"], settings["from"], settings["stream"]) == ("SETTINGS", "client", 0)
    assert headers["headers"][1] == [":path", "/pkg.S/Do"]
    assert (rest["kind"], rest["from"], base64.b64decode(rest["raw"])) == (
        "bytes",
        "server",
        h2.SETTINGS_ACK[:5],
    )
    assert (closed["kind"], end["kind"]) == ("close", "end")


def test_a_file_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="there already"):
        Recorder(path)
    assert path.read_text() == "precious"
    (tmp_path / "other.jsonl.2").touch()
    with pytest.raises(ConfigError, match=r"other\.jsonl\.2 is there already"):
        Recorder(tmp_path / "other.jsonl")


def test_a_recording_goes_on_in_further_files_and_is_read_as_one(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    pings = b"".join(h2.ping(b"%08d" % number) for number in range(100))
    with Recorder(path, rotate_bytes=2000) as recorder:
        tap = recorder.link(DOWN)
        assert tap is not None
        tap.received(h2.PREFACE + pings)
        tap.closed()
    parts = sorted(tmp_path.iterdir())
    assert len(parts) > 5
    assert all(part.stat().st_size < 2500 and part.stat().st_mode & 0o077 == 0 for part in parts)
    [link] = read(path).links
    assert link.bytes_of(CLIENT) == h2.PREFACE + pings
    (tmp_path / "calls.jsonl.3").unlink()
    cut = read(path)
    assert not cut.complete
    assert (h2.PREFACE + pings).startswith(cut.links[0].bytes_of(CLIENT))


def test_what_the_disk_cannot_take_in_time_is_told_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, write = threading.Event(), os.write

    def slow_write(fd: int, data: bytes) -> int:
        if threading.current_thread().name == "recorder":
            go_on.wait(60)
        return write(fd, data)

    monkeypatch.setattr(os, "write", slow_write)
    path = tmp_path / "calls.jsonl"
    with Recorder(path, max_waiting_bytes=10_000) as recorder:
        tap = recorder.link(DOWN)
        assert tap is not None
        for number in range(100):
            tap.sent(h2.ping(b"%08d" % number))
        tap.closed()
        go_on.set()
    assert recorder.lost_links == 1
    [link] = read(path).links
    assert link.lost is not None
    assert "10000 bytes were waiting" in link.lost
    # What is there is the beginning, without a gap.
    kept = [entry.raw for entry in link.entries]
    assert 0 < len(kept) < 100
    assert kept == [h2.ping(b"%08d" % number) for number in range(len(kept))]


def test_a_full_disk_ends_the_recording_and_hurts_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    failures: list[OSError] = []

    def full(fd: int, data: bytes) -> int:
        if threading.current_thread().name == "recorder":
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", full)
    with Recorder(tmp_path / "calls.jsonl", on_failure=failures.append) as recorder:
        tap = recorder.link(DOWN)
        assert tap is not None
        tap.sent(h2.SETTINGS_ACK)
        tap.closed()
    assert [error.strerror for error in failures] == ["No space left on device"]
    assert recorder.link(DOWN) is None


@pytest.mark.parametrize("pieces", [1, 3])
def test_redacted_headers_are_in_no_byte_of_the_file_and_frames_can_be_played_all_the_same(
    tmp_path: Path, pieces: int
) -> None:
    path = tmp_path / "calls.jsonl"
    encoder, decoder = hpack.Encoder(), hpack.Decoder()
    blocks = [encoder.encode(REQUEST, huffman=False) for _ in range(2)]
    with Recorder(path, redact=["Authorization"]) as recorder:
        tap = recorder.link(DOWN)
        assert tap is not None
        tap.received(h2.PREFACE)
        for block in blocks:
            size = -(-len(block) // pieces)
            cut = [block[start : start + size] for start in range(0, len(block), size)]
            for place, piece in enumerate(cut):
                kind = h2.CONTINUATION if place else h2.HEADERS
                flags = h2.END_HEADERS if place == len(cut) - 1 else 0
                tap.received(header_frame(piece, flags, kind))
        tap.closed()
    recording = read(path)
    assert recording.head.redacted == ("authorization",)
    [link] = recording.links
    frames = [entry for entry in link.entries if isinstance(entry, Frame)]
    assert len(frames) == 2
    for frame in frames:
        fields = [tuple(field) for field in decoder.decode(frame.payload, raw=True)]
        assert fields == [*REQUEST[:2], (b"authorization", b"[redacted]")]
        assert frame.headers == tuple(fields)
    assert b"s3cret" not in link.bytes_of(CLIENT)
    assert "s3cret" not in path.read_text()


def test_long_values_are_made_anew_in_a_time_that_is_linear(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    value = b"z" * 200_000
    with Recorder(path, redact=["authorization"]) as recorder:
        tap = recorder.link(DOWN)
        assert tap is not None
        tap.received(h2.PREFACE + h2.settings({}))
        block = hpack.Encoder().encode([*REQUEST, (b"x-long", value)], huffman=False)
        began = process_time()
        tap.received(header_frame(block))
        tap.closed()
    assert process_time() - began < 3
    (link,) = read(path).links
    assert value in b"".join(each.payload for each in link.entries if isinstance(each, Frame))


def test_what_cannot_be_redacted_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    with Recorder(path, redact=["authorization"]) as recorder:
        tap = recorder.link(DOWN)
        assert tap is not None
        tap.received(b"GET / HTTP/1.1\r\nauthorization: s3cret\r\n\r\n")
        tap.closed()
    [link] = read(path).links
    assert (link.entries, link.lost) == ((), "what is no HTTP/2 cannot be redacted")


# -------------------------------------------------------------------- properties

times = st.floats(0, 1e6).map(lambda at: round(at, 6))
senders = st.sampled_from(Sender)
numbers = st.integers(1, 1000)
fields = st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=3).map(tuple)
frames = st.builds(
    lambda link, at, sender, kind, flags, stream, payload, headers: Frame(
        link, at, sender, h2.HEADER.pack(len(payload) << 8 | kind, flags, stream) + payload, headers
    ),
    numbers,
    times,
    senders,
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=50),
    st.none() | fields,
)
some_records = st.lists(
    frames
    | st.builds(Bytes, numbers, times, senders, st.binary(max_size=50))
    | st.builds(
        Opened,
        numbers,
        times,
        st.sampled_from((Side.DOWNSTREAM, Side.UPSTREAM)),
        st.text(max_size=10),
        st.none() | st.just("TLSv1.3"),
    )
    | st.builds(Lost, numbers, times, st.text(max_size=20))
    | st.builds(Closed, numbers, times)
    | st.builds(End, times),
    max_size=8,
)


@given(some_records, st.data())
def test_what_was_written_is_read_and_of_a_file_that_was_cut_what_was_before_the_cut(
    written: list[Record], data: st.DataObject
) -> None:
    lines = [line_of(record) for record in (HEAD, *written)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calls.jsonl"
        path.write_bytes(b"".join(lines))
        assert list(records(path)) == [HEAD, *written]
        cut = data.draw(st.integers(0, path.stat().st_size))
        path.write_bytes(b"".join(lines)[:cut])
        left = list(records(path))
        assert left == [HEAD, *written][: len(left)]
        # No line that was whole is missing.
        assert len(b"".join(lines[: len(left) + 1])) > cut or len(left) == len(lines)


@given(st.lists(st.binary(max_size=40), max_size=8), st.booleans(), st.booleans())
def test_whatever_the_bytes_are_the_pieces_joined_are_the_same(
    chunks: list[bytes], preface: bool, speaks: bool
) -> None:
    if speaks:
        chunks = [h2.PREFACE[:9], h2.PREFACE[9:] + h2.SETTINGS_ACK, *chunks]
    cutter = FrameCutter(expect_preface=preface)
    pieces = [piece for chunk in chunks for piece in cutter.cut(chunk)]
    pieces += cutter.rest()
    assert b"".join(raw for _, raw in pieces) == b"".join(chunks)
    for is_frame, raw in pieces:
        assert not is_frame or len(raw) == h2.HEADER_BYTES + int.from_bytes(raw[:3])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "nothing in it"),
        (b"{}\n", "line 1: it has no 'kind'"),
        (b"\x1f\x8b\n", "line 1: this is no JSON"),
        (line_of(End(1.0)), "not the beginning of a recording"),
        (line_of(HEAD).replace(b'"version":1', b'"version":2'), "version 2; this program reads"),
        (line_of(HEAD) + b'{"kind":"frame","at":1,"link":1,"from":"client","raw":"AAAB"}\n', "not one frame"),
        (
            line_of(HEAD) + line_of(Frame(7, 0.0, CLIENT, h2.SETTINGS_ACK)),
            "link 7, which was not opened",
        ),
    ],
)
def test_what_is_no_recording_is_refused_in_words(tmp_path: Path, text: bytes, what: str) -> None:
    path = tmp_path / "calls.jsonl"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=what):
        read(path)


def test_a_part_of_another_recording_is_not_taken_for_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(line_of(HEAD) + line_of(Next(2)))
    (tmp_path / "a.2").write_bytes(line_of(Head(id="other", part=2, started="")) + line_of(End(1.0)))
    with pytest.raises(ConfigError, match="not part 2 of this recording"):
        read(tmp_path / "a")
