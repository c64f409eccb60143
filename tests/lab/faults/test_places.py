"""A fault strikes at its place: what is before has passed, what is behind has not."""

import math
from collections.abc import Callable

import pytest

from rawgrpc_proxy.errors import ConfigError, Side
from rawgrpc_proxy.lab.faults.actions import AnswerHttp, AnswerStatus, Cut, Reset, TrailersBeforeData
from rawgrpc_proxy.lab.faults.fault import Fault
from rawgrpc_proxy.lab.faults.places import (
    AfterBytes,
    AfterMessage,
    AfterTime,
    AtConnect,
    AtTrailers,
    BeforeHeaders,
    OnFrame,
    Part,
    Place,
)
from tests.lab.faults.talk import RESPONSE, Talk, message, request_fields

RESET = "RST 1 2"
ALL_OF_THE_REQUEST = ["HEADERS 1 /a.B/C", "DATA 1 10", "DATA 1 11 END"]
REQUEST, RESPONSE_PART = Part.REQUEST, Part.RESPONSE


def talk_of_two_messages_each(talk: Talk, *, path: str = "/a.B/C") -> None:
    talk.client.headers(1, request_fields(path))
    talk.client.data(1, message(b"first"))
    talk.client.data(1, message(b"second"), end=True)
    if any(line.endswith("END") for line in talk.server.log):
        talk.server.respond(1, b"third", b"fourth")


@pytest.mark.parametrize(
    ("where", "client_got", "server_got"),
    [
        (BeforeHeaders(), [], []),
        (BeforeHeaders(of=RESPONSE_PART), [], [*ALL_OF_THE_REQUEST, "RST 1 8"]),
        (AfterMessage(number=1), ["HEADERS 1 200", "DATA 1 10"], [*ALL_OF_THE_REQUEST, "RST 1 8"]),
        (
            AfterMessage(number=2),
            ["HEADERS 1 200", "DATA 1 10", "DATA 1 11"],
            [*ALL_OF_THE_REQUEST, "RST 1 8"],
        ),
        (AfterMessage(number=1, of=REQUEST), [], ["HEADERS 1 /a.B/C", "DATA 1 10", "RST 1 8"]),
        (AfterMessage(number=2, of=REQUEST), [], ["HEADERS 1 /a.B/C", "DATA 1 10", "DATA 1 11", "RST 1 8"]),
        (AfterBytes(count=0), ["HEADERS 1 200"], [*ALL_OF_THE_REQUEST, "RST 1 8"]),
        (AfterBytes(count=3), ["HEADERS 1 200", "DATA 1 3"], [*ALL_OF_THE_REQUEST, "RST 1 8"]),
        (AfterBytes(count=10), ["HEADERS 1 200", "DATA 1 10"], [*ALL_OF_THE_REQUEST, "RST 1 8"]),
        (AfterBytes(count=12), ["HEADERS 1 200", "DATA 1 10", "DATA 1 2"], [*ALL_OF_THE_REQUEST, "RST 1 8"]),
        (AfterBytes(count=4, of=REQUEST), [], ["HEADERS 1 /a.B/C", "DATA 1 4", "RST 1 8"]),
        (OnFrame(frame="HEADERS"), ["HEADERS 1 200"], [*ALL_OF_THE_REQUEST, "RST 1 8"]),
        (OnFrame(frame="HEADERS", before=True), [], [*ALL_OF_THE_REQUEST, "RST 1 8"]),
        (OnFrame(frame="HEADERS", of=REQUEST), [], ["HEADERS 1 /a.B/C", "RST 1 8"]),
        (OnFrame(frame="DATA"), ["HEADERS 1 200", "DATA 1 10"], [*ALL_OF_THE_REQUEST, "RST 1 8"]),
        (OnFrame(frame="DATA", before=True), ["HEADERS 1 200"], [*ALL_OF_THE_REQUEST, "RST 1 8"]),
        (
            OnFrame(frame="DATA", nth=2, before=True),
            ["HEADERS 1 200", "DATA 1 10"],
            [*ALL_OF_THE_REQUEST, "RST 1 8"],
        ),
        (OnFrame(frame="DATA", nth=2, of=REQUEST), [], [*ALL_OF_THE_REQUEST, "RST 1 8"]),
        (AtTrailers(), ["HEADERS 1 200", "DATA 1 10", "DATA 1 11"], ALL_OF_THE_REQUEST),
        (
            OnFrame(frame="HEADERS", nth=2),
            ["HEADERS 1 200", "DATA 1 10", "DATA 1 11", "HEADERS 1 0 END"],
            ALL_OF_THE_REQUEST,
        ),
    ],
    ids=str,
)
def test_what_is_before_the_place_has_passed_and_nothing_else(
    where: Place, client_got: list[str], server_got: list[str]
) -> None:
    talk = Talk(Fault(where=where, do=Reset(code="INTERNAL_ERROR")))
    talk_of_two_messages_each(talk)
    assert talk.client.log == [*client_got, RESET]
    assert talk.server.log == server_got
    assert talk.struck == [1]


