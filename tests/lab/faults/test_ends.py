"""Faults that end calls and connections."""

import pytest
from hyperframe.frame import PingFrame

from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.lab.faults.actions import (
    Action,
    AnswerHttp,
    AnswerStatus,
    Cut,
    Delay,
    End,
    Goaway,
    HalfClose,
    PingFlood,
    Reset,
    Silence,
    SplitTrailersOnly,
)
from rawgrpc_proxy.lab.faults.fault import Fault
from rawgrpc_proxy.lab.faults.link_faults import LinkEnd
from rawgrpc_proxy.lab.faults.places import (
    AfterMessage,
    AtConnect,
    AtTrailers,
    BeforeHeaders,
    OnFrame,
    Part,
    Place,
)
from tests.lab.faults.talk import OK, RESPONSE, Talk, message, request_fields

ONE = "/one.S/M"
"""The method that faults are for, where other calls are to be let alone."""


def test_a_status_before_the_headers_is_trailers_only_and_its_server_never_hears_of_the_call() -> None:
    talk = Talk(Fault(do=AnswerStatus(status="UNAVAILABLE", message="no%way ä", metadata={"x-a": "b"})))
    talk.client.request(1)
    assert talk.client.fields[1] == [
        [
            (b":status", b"200"),
            (b"content-type", b"application/grpc"),
            (b"grpc-status", b"14"),
            (b"grpc-message", b"no%25way %C3%A4"),
            (b"x-a", b"b"),
        ]
    ]
    assert talk.client.log[0].endswith(" END")
    assert talk.server.log == []


def test_a_status_behind_headers_is_in_trailers() -> None:
    talk = Talk(Fault(where=AfterMessage(number=1), do=AnswerStatus(status="DATA_LOSS", message="gone")))
    talk.client.request(1)
    talk.server.respond(1, b"x", b"y")
    assert talk.client.log == ["HEADERS 1 200", "DATA 1 6", "HEADERS 1 15 END"]
    assert talk.client.fields[1][-1] == [(b"grpc-status", b"15"), (b"grpc-message", b"gone")]
    assert talk.server.log[-1] == "RST 1 8"


def test_binary_details_go_with_a_status() -> None:
    talk = Talk(Fault(do=AnswerStatus(status=3, metadata={"grpc-status-details-bin": b"\x08\x03"})))
    talk.client.request(1)
    assert (b"grpc-status-details-bin", b"CAM") in talk.client.fields[1][0]


def test_a_client_that_still_sends_is_told_that_the_rest_is_not_wanted() -> None:
    talk = Talk(Fault(do=AnswerStatus(status=14)))
    talk.client.headers(1, request_fields())
    assert talk.client.log == ["HEADERS 1 14+200 END", "RST 1 0"]
    talk.client.data(1, message(b"x" * 1000))
    assert talk.server.log == []


def test_a_client_that_has_sent_all_is_not_reset_behind_its_answer() -> None:
    talk = Talk(Fault(where=AfterMessage(number=1), do=AnswerStatus(status=14)))
    talk.client.request(1)
    talk.server.respond(1, b"x")
    assert talk.client.log == ["HEADERS 1 200", "DATA 1 6", "HEADERS 1 14 END"]


def test_an_http_response_has_status_headers_and_body() -> None:
    page = "<html>bad gateway</html>"
    talk = Talk(Fault(do=AnswerHttp(status=502, body=page, headers={"server": "lb"})))
    talk.client.headers(1, request_fields(), end=True)
    assert talk.client.fields[1] == [
        [
            (b":status", b"502"),
            (b"content-type", b"text/html"),
            (b"content-length", b"24"),
            (b"server", b"lb"),
        ]
    ]
    assert talk.client.log == ["HEADERS 1 502", "DATA 1 24 END"]
    assert talk.client.got[1] == page.encode()
    assert talk.server.log == []


def test_an_http_response_without_a_body_ends_with_its_headers() -> None:
    talk = Talk(Fault(do=AnswerHttp(status=503)))
    talk.client.headers(1, request_fields(), end=True)
    assert talk.client.log == ["HEADERS 1 503 END"]


