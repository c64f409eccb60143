"""Faults of trailers, messages and frames."""

import pytest

from rawgrpc_proxy.lab.faults.actions import (
    Action,
    BadGrpcMessage,
    CutMessage,
    DoubleMessage,
    DropStatus,
    DropTrailers,
    FlipBits,
    PadFrame,
    SplitFrame,
    SplitTrailersOnly,
    SwapMessages,
    TrailersBeforeData,
    UnknownFrame,
)
from rawgrpc_proxy.lab.faults.fault import Fault
from rawgrpc_proxy.lab.faults.message_faults import MAX_MESSAGE_BYTES
from rawgrpc_proxy.lab.faults.places import (
    AfterBytes,
    AfterMessage,
    AtTrailers,
    BeforeHeaders,
    OnFrame,
    Part,
    Place,
)
from tests.lab.faults.talk import OK, RESPONSE, Talk, message, request_fields

ANYWHERE = [BeforeHeaders(), AfterMessage(number=1), AtTrailers()]
TRAILERS = [(b"grpc-status", b"5"), (b"grpc-message", b"none"), (b"x-a", b"b")]
A, B, C = message(b"aaaa"), message(b"bb"), message(b"c")


def answered(where: Place, *actions: Action) -> Talk:
    talk = Talk(Fault(where=where, do=actions))
    talk.client.request(1, b"x")
    talk.server.respond(1, b"aaaa", b"bb", trailers=TRAILERS)
    return talk


# ------------------------------------------------------------------- trailers


@pytest.mark.parametrize("where", ANYWHERE, ids=str)
def test_without_trailers_a_response_ends_with_empty_data(where: Place) -> None:
    talk = answered(where, DropTrailers())
    assert talk.client.log == ["HEADERS 1 200", "DATA 1 9", "DATA 1 7", "DATA 1 0 END"]
    assert talk.struck == [1]


@pytest.mark.parametrize("where", ANYWHERE, ids=str)
def test_trailers_without_a_status_have_all_else(where: Place) -> None:
    assert answered(where, DropStatus()).client.fields[1][-1] == [(b"x-a", b"b")]


@pytest.mark.parametrize("where", ANYWHERE, ids=str)
def test_a_bad_message_takes_the_place_of_the_good_one(where: Place) -> None:
    fields = answered(where, BadGrpcMessage(value="%zz")).client.fields[1][-1]
    assert fields == [(b"grpc-status", b"5"), (b"x-a", b"b"), (b"grpc-message", b"%zz")]


@pytest.mark.parametrize("where", [BeforeHeaders(), AtTrailers()], ids=str)
def test_trailers_can_come_before_the_last_data(where: Place) -> None:
    talk = answered(where, TrailersBeforeData())
    assert talk.client.log == ["HEADERS 1 200", "DATA 1 9", "HEADERS 1 5", "DATA 1 7 END"]
    assert talk.client.got[1] == A + B
    assert talk.struck == [1]
    assert talk.middle._calls == {}


def test_a_response_whose_last_data_ends_it_has_no_trailers_to_come_before() -> None:
    talk = Talk(Fault(do=TrailersBeforeData()))
    talk.client.request(1)
    talk.server.headers(1, RESPONSE)
    talk.server.data(1, A)
    talk.server.data(1, B, end=True)
    assert talk.client.log == ["HEADERS 1 200", "DATA 1 9", "DATA 1 7 END"]
    assert talk.struck == []


def test_data_that_is_kept_for_the_trailers_does_not_shut_its_senders_window() -> None:
    talk = Talk(Fault(do=TrailersBeforeData()), client={4: 9})
    talk.client.request(1)
    talk.server.headers(1, RESPONSE)
    talk.server.data(1, A)
    assert talk.client.got[1] == b""
    assert talk.server.send_windows[0] == 65_535
    talk.server.data(1, B)
    talk.server.headers(1, OK, end=True)
    assert talk.client.log == ["HEADERS 1 200", "DATA 1 9", "HEADERS 1 0", "DATA 1 7 END"]


def trailers_only(action: Action) -> Talk:
    talk = Talk(Fault(do=action))
    talk.client.request(1)
    talk.server.headers(1, [*RESPONSE, *TRAILERS], end=True)
    return talk


def test_trailers_only_is_split_into_headers_and_trailers() -> None:
    talk = trailers_only(SplitTrailersOnly())
    assert talk.client.fields[1] == [RESPONSE, TRAILERS]
    assert talk.client.log == ["HEADERS 1 200", "HEADERS 1 5 END"]
    assert talk.struck == [1]


def test_a_response_with_trailers_of_its_own_is_not_split() -> None:
    talk = answered(BeforeHeaders(), SplitTrailersOnly())
    assert talk.client.fields[1] == [RESPONSE, TRAILERS]
    assert talk.struck == []