def test_a_place_that_is_never_reached_strikes_nothing() -> None:
    talk = Talk(
        Fault(where=AfterMessage(number=3), do=Reset()),
        Fault(where=AfterBytes(count=22), do=Reset()),
        Fault(where=OnFrame(frame="DATA", nth=3), do=Reset()),
    )
    talk_of_two_messages_each(talk)
    assert talk.client.log[-1] == "HEADERS 1 0 END"
    assert talk.struck == []


def test_trailers_alone_are_at_trailers() -> None:
    talk = Talk(Fault(where=AtTrailers(), do=Reset(code="INTERNAL_ERROR")))
    talk.client.request(1)
    talk.server.headers(1, [*RESPONSE, (b"grpc-status", b"5")], end=True)
    assert talk.client.log == [RESET]


def test_informational_headers_are_no_headers_of_a_response() -> None:
    talk = Talk(Fault(where=BeforeHeaders(of=RESPONSE_PART), do=Reset(code="INTERNAL_ERROR")))
    talk.client.request(1)
    talk.server.headers(1, [(b":status", b"100")])
    assert talk.client.log == ["HEADERS 1 100"]
    talk.server.headers(1, RESPONSE)
    assert talk.client.log == ["HEADERS 1 100", RESET]


def test_after_a_time_the_call_is_struck_wherever_it_is() -> None:
    talk = Talk(Fault(where=AfterTime(seconds=1.5), do=Reset(code="INTERNAL_ERROR")))
    talk.client.request(1)
    talk.server.headers(1, RESPONSE)
    talk.wait(1.4)
    assert talk.client.log == ["HEADERS 1 200"]
    talk.wait(0.1)
    assert talk.client.log == ["HEADERS 1 200", RESET]
    assert talk.server.log[-1] == "RST 1 8"


def test_a_call_that_is_over_is_not_struck_later() -> None:
    talk = Talk(Fault(where=AfterTime(seconds=1), do=Cut()))
    talk.client.request(1)
    talk.server.respond(1, b"x")
    assert talk.middle.next_at == math.inf, "nothing is left to be done"
    talk.wait(5)
    assert talk.middle.end is None
    assert talk.struck == []


def test_after_a_time_the_connection_is_struck_with_or_without_calls() -> None:
    talk = Talk(Fault(where=AfterTime(seconds=2, of_link=True), do=Cut()))
    talk.wait(1.9)
    assert not talk.is_over()
    talk.wait(0.2)
    assert talk.is_over()
    assert talk.struck == [0]


def test_several_actions_are_done_in_order() -> None:
    talk = Talk(
        Fault(
            where=AfterMessage(number=1),
            do=[Reset(code="REFUSED_STREAM"), AnswerStatus(status="UNAVAILABLE")],
        )
    )
    talk_of_two_messages_each(talk)
    assert talk.client.log[-1] == "RST 1 7"
    assert talk.struck == [1]


def test_several_faults_of_one_call_strike_each_at_its_place() -> None:
    talk = Talk(
        Fault(
            where=AfterMessage(number=1, of=REQUEST), do=AnswerStatus(status="ABORTED"), method="/other.S/M"
        ),
        Fault(where=AfterMessage(number=2), do=Reset(code="INTERNAL_ERROR")),
        Fault(where=AfterMessage(number=1), do=Reset(code="CANCEL"), method="/other.S/M"),
    )
    talk_of_two_messages_each(talk)
    assert talk.client.log[-2:] == ["DATA 1 11", RESET]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Fault(do=()), "nothing"),
        (lambda: Fault(do=Reset(), where=AtConnect()), "there is none"),
        (
            lambda: Fault(do=AnswerStatus(status=14), where=AfterTime(seconds=1, of_link=True)),
            "there is none",
        ),
        (lambda: Fault(do=AnswerHttp(status=502), where=AfterMessage(number=1)), "begun"),
        (lambda: Fault(do=TrailersBeforeData(), side=Side.UPSTREAM), "the proxy that would get it"),
        (lambda: Fault(do=Cut(), side=Side.LOCAL), "LOCAL"),
        (lambda: AfterMessage(number=0), "number is 0"),
        (lambda: AfterBytes(count=-1), "count is -1"),
        (lambda: OnFrame(frame="PING"), "one of DATA, HEADERS"),
        (lambda: AfterTime(seconds=-1), "seconds"),
        (lambda: Reset(code="OOPS"), "'OOPS'"),
        (lambda: AnswerStatus(status="OOPS"), "'OOPS'"),
        (lambda: AnswerStatus(status=0, metadata={"grpc-status": "1"}), "metadata"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()