def test_an_http_body_waits_for_the_windows_of_its_client() -> None:
    talk = Talk(Fault(do=AnswerHttp(status=502, body=b"x" * 50)), client={4: 20})
    talk.client.credits = False
    talk.client.headers(1, request_fields(), end=True)
    assert talk.client.got[1] == b"x" * 20
    talk.client.allow(1, 100)
    assert talk.client.got[1] == b"x" * 50
    assert talk.client.log[-1].endswith("END")


def test_a_response_that_has_begun_is_not_followed_by_an_http_response() -> None:
    talk = Talk(
        Fault(where=AfterMessage(number=1, of=Part.REQUEST), do=AnswerHttp(status=502)),
    )
    talk.client.headers(1, request_fields())
    talk.server.headers(1, RESPONSE)
    talk.client.data(1, message(b"x"), end=True)
    talk.server.headers(1, OK, end=True)
    assert talk.client.log == ["HEADERS 1 200", "HEADERS 1 0 END"]
    assert talk.struck == []


@pytest.mark.parametrize("code", [0, 2, 7, 8, 11, 12345])
def test_a_reset_has_its_code_for_the_client_and_is_a_cancellation_for_the_server(code: int) -> None:
    talk = Talk(Fault(where=AfterMessage(number=1), do=Reset(code=code)))
    talk.client.request(1)
    talk.server.respond(1, b"x")
    assert talk.client.log[-1] == f"RST 1 {code}"
    assert talk.server.log[-1] == "RST 1 8"


def test_a_reset_towards_the_server_has_its_code_there() -> None:
    talk = Talk(
        Fault(where=AfterMessage(number=1, of=Part.REQUEST), do=Reset(code="NO_ERROR", towards=End.SERVER)),
        side=Side.UPSTREAM,
    )
    talk.client.request(1)
    assert talk.server.log[-1] == "RST 1 0"
    assert talk.client.log == ["RST 1 8"]


def test_frames_of_a_stream_that_was_reset_here_are_swallowed_and_credited() -> None:
    talk = Talk(Fault(method=ONE, where=AfterMessage(number=1, of=Part.REQUEST), do=Reset()))
    talk.client.request(1, b"x", ONE, end=False)
    before = talk.client.send_windows[0]
    talk.client.data(1, bytes(10_000))
    talk.server.headers(1, RESPONSE)
    talk.server.data(1, bytes(20_000))
    talk.server.headers(1, OK, end=True)
    talk.client.allow(1, 100)
    talk.client.reset(1)
    assert talk.client.log == ["RST 1 2"]
    assert talk.server.log == ["HEADERS 1 /one.S/M", "DATA 1 6", "RST 1 8"]
    assert talk.client.send_windows[0] == before
    assert talk.server.send_windows[0] == 65_535


def test_nothing_of_a_call_that_its_server_never_heard_of_goes_there() -> None:
    talk = Talk(Fault(method=ONE, do=AnswerStatus(status=14)))
    talk.client.headers(1, request_fields(ONE))
    before = talk.server.raw
    talk.client.data(1, bytes(1000))
    talk.client.allow(1, 100)
    talk.client.headers(1, [(b"x-trailer", b"1")], end=True)
    talk.client.reset(1)
    assert talk.server.raw == before
    assert talk.client.send_windows[0] == 65_535


def test_what_a_client_sends_while_its_answer_waits_is_credited() -> None:
    talk = Talk(Fault(do=AnswerHttp(status=502, body=b"x" * 50)), client={4: 20})
    talk.client.credits = False
    talk.client.headers(1, request_fields())
    talk.client.data(1, bytes(10_000), end=True)
    assert talk.client.send_windows[0] == 65_535
    talk.client.allow(1, 100)
    assert talk.client.log == ["HEADERS 1 502", "DATA 1 20", "DATA 1 30 END"], "no RST: it has sent all"


