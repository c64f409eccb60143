"""What `tap` tells of calls: rows that name who ended it, without secrets, and only of calls that were asked for."""

import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import ConfigError, Side
from rawgrpc_proxy.grpc.messages import encode_message
from rawgrpc_proxy.http2 import frames as h2
from rawgrpc_proxy.lab import rows as rows_module
from rawgrpc_proxy.lab.events import Sender
from rawgrpc_proxy.lab.filters import Filter
from rawgrpc_proxy.lab.link_view import LinkView
from rawgrpc_proxy.lab.readable import MAX_READABLE_BYTES, Payload, guessed, plain
from rawgrpc_proxy.lab.redact import REDACTED
from rawgrpc_proxy.lab.row_text import Style, json_of, missing_json, missing_text, text_of
from rawgrpc_proxy.lab.rows import Row, Rows
from rawgrpc_proxy.net.tapped import Link
from rawgrpc_proxy.observe.record import CallExtras, CallRecord
from tests.lab.test_link_view import CLIENT, REQUEST, RESPONSE, SERVER, TRAILERS, Peers, data

UPSTREAM = Link(number=2, side=Side.UPSTREAM, peer="10.0.0.9:50051", tls="TLSv1.3")
A_MESSAGE = b"\x0a\x05hello"


class Told(Peers):
    """Peers of which rows are kept, and their text."""

    def __init__(self, link: Link | None = None, **how: Any) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self.maker = Rows(self.rows.append, **{"mode": "messages", **how})
        bytes_wanted = 1000 if how.get("decode") else 0
        self.view = LinkView(link or self.view.link, self.maker.tell, payload_bytes=bytes_wanted)
        self.say(CLIENT, h2.PREFACE + h2.settings({}))
        self.say(SERVER, h2.settings({h2.Setting.MAX_FRAME_SIZE: 16384}))

    @property
    def kinds(self) -> list[str]:
        return [row["event"] for row in self.rows]

    @property
    def text(self) -> str:
        return "".join(text_of(row, Style()) for row in self.rows)

    def call(self, stream: int = 1, *, extra: tuple[tuple[str, str], ...] = (), status: str = "14") -> None:
        self.say(CLIENT, self.headers(CLIENT, [*REQUEST, *extra], stream))
        self.say(CLIENT, data(encode_message(A_MESSAGE), stream, end=True))
        trailers = [("grpc-status", status), ("grpc-message", "gone%20away")]
        self.say(SERVER, self.headers(SERVER, RESPONSE, stream))
        self.now = 1.25
        self.say(
            SERVER, data(encode_message(b"x"), stream) + self.headers(SERVER, trailers, stream, end=True)
        )


def test_a_call_in_messages() -> None:
    told = Told(decode=guessed)
    told.call()
    begin, request, response, end = told.rows
    assert told.kinds == ["begin", "message", "message", "end"]
    assert (request["from"], request["to"], request["method"]) == ("caller", "proxy", "/pkg.S/Do")
    assert request["message"] == [{"field": 1, "text": "hello"}]
    assert (response["from"], response["length"], response["message"]) == ("proxy", 1, {"hex": "78"})
    assert (end["status"], end["detail"], end["duration_ms"]) == ("UNAVAILABLE", "gone away", 250)
    assert (end["ended_by"], end["frame"], end["request_messages"]) == ("proxy", "HEADERS", 1)
    assert ["te", "trailers"] in begin["headers"]
    lines = told.text.splitlines()
    assert "/pkg.S/Do  begins  grpc-encoding: gzip" in lines[0]
    assert 'caller   → proxy    /pkg.S/Do  #0 7 B 1: "hello"' in lines[1]
    assert "UNAVAILABLE" in lines[3]
    assert "ended by proxy: HEADERS" in lines[3]


