"""Faults that make things late."""

from functools import partial

import pytest

from rawgrpc_proxy.lab.faults.actions import (
    Action,
    AnswerStatus,
    Bandwidth,
    Cut,
    Delay,
    Latency,
    Reset,
    Stall,
)
from rawgrpc_proxy.lab.faults.fault import Fault
from rawgrpc_proxy.lab.faults.places import (
    AfterMessage,
    AtConnect,
    AtTrailers,
    BeforeHeaders,
    OnFrame,
    Part,
    Place,
)
from rawgrpc_proxy.lab.faults.shaping import Agenda
from tests.lab.faults.talk import OK, RESPONSE, Talk, message, request_fields

WHOLE = ["HEADERS 1 200", "DATA 1 6", "DATA 1 6", "HEADERS 1 0 END"]
RESPONSE_PART = Part.RESPONSE


def test_a_delay_holds_back_what_is_behind_its_place_once() -> None:
    talk = Talk(Fault(where=AfterMessage(number=1), do=Delay(seconds=2)))
    talk.client.request(1)
    talk.server.respond(1, b"x", b"y")
    assert talk.client.log == WHOLE[:2]
    talk.wait(1.9)
    assert talk.client.log == WHOLE[:2]
    talk.wait(0.2)
    assert talk.client.log == WHOLE


@pytest.mark.parametrize(
    "where", [BeforeHeaders(), OnFrame(frame="HEADERS", of=Part.REQUEST, before=True)], ids=str
)
@pytest.mark.parametrize("do", [Delay(seconds=2), Latency(seconds=2)], ids=str)
def test_a_delayed_request_is_behind_its_headers_so_that_later_ones_pass(where: Place, do: Action) -> None:
    talk = Talk(Fault(method="/one.S/M", where=where, do=do))
    talk.client.request(1, b"x", "/one.S/M")
    talk.client.request(3, b"x")
    assert talk.server.log == ["HEADERS 1 /one.S/M", "HEADERS 3 /a.B/C", "DATA 3 6 END"]
    talk.wait(2)
    assert talk.server.log[3:] == ["DATA 1 6 END"]


def test_a_request_without_a_body_ends_when_its_delay_is_over() -> None:
    talk = Talk(Fault(do=Delay(seconds=2)))
    talk.client.headers(1, request_fields(), end=True)
    assert talk.server.log == ["HEADERS 1 /a.B/C"]
    talk.wait(2)
    assert talk.server.log == ["HEADERS 1 /a.B/C", "DATA 1 0 END"]


def test_a_status_behind_a_delay_is_late_and_its_server_never_hears_of_the_call() -> None:
    talk = Talk(Fault(do=[Delay(seconds=1), AnswerStatus(status=4)]))
    talk.client.request(1)
    talk.wait(0.9)
    assert talk.client.log == []
    talk.wait(0.2)
    assert talk.client.log == ["HEADERS 1 4+200 END"]
    assert talk.server.log == []


def test_what_is_behind_a_delay_is_struck_when_it_has_passed() -> None:
    talk = Talk(
        Fault(where=BeforeHeaders(of=RESPONSE_PART), do=Delay(seconds=5)),
        Fault(where=AfterMessage(number=1), do=Reset(code="INTERNAL_ERROR")),
    )
    talk.client.request(1)
    talk.server.respond(1, b"x", b"y")
    assert talk.client.log == []
    talk.wait(5)
    assert talk.client.log == [*WHOLE[:2], "RST 1 2"]


@pytest.mark.parametrize("where", [BeforeHeaders(of=RESPONSE_PART), AtTrailers(), BeforeHeaders()], ids=str)
def test_an_answer_of_nothing_but_trailers_stays_one_when_it_is_late(where: Place) -> None:
    talk = Talk(Fault(where=where, do=Delay(seconds=1)))
    talk.client.request(1)
    talk.wait(1)
    talk.server.headers(1, [*RESPONSE, *OK], end=True)
    talk.wait(1)
    assert talk.client.log == ["HEADERS 1 0+200 END"]


def test_a_client_that_cancels_does_not_wait_for_a_delay() -> None:
    talk = Talk(Fault(do=Delay(seconds=60)))
    talk.client.request(1)
    talk.client.reset(1)
    assert talk.server.log == ["HEADERS 1 /a.B/C", "RST 1 8"]
    assert talk.middle.next_at > 1e9, "a timer is left"


def test_a_server_that_resets_behind_its_response_does_not_overtake_it() -> None:
    talk = Talk(Fault(where=BeforeHeaders(of=RESPONSE_PART), do=Delay(seconds=3)))
    talk.client.request(1, end=False)
    talk.server.respond(1, b"x", b"y")
    talk.server.reset(1, 0)
    before = list(talk.server.log)
    talk.client.data(1, bytes(1000))
    talk.wait(3)
    assert talk.client.log == [*WHOLE, "RST 1 0"]
    assert talk.server.log == before, "it has reset the call, and gets no more of it"


def test_jitter_is_chance_from_the_seed() -> None:
    def ends_at() -> float:
        talk = Talk(Fault(where=BeforeHeaders(of=RESPONSE_PART), do=Delay(seconds=1, jitter=10)))
        talk.client.request(1)
        talk.server.respond(1, b"x", b"y")
        return talk.middle.next_at

    first = ends_at()
    assert first == ends_at()
    assert 1 < first < 11
    assert first != 1