def test_a_server_that_resets_gets_no_more_of_the_request() -> None:
    talk = Talk(Fault(where=AfterMessage(number=1, of=Part.REQUEST), do=Delay(seconds=5)))
    talk.client.request(1, b"x", end=False)
    talk.client.data(1, bytes(1000))
    talk.server.reset(1, 0)
    talk.client.data(1, bytes(1000))
    talk.wait(10)
    assert talk.server.log == ["HEADERS 1 /a.B/C", "DATA 1 6"]
    assert talk.client.log == ["RST 1 0"]
    assert talk.client.send_windows[0] == 65_535


def test_a_call_that_is_answered_already_gets_no_status() -> None:
    talk = Talk(
        Fault(do=Delay(seconds=1)),
        Fault(where=AfterMessage(number=1, of=Part.REQUEST), do=AnswerStatus(status=14)),
    )
    talk.client.request(1)
    talk.server.respond(1, b"early")
    talk.wait(2)
    assert talk.client.log[-1] == "HEADERS 1 0 END"
    assert talk.struck == [1]


@pytest.mark.parametrize("first", [True, False])
def test_faults_of_trailers_are_done_to_a_status_that_a_fault_has_made(first: bool) -> None:
    actions: list[Action] = [SplitTrailersOnly(), AnswerStatus(status=14)]
    talk = Talk(*[Fault(do=action) for action in (actions if first else actions[:1])])
    talk.client.headers(1, request_fields(), end=True)
    if not first:
        talk.server.headers(1, [*RESPONSE, (b"grpc-status", b"14")], end=True)
    assert talk.client.log == ["HEADERS 1 200", "HEADERS 1 14 END"]


def test_header_blocks_that_are_swallowed_leave_the_tables_as_they_are() -> None:
    talk = Talk(Fault(method=ONE, do=AnswerStatus(status=14)))
    fields = request_fields(ONE)
    talk.client.headers(1, [*fields, (b"x-new", b"a value for the table")], end=True)
    talk.client.headers(3, [*request_fields(), (b"x-new", b"a value for the table")], end=True)
    assert talk.server.fields[3][0][-1] == (b"x-new", b"a value for the table")


# ------------------------------------------------------------------ connections


def begin(talk: Talk, *ids: int) -> None:
    for stream_id in ids:
        talk.client.request(stream_id, b"x")


def test_goaway_names_the_call_and_lets_it_finish_and_swallows_those_behind() -> None:
    talk = Talk(Fault(method="/one.S/M", where=AfterMessage(number=1), do=Goaway(code="NO_ERROR")))
    talk.client.request(1, b"x", ONE)
    talk.server.respond(1, b"y")
    begin(talk, 3)
    assert talk.client.log == ["HEADERS 1 200", "DATA 1 6", "GOAWAY 1 0", "HEADERS 1 0 END"]
    assert not any("3" in line.split()[1] for line in talk.server.log)
    assert talk.client.send_windows[0] == 65_535


def test_goaway_below_disowns_calls_and_ends_them_for_their_server_only() -> None:
    talk = Talk(Fault(method=ONE, where=BeforeHeaders(of=Part.RESPONSE), do=Goaway(code=11, below=2)))
    begin(talk, 1, 3)
    talk.client.request(5, b"x", ONE)
    talk.server.respond(5, b"y")
    assert talk.client.log == ["GOAWAY 1 11"]
    assert talk.server.log[-2:] == ["RST 3 8", "RST 5 8"]
    talk.server.respond(1, b"still")
    assert talk.client.log[1:] == ["HEADERS 1 200", "DATA 1 10", "HEADERS 1 0 END"]


def test_a_goaway_of_the_server_itself_names_no_more_than_the_fault_has() -> None:
    talk = Talk(Fault(method=ONE, where=BeforeHeaders(of=Part.RESPONSE), do=Goaway(below=1)))
    begin(talk, 1)
    talk.client.request(3, b"x", ONE)
    talk.server.respond(3, b"y")
    talk.server.raw_bytes(bytes([0, 0, 8, 7, 0, 0, 0, 0, 0]) + bytes([0x7F, 255, 255, 255, 0, 0, 0, 0]))
    assert talk.client.log == ["GOAWAY 1 0", "GOAWAY 1 0"]