def test_a_call_in_frames() -> None:
    told = Told(UPSTREAM, mode="frames")
    told.call()
    told.say(
        SERVER, h2.window_update(0, 99) + h2.goaway(1, 11, b"calm\x1b[2J") + h2.ping(b"12345678", ack=True)
    )
    told.view.close(2.0)
    frames = [row.get("frame") for row in told.rows]
    assert frames == [
        None, "SETTINGS", "SETTINGS", "HEADERS", "DATA", "HEADERS", "DATA", "HEADERS", "HEADERS", "WINDOW_UPDATE",
        "GOAWAY", "PING", None,
    ]  # fmt: skip
    assert told.rows[2]["settings"] == {"MAX_FRAME_SIZE": 16384}
    assert (told.rows[3]["kind"], told.rows[3]["flags"]) == ("request", ["END_HEADERS"])
    assert (told.rows[4]["from"], told.rows[4]["to"], told.rows[4]["method"]) == (
        "proxy",
        "upstream",
        "/pkg.S/Do",
    )
    assert told.rows[8]["ended_by"] == "upstream"
    assert (told.rows[10]["error_code"], told.rows[10]["last_stream"]) == ("ENHANCE_YOUR_CALM", 1)
    text = told.text
    assert "connection with 10.0.0.9:50051 TLSv1.3" in text
    assert "trailers: grpc-status: 14; grpc-message: gone%20away" in text
    assert "+99 of the connection" in text
    # A peer's text gives the terminal no orders.
    assert "\x1b" not in text
    assert "\x1b" not in json_of(told.rows[10])


def test_secrets_are_in_no_row() -> None:
    for mode in ("frames", "messages"):
        told = Told(mode=mode)
        told.call(extra=(("authorization", "Bearer s3cr3t"), ("cookie", "s3cr3t")))
        written = told.text + "".join(map(json_of, told.rows))
        assert "s3cr3t" not in written
        assert written.count(REDACTED) == 4


@pytest.mark.parametrize("sender", [CLIENT, SERVER])
def test_who_reset_a_call_is_named(sender: Sender) -> None:
    told = Told()
    told.begin()
    told.say(sender, h2.rst_stream(1, 7 if sender is SERVER else 8))
    end = told.rows[-1]
    expected = (
        ("caller", "CANCELLED", "CANCEL") if sender is CLIENT else ("proxy", "UNAVAILABLE", "REFUSED_STREAM")
    )
    assert (end["ended_by"], end["status"], end["error_code"]) == expected


def test_a_lost_connection_ends_its_calls() -> None:
    told = Told()
    told.begin()
    told.view.close(2.0)
    assert (told.rows[-1]["ended_by"], told.rows[-1]["status"]) == ("link", "UNAVAILABLE")
    assert "the connection has closed" in told.text


@pytest.mark.parametrize("record_first", [True, False])
def test_what_the_server_knows_of_a_call_is_told_at_its_end(record_first: bool) -> None:
    told = Told(hears_records=True)
    extras = CallExtras(headers=[], stream_id=1, tls_peer=None, started=0.0)
    record = CallRecord(method="/pkg.S/Do", peer="127.0.0.1:5", origin="lost", cause="RST", extras=extras)
    record.status = Status.UNAVAILABLE
    if record_first:
        told.maker.call_ended(record)
    told.call()
    if not record_first:
        assert told.kinds[-1] == "message"
        told.maker.call_ended(record)
    assert (told.rows[-1]["origin"], told.rows[-1]["cause"]) == ("lost", "RST")
    assert "(status from lost, RST)" in told.text


def test_an_end_of_which_the_server_says_nothing_is_told_without_it() -> None:
    told = Told(hears_records=True)
    told.call()
    told.maker.settle(1.0)
    assert told.kinds[-1] == "message"
    told.maker.settle(1.5)
    assert told.kinds[-1] == "end"
    assert "origin" not in told.rows[-1]


def test_a_filter_shows_calls_that_match() -> None:
    told = Told(filters=[Filter.parse("metadata.x-user=alice"), Filter.parse("metadata.x-user=bob")])
    for stream, user in ((1, "alice"), (3, "carol"), (5, "bob")):
        told.call(stream, extra=(("x-user", user),))
    assert [row["stream"] for row in told.rows] == [1] * 4 + [5] * 4