def test_latency_makes_each_frame_late_and_keeps_their_order() -> None:
    talk = Talk(Fault(where=BeforeHeaders(of=RESPONSE_PART), do=Latency(seconds=1, jitter=1)))
    talk.client.request(1)
    talk.server.headers(1, RESPONSE)
    talk.wait(10)
    assert talk.client.log == WHOLE[:1]
    for payload in (b"a", b"b", b"c"):
        talk.server.data(1, message(payload))
    assert talk.client.log == WHOLE[:1]
    talk.wait(2)
    assert talk.client.got[1] == message(b"a") + message(b"b") + message(b"c")


def test_bandwidth_lets_so_much_pass_in_a_second() -> None:
    talk = Talk(Fault(where=BeforeHeaders(of=RESPONSE_PART), do=Bandwidth(bytes_per_s=1000)))
    talk.client.request(1)
    talk.server.headers(1, RESPONSE)
    talk.server.data(1, message(bytes(9_995)))
    talk.wait(5)
    assert 4900 <= len(talk.client.got[1]) <= 5100
    talk.wait(5)
    assert len(talk.client.got[1]) == 10_000


def test_a_stall_keeps_windows_from_opening_and_can_end() -> None:
    talk = Talk(Fault(where=BeforeHeaders(of=RESPONSE_PART), do=Stall(seconds=30)))
    talk.client.request(1)
    talk.server.headers(1, RESPONSE)
    assert talk.server.body(1, message(bytes(200_000))) == 65_535
    assert len(talk.client.got[1]) == 65_535
    assert talk.server.send_windows[1] == 0
    assert talk.server.send_windows[0] == 65_535, "others have their window"
    talk.wait(30)
    assert talk.server.send_windows[1] == 65_535


def test_a_stall_of_a_request_is_of_its_stream_only() -> None:
    talk = Talk(Fault(method="/one.S/M", do=Stall()))
    talk.client.headers(1, request_fields("/one.S/M"))
    talk.client.headers(3, request_fields())
    assert talk.client.body(1, bytes(200_000)) == 65_535
    assert talk.client.body(3, bytes(200_000)) == 200_000
    talk.wait(10_000)
    assert talk.client.send_windows[1] == 0


def test_a_stalled_connection_grants_nothing_in_either_direction() -> None:
    talk = Talk(Fault(where=AtConnect(), do=Stall(seconds=5)), active=False)
    talk.client.headers(1, request_fields())
    assert talk.client.body(1, bytes(200_000)) == 65_535
    assert talk.client.send_windows[0] == 0
    talk.wait(5)
    assert talk.client.send_windows[0] == 65_535


# -------------------------------------------------------------- of connections


def test_a_connection_can_be_slow_to_open() -> None:
    talk = Talk(Fault(where=AtConnect(), do=Delay(seconds=3)), hello=False)
    talk.client.hello()
    talk.server.hello()
    talk.wait(2.9)
    assert (talk.client.raw, talk.server.raw) == (b"", b"")
    talk.wait(0.1)
    assert talk.client.log == talk.server.log == ["SETTINGS {}"]


def test_latency_of_a_connection_is_of_all_its_bytes_both_ways() -> None:
    talk = Talk(Fault(where=AtConnect(), do=Latency(seconds=0.2)), active=False)
    talk.wait(1)
    talk.client.log.clear()
    talk.client.request(1)
    assert talk.server.log[-1] == "SETTINGS ACK"
    talk.wait(0.2)
    assert talk.server.log[-1] == "DATA 1 5 END"
    talk.server.respond(1, b"x", b"y")
    talk.wait(0.19)
    assert not any(line.startswith("HEADERS") for line in talk.client.log)
    talk.wait(0.02)
    assert talk.client.log[-4:] == WHOLE


def test_bandwidth_of_a_connection_is_for_all_its_calls_together() -> None:
    talk = Talk(Fault(where=AtConnect(), do=Bandwidth(bytes_per_s=10_000)), active=False)
    talk.wait(1)
    for stream_id in (1, 3):
        talk.client.headers(stream_id, request_fields())
        talk.client.data(stream_id, bytes(15_000))
    talk.wait(1)
    assert (
        9_000 < sum(map(len, talk.server.got.values())) <= 10_000 or talk.middle.held_for(peer=False) > 15_000
    )
    talk.wait(2.2)
    assert sum(map(len, talk.server.got.values())) == 30_000
    assert talk.middle.held_for(peer=False) == 0


def test_a_delayed_connection_is_cut_when_the_delay_is_over() -> None:
    talk = Talk(Fault(where=AtConnect(), do=[Delay(seconds=3), Cut()]), hello=False)
    talk.wait(2.9)
    assert talk.middle.end is None
    talk.wait(0.2)
    assert talk.middle.end is not None


# --------------------------------------------------------------------- agenda


def test_an_agenda_calls_in_the_order_of_time_and_then_as_asked() -> None:
    agenda = Agenda()
    called: list[str] = []
    for at, name in ((2.0, "b"), (1.0, "a"), (2.0, "c"), (3.0, "d")):
        agenda.add(at, partial(called.append, name))
    agenda.call_due(2.0)
    assert called == ["a", "b", "c"]
    assert agenda.next_at == 3.0


@pytest.mark.parametrize("count", [1, 500])
def test_what_is_cancelled_is_neither_called_nor_kept(count: int) -> None:
    agenda = Agenda()
    called: list[int] = []
    appointments = [agenda.add(5.0, lambda: called.append(1)) for _ in range(count)]
    for appointment in appointments:
        appointment.cancel()
        appointment.cancel()
    assert agenda.next_at > 1e9
    assert len(agenda._heap) == 0
    agenda.call_due(10.0)
    assert called == []
