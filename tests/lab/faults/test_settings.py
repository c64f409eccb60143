"""SETTINGS that say something else."""

from collections.abc import Mapping

import pytest
from hyperframe.frame import SettingsFrame

from rawgrpc_proxy.errors import ConfigError, Side
from rawgrpc_proxy.http2.frames import Setting
from rawgrpc_proxy.lab.faults.actions import ChangeSettings, End
from rawgrpc_proxy.lab.faults.fault import Fault
from rawgrpc_proxy.lab.faults.places import AfterMessage, AtConnect
from tests.lab.faults.talk import RESPONSE, Talk, message, request_fields

STREAMS, WINDOW, FRAME, LIST = 3, 4, 5, 6


def changed(
    settings: Mapping[Setting | str, int], *, server: dict[int, int] | None = None, towards: End = End.CLIENT
) -> Talk:
    talk = Talk(Fault(where=AtConnect(), do=ChangeSettings(settings=settings, towards=towards)), hello=False)
    talk.client.hello()
    talk.server.hello(server)
    return talk


@pytest.mark.parametrize("streams", [0, 1])
def test_the_first_settings_say_it_among_what_they_say(streams: int) -> None:
    talk = changed({"MAX_CONCURRENT_STREAMS": streams}, server={STREAMS: 100, FRAME: 20_000})
    assert talk.client.settings_in == {STREAMS: streams, FRAME: 20_000}
    assert talk.server.settings_in == {}
    talk.client.acknowledge()
    assert talk.server.log[-1] == "SETTINGS ACK"


def test_small_header_lists_and_more_than_one_setting() -> None:
    talk = changed({"MAX_HEADER_LIST_SIZE": 50, "MAX_CONCURRENT_STREAMS": 1})
    assert talk.client.settings_in == {STREAMS: 1, LIST: 50}


def test_it_can_be_the_server_that_is_told() -> None:
    talk = changed({"MAX_HEADER_LIST_SIZE": 50}, towards=End.SERVER)
    assert (talk.client.settings_in, talk.server.settings_in) == ({}, {LIST: 50})


@pytest.mark.parametrize("window", [1, 10, 1000])
def test_a_tiny_window_stays_tiny_and_the_stream_goes_on(window: int) -> None:
    talk = changed({"INITIAL_WINDOW_SIZE": window})
    talk.server.credit_every = 40_000  # as one that gives credit seldom, since it has allowed much
    body = bytes(range(256)) * 200
    talk.client.headers(1, request_fields())
    sent = 0
    while sent < len(body) and talk.client.room(1):
        assert talk.client.room(1) <= window
        sent += talk.client.body(1, body[sent : sent + talk.client.room(1)])
    assert talk.server.got[1] == body


def test_a_window_of_nothing_is_never_opened() -> None:
    talk = changed({"INITIAL_WINDOW_SIZE": 0})
    talk.client.headers(1, request_fields())
    assert talk.client.body(1, b"x") == 0
    talk.wait(1000)
    assert talk.client.room(1) == 0


def test_a_window_is_not_said_to_be_larger_than_it_is() -> None:
    talk = changed({"INITIAL_WINDOW_SIZE": 1_000_000}, server={WINDOW: 1000})
    assert talk.client.settings_in == {WINDOW: 1000}
    talk.client.headers(1, request_fields())
    assert talk.client.body(1, bytes(5000)) == 5000


def test_a_window_that_is_changed_later_is_not_said_to_be_larger_either() -> None:
    talk = Talk(
        Fault(where=AfterMessage(number=1), do=ChangeSettings(settings={"INITIAL_WINDOW_SIZE": 10**6}))
    )
    talk.client.request(1)
    talk.server.respond(1, b"x")
    assert talk.client.settings_in == {WINDOW: 65_535}


def test_streams_that_are_open_when_windows_become_tiny_keep_what_they_have() -> None:
    talk = Talk(
        Fault(
            method="/one.S/M",
            where=AfterMessage(number=1),
            do=ChangeSettings(settings={Setting.INITIAL_WINDOW_SIZE: 10}),
        )
    )
    talk.server.credit_every = 40_000
    talk.client.headers(3, request_fields())
    talk.client.request(5, b"x", "/one.S/M", end=False)
    talk.server.headers(5, RESPONSE)
    talk.server.data(5, message(b"y"))
    assert talk.client.settings_in == {WINDOW: 10}
    assert talk.client.send_windows[3] == 65_535
    assert talk.client.room(5) == 10
    talk.client.headers(7, request_fields())
    assert talk.client.room(7) == 10
    for stream_id in (3, 5, 7):
        body, sent = bytes(100_000), 0
        while sent < len(body) and talk.client.room(stream_id):
            sent += talk.client.body(stream_id, body[sent : sent + talk.client.room(stream_id)])
        assert sent == len(body), stream_id


def test_settings_in_between_are_a_frame_more_whose_acknowledgement_is_swallowed() -> None:
    talk = Talk(
        Fault(where=AfterMessage(number=1), do=ChangeSettings(settings={"MAX_CONCURRENT_STREAMS": 0}))
    )
    talk.client.request(1)
    talk.server.respond(1, b"x")
    assert talk.client.log == ["HEADERS 1 200", "DATA 1 6", "SETTINGS {3: 0}", "HEADERS 1 0 END"]
    before = len(talk.server.log)
    talk.client.acknowledge()
    assert len(talk.server.log) == before
    talk.server.frame(SettingsFrame(0, {STREAMS: 100}))
    assert talk.client.log[-1] == "SETTINGS {3: 0}", "what the fault has said still holds"
    talk.client.acknowledge()
    assert talk.server.log[-1] == "SETTINGS ACK"


def test_the_windows_of_an_end_that_changes_them_itself_are_followed() -> None:
    talk = Talk(
        Fault(where=AfterMessage(number=99), do=ChangeSettings(settings={"MAX_CONCURRENT_STREAMS": 0}))
    )
    talk.client.request(1, end=False)
    talk.server.initial = 100_000
    talk.server.allows[1] += 100_000 - 65_535
    talk.server.frame(SettingsFrame(0, {WINDOW: 100_000}))
    talk.server.credits = False
    talk.server.allow(0, 100_000)
    assert talk.client.body(1, bytes(200_000)) == 100_000
    assert len(talk.server.got[1]) == 100_005


def test_on_an_upstreams_connection_it_is_the_proxy_that_is_told() -> None:
    talk = Talk(
        Fault(
            side=Side.UPSTREAM, where=AtConnect(), do=ChangeSettings(settings={"MAX_CONCURRENT_STREAMS": 1})
        ),
        side=Side.UPSTREAM,
    )
    assert talk.connection is talk.client
    assert talk.client.settings_in == {STREAMS: 1}


@pytest.mark.parametrize(
    "settings", [{}, {"NO_SUCH": 1}, {99: 1}, {"MAX_FRAME_SIZE": 1}, {"INITIAL_WINDOW_SIZE": 2**31}]
)
def test_settings_that_are_none_are_refused(settings: Mapping[Setting | str, int]) -> None:
    with pytest.raises(ConfigError):
        ChangeSettings(settings=settings)