def test_by_status_a_call_is_shown_whole_when_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(filters=[Filter.parse("status=UNAVAILABLE")])
    told.begin(1)
    assert told.rows == []
    told.say(SERVER, told.headers(SERVER, [*RESPONSE, *TRAILERS], 1, end=True) + h2.rst_stream(1, 0))
    assert told.kinds == ["begin", "end"]
    assert "(then RST_STREAM NO_ERROR by proxy)" in told.text
    told.call(3, status="0")
    assert told.kinds == ["begin", "end"]
    # What is held is bounded.
    monkeypatch.setattr(rows_module, "MAX_HELD", 2)
    told.call(5)
    assert told.kinds[2:] == ["begin", "message", "left_out", "end"]
    assert told.rows[4]["rows"] == 1
    assert "... 1 rows of this call were not held" in told.text


def test_what_belongs_to_no_call_is_shown_by_peer_only() -> None:
    for text, shown in (("peer=127.*", True), ("peer=10.*", False), ("method!=/x/*", False)):
        told = Told(mode="frames", filters=[Filter.parse(text)])
        assert ("frame" in told.kinds) is shown, text


def test_compressed_messages_are_read() -> None:
    told = Told(decode=guessed)
    told.begin()
    told.say(CLIENT, data(encode_message(gzip.compress(A_MESSAGE), compressed=True)))
    assert (told.rows[-1]["compressed"], told.rows[-1]["text"]) == ("gzip", '1: "hello"')
    told.say(CLIENT, data(encode_message(b"no gzip", compressed=True)))
    assert told.rows[-1]["undecoded"].startswith("not gzip")
    assert "(gzip) not gzip" in told.text


def test_of_a_bomb_no_more_is_read_than_of_other_messages() -> None:
    told = Told(decode=guessed)
    told.begin()
    bomb = gzip.compress(b"\x0a\x80\x80\x80\x04" + bytes(8 << 20), 9)[:900]
    told.say(CLIENT, data(encode_message(bomb, compressed=True)))
    assert told.rows[-1]["cut"]
    assert told.rows[-1]["text"] == "…"
    before = plain(bomb, 1, "gzip", is_whole=True)
    assert isinstance(before, Payload)
    assert len(before.data) == MAX_READABLE_BYTES


def test_what_cannot_be_read_is_told() -> None:
    told = Told(mode="frames")
    told.say(CLIENT, h2.frame_header(h2.HEADERS, h2.END_HEADERS, 1, 1) + b"\xff")
    told.say(CLIENT, told.headers(CLIENT, REQUEST, 3))
    assert told.kinds[3:] == ["frame", "unreadable", "frame"]
    assert "unreadable (headers): a header block cannot be decoded" in told.text


@given(st.binary(max_size=200), st.sampled_from(["frames", "messages"]))
def test_whatever_passes_is_lines(noise: bytes, mode: str) -> None:
    told = Told(mode=mode, decode=guessed)
    told.begin()
    told.say(SERVER, told.headers(SERVER, RESPONSE) + data(encode_message(noise)))
    told.say(CLIENT, noise)
    told.view.close(2.0)
    assert told.text.count("\n") == len(told.rows)
    for row in told.rows:
        json.loads(json_of(row))


def test_colours_and_arrows_are_there_where_they_can_be_shown() -> None:
    told = Told()
    told.call()
    assert "\x1b[32m" not in text_of(told.rows[-1], Style())
    assert "\x1b[31mUNAVAILABLE\x1b[0m" in text_of(told.rows[-1], Style(colours=True))
    assert "caller   -> proxy" in text_of(told.rows[0], Style(unicode=False))


def test_lines_that_are_missing_are_counted() -> None:
    assert json.loads(missing_json(3)) == {"event": "dropped", "rows": 3}
    assert missing_text(3).startswith("... 3 lines are missing")


def test_another_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="frames, messages"):
        Rows(print, mode="bytes")  # type: ignore[arg-type]
