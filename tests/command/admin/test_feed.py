"""Server-sent events: what watchers get, and what they cost."""

import json
import platform
from typing import Any

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.command.admin.house import Client, House, a_house, run, small_buffers


async def watching(house: House) -> Client:
    """Somebody who watches, and has read the beginning."""
    client = await house.connect()
    await client.send(house.get("/events"))
    head = await client.until(b"retry: 2000\n\n")
    assert b"Content-Type: text/event-stream\r\n" in head
    assert b"Cache-Control: no-store\r\n" in head
    return client


async def state(client: Client) -> Any:
    """The next event."""
    await client.until(b"event: state\ndata: ")
    return json.loads(await client.until(b"\n\n"))


async def passes(clock: MockClock, seconds: float) -> None:
    """Let this time pass, once nothing is left to do."""
    await wait_all_tasks_blocked(0.1)
    clock.jump(seconds)


async def end(*clients: Client) -> None:
    for client in clients:
        await trio.aclose_forcefully(client.stream)


def test_the_state_has_the_sums_and_what_the_source_is() -> None:
    async def main() -> None:
        async with a_house() as house, await watching(house) as client:
            got = await state(client)
            assert got["calls"] == {"open": 5}
            assert (got["state"], got["engine"]) == ("serving", "relay")
            assert got["python"] == f"{platform.python_implementation()} {platform.python_version()}"
            assert got["uptime_s"] > 1_000_000
            assert abs(got["now"] - got["uptime_s"] - 1.0) < 1
            assert got["version"]
            assert got["workers"] == [1, 2]

    run(main)


def test_one_state_is_made_a_second_for_all_who_watch_and_none_for_nobody() -> None:
    clock = MockClock()

    async def main() -> None:
        async with a_house() as house:
            await passes(clock, 10)
            assert house.source.asked == 0
            clients = [await watching(house) for _ in range(16)]
            first = [await state(client) for client in clients]
            assert first == first[:1] * 16  # whoever comes within the second gets what the others have
            assert house.source.asked == 1
            for number in range(2, 5):
                await passes(clock, 1)
                later = [await state(client) for client in clients]
                assert later == later[:1] * 16
                assert house.source.asked == number
            await end(*clients)
            for _ in range(3):
                await passes(clock, 1)
            assert house.source.asked == 4
            async with await watching(house) as again:
                assert (await state(again))["now"] >= later[0]["now"]
                assert house.source.asked == 5

    run(main, clock=clock)


def test_a_seventeenth_is_told_to_wait_and_gets_the_place_of_one_who_leaves() -> None:
    async def main() -> None:
        async with a_house() as house:
            clients = [await watching(house) for _ in range(16)]
            async with await house.connect() as one_more:
                await one_more.send(house.get("/events"))
                reply = await one_more.reply()
                assert (reply.status, reply.fields["retry-after"]) == (503, "5")
                assert "16 are watching" in reply.text
                await end(clients.pop())
                while reply.status == 503:
                    await one_more.send(house.get("/events"))
                    head = await one_more.until(b"\r\n\r\n")
                    reply = reply if b" 503 " in head else await house.ask("/livez")
                    if reply.status == 503:
                        await one_more.until(b"later\n")
                assert (await state(one_more))["state"] == "serving"
            await end(*clients)

    run(main)


def test_head_takes_no_place() -> None:
    async def main() -> None:
        async with a_house() as house:
            for _ in range(20):
                reply = await house.ask("/events", "HEAD")
                assert (reply.status, reply.fields["content-type"]) == (200, "text/event-stream")
            assert house.source.asked == 0

    run(main)


def test_who_speaks_http_1_0_may_watch() -> None:
    async def main() -> None:
        async with a_house() as house, await house.connect() as client:
            await client.send(house.get("/events", version="1.0"))
            head = await client.until(b"\r\n\r\n")
            assert b"Transfer-Encoding" not in head
            assert (await client.until(b"\n\n")) == b"retry: 2000\n\n"
            assert (await state(client))["state"] == "serving"

    run(main)


def test_who_stops_reading_is_dropped_and_the_others_go_on() -> None:
    clock = MockClock()

    async def main() -> None:
        async with a_house() as house:
            house.source.sums["methods"] = {"x": "y" * 300_000}
            slow, quick = await watching(house), await watching(house)
            small_buffers(slow.stream)
            for _ in range(30):
                assert (await state(quick))["methods"]
                await passes(clock, 1)
            got = await slow.rest()
            assert got.count(b"event: state") < 15
            assert (await state(quick))["methods"]
            async with await watching(house):
                pass
            await end(slow, quick)

    run(main, clock=clock)


def test_who_ends_his_side_has_left() -> None:
    async def main() -> None:
        async with a_house() as house, await watching(house) as client:
            await client.stream.send_eof()
            await client.rest()

    run(main)


def test_a_source_that_fails_is_told_of_once_and_watchers_hear_that_somebody_is_there() -> None:
    clock = MockClock()

    async def main() -> None:
        async with a_house() as house:
            house.source.fault = RuntimeError("no worker answers")
            async with await watching(house) as client:
                for _ in range(7):
                    await passes(clock, 1)
                await client.until(b": nothing new\n\n")
                assert house.source.asked > 3
                assert house.forgive() == ["making the state for /events failed"]
                house.source.fault = None
                await passes(clock, 1)
                assert (await state(client))["state"] == "serving"

    run(main, clock=clock)


def test_a_source_that_hangs_keeps_watchers_waiting_and_nobody_else() -> None:
    clock = MockClock()

    async def main() -> None:
        async with a_house() as house:
            house.source.gate = trio.Event()
            async with await watching(house) as client:
                await passes(clock, 5.5)
                await client.until(b": nothing new\n\n")
                async with await house.connect() as other:
                    await other.send(house.get())
                    assert (await other.reply()).status == 200
                await passes(clock, 5)  # 10 s in all: this one is given up, and the next one asked for
                await passes(clock, 1)
                assert house.source.asked == 2
                assert house.forgive() == ["making the state for /events failed"]
                house.source.gate.set()
                assert (await state(client))["state"] == "serving"

    run(main, clock=clock)


def test_what_is_hostile_in_a_name_stays_within_its_event() -> None:
    async def main() -> None:
        async with a_house() as house:
            name = "/p.S/M\n\ndata: x\r\n\u2028</script>"
            house.source.sums["methods"] = {name: {}}
            async with await watching(house) as client:
                assert (await state(client))["methods"] == {name: {}}

    run(main)
