"""A caller's stream and its upstream streams are told as one call, also of a call that was open before."""

from collections.abc import Sequence
from typing import Any

import pytest
from trio.testing import trio_test

from rawgrpc_proxy import CallPolicy, RetryPolicy, Status
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.lab.filters import Filter
from rawgrpc_proxy.lab.late_views import LateViews
from rawgrpc_proxy.lab.readable import guessed
from rawgrpc_proxy.lab.row_parts import decoded
from rawgrpc_proxy.lab.row_text import Style, text_of
from rawgrpc_proxy.lab.rows import Row, Rows
from tests.lab.test_late_views import begun, looking_on
from tests.proxy.house import House, a_proxy, on_every_engine, until
from tests.proxy.policies import UNAVAILABLE, with_policy
from tests.proxy.raw_peers import OK, RESPONSE, Field, message

HELLO = b"\x0a\x05hello"


def rows_of(*filters: str, **how: Any) -> tuple[list[Row], LateViews]:
    told: list[Row] = []
    rows = Rows(
        told.append, **{"mode": "messages", "filters": [Filter.parse(each) for each in filters], **how}
    )
    return told, LateViews(rows.tell, payload_bytes=100)


async def a_call(house: House, *extra: Field, trailers: Sequence[Field] = OK) -> None:
    client = house.clients[0] if house.clients else await house.client()
    call = await client.request("/a.B/C", *extra, body=HELLO)
    await (await house.backend.request()).respond(HELLO, trailers)
    assert (await call.answer()).trailers is not None


def ends(told: list[Row]) -> int:
    return sum(row["event"] == "end" for row in told)


@pytest.mark.parametrize("chosen_by", ["metadata.x-user=bob", "status=OK", "method=/a.B/C status=OK"])
@on_every_engine
@trio_test
async def test_a_call_that_is_chosen_by_what_its_caller_has_said_or_been_told_is_shown_on_both_sides(
    engine: Engine, chosen_by: str
) -> None:
    told, views = rows_of(chosen_by)
    policy = CallPolicy(retry=RetryPolicy(max_attempts=2, initial_backoff_s=0.001))

    async def is_sent_again(house: House) -> None:
        call = await house.clients[0].request("/a.B/C", (b"x-user", b"bob"), body=HELLO)
        served = await house.backend.request()
        await served.headers([*RESPONSE, *UNAVAILABLE], end=True)
        await (await house.backend.request()).respond(HELLO)
        assert (await call.answer()).status == Status.OK

    async with with_policy(engine, policy) as house:
        with looking_on(views):
            await a_call(house, (b"x-user", b"alice"), trailers=[(b"grpc-status", b"5")])
            await is_sent_again(house)
            await until(lambda: ends(told) == 3)  # the caller's, and two attempts
    [call] = {row["call"] for row in told}
    assert {row["method"] for row in told} == {"/a.B/C"}
    down = [row for row in told if row["side"] == "downstream"]
    assert [row["event"] for row in down] == ["begin", "message", "message", "end"]
    assert f"{down[0]['link']}.{down[0]['stream']}" == call
    up = [row for row in told if row["side"] == "upstream"]
    assert {row["stream"] for row in up} == {3, 5}
    assert [row["status"] for row in up if row["event"] == "end"] == ["UNAVAILABLE", "OK"]
    line = text_of(up[0], Style())
    assert f" {call}/{up[0]['link']}.3 " in line


@on_every_engine
@trio_test
async def test_upstreams_can_still_be_asked_for_by_their_address(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        told, views = rows_of(f"peer={house.backend.address}")
        with looking_on(views):
            await a_call(house)
            await until(lambda: ends(told) == 1)
    assert {row["side"] for row in told} == {"upstream"}


@on_every_engine
@trio_test
async def test_a_call_that_was_open_before_is_shown_with_what_is_known_of_it(engine: Engine) -> None:
    told, views = rows_of()
    frames, frame_views = rows_of(mode="frames")
    async with a_proxy(engine) as house:
        call, served = await begun(house, (b"authorization", b"Bearer s3cr3t"), (b"x-user", b"alice"))
        with looking_on(views), looking_on(frame_views):
            await served.data(message(HELLO))
            await served.headers(OK, end=True)
            assert (await call.answer()).status == Status.OK
            await call.data(b"", end=True)
            await until(lambda: ends(told) == ends(frames) == 2)
    down = [row for row in told if row["side"] == "downstream"]
    begin, said, end = down
    assert (begin["event"], begin["joined"], begin["method"]) == ("begin", True, "/a.B/Chat")
    assert ["x-user", "alice"] in begin["headers"]
    assert "s3cr3t" not in str(told) + str(frames)
    assert (said["index"], said["from"]) == (1, "proxy")
    assert (end["status"], end["request_messages"], end["response_messages"]) == ("OK", 1, 2)
    assert "duration_ms" not in end  # nobody has noted when it began
    text = "".join(text_of(row, Style()) for row in told + frames)
    assert "/a.B/Chat  is open  " in text
    assert "plaintext is open" in text
    assert [row["event"] for row in frames][:2] == ["open", "begin"]


@on_every_engine
@trio_test
async def test_messages_can_be_decoded_by_who_gets_their_rows(engine: Engine) -> None:
    here, views_here = rows_of(decode=guessed)
    there, views_there = rows_of(keeps_payloads=True)
    async with a_proxy(engine) as house:
        with looking_on(views_here), looking_on(views_there):
            await a_call(house, (b"grpc-encoding", b"gzip"))
            await until(lambda: ends(here) == ends(there) == 2)
    assert any("payload" in row for row in there)

    def without_time(rows: list[Row]) -> list[Row]:
        return [
            {key: value for key, value in row.items() if key not in {"time", "duration_ms"}} for row in rows
        ]

    assert without_time([decoded(row, guessed) for row in there]) == without_time(here)
    assert {row["text"] for row in here if row["event"] == "message"} == {'1: "hello"'}