def test_goaway_can_be_the_clients() -> None:
    talk = Talk(
        Fault(
            side=Side.UPSTREAM,
            where=AfterMessage(number=1, of=Part.REQUEST),
            do=Goaway(code=2, towards=End.SERVER),
        ),
        side=Side.UPSTREAM,
    )
    begin(talk, 1)
    assert talk.server.log[-2:] == ["GOAWAY 0 2", "DATA 1 0 END"]
    talk.server.respond(1, b"y")
    assert talk.client.log[-1] == "HEADERS 1 0 END"


@pytest.mark.parametrize(("reset", "end"), [(False, LinkEnd.FIN), (True, LinkEnd.RESET)])
def test_a_cut_ends_the_connection_behind_what_was_sent_before(reset: bool, end: LinkEnd) -> None:
    talk = Talk(Fault(where=AfterMessage(number=1), do=Cut(reset=reset)))
    talk.client.request(1)
    talk.server.respond(1, b"x", b"y")
    assert talk.client.log == ["HEADERS 1 200", "DATA 1 6"]
    assert talk.middle.end is end
    before = len(talk.server.log)
    talk.client.request(3)
    assert len(talk.server.log) == before


@pytest.mark.parametrize(
    ("where", "log"),
    [
        (BeforeHeaders(of=Part.RESPONSE), []),
        (OnFrame(frame="DATA", before=True), ["HEADERS 1 200"]),
        (AtTrailers(), ["HEADERS 1 200", "DATA 1 6"]),
    ],
    ids=["before the headers", "before the data", "at the trailers"],
)
@pytest.mark.parametrize("do", [Cut(), Silence()], ids=["cut", "silent"])
def test_what_comes_at_the_place_where_a_connection_ends_does_not_pass(
    where: Place, log: list[str], do: Action
) -> None:
    talk = Talk(Fault(where=where, do=do))
    talk.client.request(1)
    talk.server.respond(1, b"x")
    assert talk.client.log == log


def test_a_connection_can_be_cut_when_it_is_opened() -> None:
    talk = Talk(Fault(where=AtConnect(), do=Cut()), hello=False)
    assert talk.middle.end is LinkEnd.FIN
    talk.client.hello()
    assert talk.server.raw == b""


def test_a_silent_connection_passes_nothing_and_does_not_end() -> None:
    talk = Talk(Fault(where=AfterMessage(number=1), do=Silence()))
    talk.client.request(1)
    talk.server.respond(1, b"x", b"y")
    talk.client.request(3)
    talk.wait(1000)
    assert talk.client.log == ["HEADERS 1 200", "DATA 1 6"]
    assert not any(line.startswith("HEADERS 3") for line in talk.server.log)
    assert talk.middle.end is None


def test_a_half_closed_connection_passes_what_the_peer_sends_and_nothing_to_it() -> None:
    talk = Talk(Fault(method=ONE, where=AfterMessage(number=1), do=HalfClose()))
    talk.client.request(1, b"x", ONE)
    talk.server.respond(1, b"x", b"y")
    assert talk.middle.half_closed
    talk.client.request(3)
    assert talk.client.log == ["HEADERS 1 200", "DATA 1 6"]
    assert talk.server.log[-1] == "DATA 3 5 END"
    assert talk.middle.end is None


def test_a_flood_of_pings_is_as_long_as_it_says_and_its_answers_are_swallowed() -> None:
    talk = Talk(Fault(where=AfterMessage(number=1), do=PingFlood(count=100)))
    talk.client.request(1)
    talk.server.respond(1, b"x")
    pings = [line for line in talk.client.log if line.startswith("PING")]
    assert len(pings) == len(set(pings)) == 100
    for number in range(100):
        talk.client.frame(PingFrame(0, b"flood" + number.to_bytes(3, "big"), flags=["ACK"]))
    talk.client.frame(PingFrame(0, b"its own."))
    assert [line for line in talk.server.log if line.startswith("PING")] == ["PING b'its own.'"]
    talk.server.frame(PingFrame(0, b"its own.", flags=["ACK"]))
    assert talk.client.log[-1] == "PING ACK b'its own.'"