def test_trailers_only_loses_what_would_be_in_trailers() -> None:
    talk = trailers_only(DropTrailers())
    assert talk.client.fields[1] == [[*RESPONSE, (b"x-a", b"b")]]
    assert talk.client.log[0].endswith("END")


def test_trailers_only_loses_its_status() -> None:
    assert trailers_only(DropStatus()).client.fields[1] == [[*RESPONSE, (b"x-a", b"b")]]


# ------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("number", "action", "body"),
    [
        (1, CutMessage(), A[:3]),
        (2, CutMessage(keep=1), A + B[:1]),
        (1, CutMessage(keep=7), A[:7]),
        (1, CutMessage(keep=1000), A[:-1]),
        (1, DoubleMessage(), A + A + B + C),
        (3, DoubleMessage(), A + B + C + C),
        (1, SwapMessages(), B + A + C),
        (2, SwapMessages(), A + C + B),
    ],
    ids=str,
)
@pytest.mark.parametrize("of", Part)
@pytest.mark.parametrize("frames", [1, 2, 25])
def test_it_is_done_to_the_message_of_that_number(
    number: int, action: Action, body: bytes, of: Part, frames: int
) -> None:
    """However the messages are cut into frames."""
    talk = Talk(Fault(where=AfterMessage(number=number, of=of), do=action))
    whole = A + B + C
    size = -(-len(whole) // frames)
    talk.client.headers(1, request_fields())
    end = talk.client if of is Part.REQUEST else talk.server
    if of is Part.RESPONSE:
        talk.client.data(1, b"", end=True)
        talk.server.headers(1, RESPONSE)
    for start in range(0, len(whole), size):
        end.data(1, whole[start : start + size])
    if of is Part.REQUEST:
        talk.client.data(1, b"", end=True)
        assert talk.server.got[1] == body
        assert talk.server.log[-1].endswith("END")
    else:
        talk.server.headers(1, OK, end=True)
        assert talk.client.got[1] == body
        assert talk.client.log[-1] == "HEADERS 1 0 END"
    assert talk.struck == [1]
    assert talk.client.send_windows[0] == talk.server.send_windows[0] == 65_535


def test_a_message_that_others_come_before_waits_for_what_is_done_to_those() -> None:
    talk = Talk(
        Fault(where=AfterMessage(number=1), do=SwapMessages()),
        Fault(where=AfterMessage(number=2), do=DoubleMessage()),
    )
    talk.client.request(1)
    talk.server.respond(1, b"aaaa", b"bb", b"c")
    assert talk.client.got[1] == B + B + A + C
    assert talk.struck == [1, 1]


@pytest.mark.parametrize("bits", [1, 5, 4096])
def test_bits_of_the_payload_are_flipped_and_the_same_ones_with_the_same_seed(bits: int) -> None:
    bodies = {answered(AfterMessage(number=1), FlipBits(bits=bits)).client.got[1] for _ in range(2)}
    assert len(bodies) == 1
    body = bodies.pop()
    assert (body[:5], body[9:]) == (A[:5], B)
    changed = int.from_bytes(body[5:9], "big") ^ int.from_bytes(A[5:9], "big")
    assert changed.bit_count() == min(bits, 32)


@pytest.mark.parametrize("where", [BeforeHeaders(of=Part.RESPONSE), AfterBytes(count=0)], ids=str)
def test_elsewhere_it_is_done_to_the_message_that_begins_next(where: Place) -> None:
    assert answered(where, DoubleMessage()).client.got[1] == A + A + B


def test_in_the_middle_of_a_message_it_is_the_next_one() -> None:
    assert answered(AfterBytes(count=3), DoubleMessage()).client.got[1] == A + B + B


@pytest.mark.parametrize("action", [FlipBits(), SwapMessages()])
def test_what_there_is_nothing_to_be_done_to_is_left_alone(action: Action) -> None:
    talk = Talk(Fault(where=AfterMessage(number=2), do=action))
    talk.client.request(1)
    talk.server.respond(1, b"aaaa", b"")
    assert talk.client.got[1] == A + message(b"")
    assert talk.client.log[-1] == "HEADERS 1 0 END"
    assert talk.struck == []


def test_a_message_that_ends_too_soon_comes_out_as_it_is() -> None:
    talk = Talk(Fault(where=AfterMessage(number=1), do=DoubleMessage()))
    talk.client.request(1)
    talk.server.headers(1, RESPONSE)
    talk.server.data(1, A[:7])
    talk.server.headers(1, OK, end=True)
    assert talk.client.got[1] == A[:7]


def test_a_message_that_is_larger_than_the_windows_is_held_with_credit_of_our_own() -> None:
    talk = Talk(Fault(where=AfterMessage(number=1), do=DoubleMessage()))
    talk.client.credit_every = 30_000
    talk.client.request(1)
    talk.server.headers(1, RESPONSE)
    body = message(bytes(range(256)) * 1000)
    sent = 0
    for _ in range(100):
        sent += talk.server.body(1, body[sent:])
    assert sent == len(body)
    talk.server.headers(1, OK, end=True)
    assert talk.client.got[1] == body + body
    assert talk.client.log[-1] == "HEADERS 1 0 END"


def test_a_message_that_is_too_large_to_be_held_passes_as_it_is() -> None:
    talk = Talk(Fault(where=AfterMessage(number=1), do=DoubleMessage()))
    talk.client.request(1)
    talk.server.headers(1, RESPONSE)
    body = message(bytes(MAX_MESSAGE_BYTES + 100_000))
    sent = 0
    for _ in range(1000):
        sent += talk.server.body(1, body[sent:])
    talk.server.headers(1, OK, end=True)
    assert talk.client.got[1] == body
    assert talk.struck == []


# --------------------------------------------------------------------- frames


def test_a_frame_is_split_at_its_byte() -> None:
    talk = answered(BeforeHeaders(of=Part.RESPONSE), SplitFrame(at=2))
    assert talk.client.log == ["HEADERS 1 200", "DATA 1 2", "DATA 1 7", "DATA 1 7", "HEADERS 1 5 END"]


def test_each_frame_is_split_that_is_long_enough() -> None:
    talk = answered(BeforeHeaders(of=Part.RESPONSE), SplitFrame(at=8, all=True))
    assert talk.client.log == ["HEADERS 1 200", "DATA 1 8", "DATA 1 1", "DATA 1 7", "HEADERS 1 5 END"]


@pytest.mark.parametrize("at", [0, 1, 20])
def test_a_header_block_is_split_into_a_continuation(at: int) -> None:
    talk = Talk(
        Fault(
            where=OnFrame(frame="HEADERS", of=Part.REQUEST, before=True),
            do=SplitFrame(at=at, frame="HEADERS"),
        )
    )
    talk.client.request(1)
    block = talk.server.raw[talk.server.raw.index(bytes([1, 0, 0, 0, 0, 1])) - 3 :]
    assert int.from_bytes(block[:3], "big") == at
    assert block[9 + at + 3 : 9 + at + 5] == bytes([9, 4])
    assert talk.server.fields[1] == [request_fields()]


@pytest.mark.parametrize("padding", [0, 1, 255])
def test_a_frame_is_padded_and_later_ones_are_not(padding: int) -> None:
    talk = answered(BeforeHeaders(of=Part.RESPONSE), PadFrame(bytes=padding))
    assert talk.client.log == [
        "HEADERS 1 200", f"DATA 1 9 padded {padding}", "DATA 1 7", "HEADERS 1 5 END"
    ]  # fmt: skip
    assert talk.client.got[1] == A + B


def test_all_frames_are_padded_for_as_long_as_a_stream_goes_on() -> None:
    talk = Talk(Fault(where=BeforeHeaders(of=Part.RESPONSE), do=PadFrame(all=True)))
    talk.client.credit_every = 20_000
    talk.client.request(1)
    talk.server.headers(1, RESPONSE)
    for number in range(2000):
        assert talk.server.room(1) >= 100, f"no window behind {number} messages"
        talk.server.data(1, message(bytes(95)))
    talk.server.headers(1, OK, end=True)
    assert talk.client.got[1] == message(bytes(95)) * 2000
    assert {line for line in talk.client.log if line.startswith("DATA")} == {"DATA 1 100 padded 255"}


def test_padding_for_which_a_window_never_has_room_is_left_out() -> None:
    talk = Talk(Fault(where=BeforeHeaders(of=Part.RESPONSE), do=PadFrame(all=True)), client={4: 100})
    talk.client.request(1)
    talk.server.headers(1, RESPONSE)
    talk.server.data(1, A)
    assert talk.client.log[-1] == "DATA 1 9"


def test_a_frame_of_an_unknown_type_is_beside_the_others() -> None:
    talk = answered(AfterMessage(number=1), UnknownFrame(type=0xBB))
    assert talk.client.log == ["HEADERS 1 200", "DATA 1 9", "TYPE 0xbb 1", "DATA 1 7", "HEADERS 1 5 END"]


def test_padding_of_the_sender_is_taken_off_and_credited() -> None:
    talk = Talk(Fault(where=AfterMessage(number=9), do=UnknownFrame()))
    talk.client.request(1)
    talk.server.headers(1, RESPONSE)
    talk.server.data(1, A, pad=200)
    assert talk.client.log[-1] == "DATA 1 9"
    assert talk.server.send_windows[1] == talk.server.send_windows[0] == 65_535


def test_a_content_length_that_faults_would_make_false_is_left_out() -> None:
    talk = Talk(Fault(where=AfterMessage(number=1), do=DoubleMessage()))
    talk.client.headers(1, [*request_fields(), (b"content-length", b"5")])
    talk.client.data(1, message(b""), end=True)
    assert talk.server.fields[1] == [request_fields()]
