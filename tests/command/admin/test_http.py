"""The server on bytes that no library sends, and its bounds."""

import os
import resource
import socket

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from rawgrpc_proxy.command.admin.http import Limits
from tests.command.admin.house import TIMEOUT_S, Client, House, a_house, run, small_buffers


async def is_well(house: House) -> None:
    """Whoever else asks gets his answer."""
    assert (await house.ask("/livez")).status == 200


# ------------------------------------------------------------------ one connection, many requests


def test_a_connection_is_kept_and_http_1_0_is_not() -> None:
    async def main() -> None:
        async with a_house() as house:
            async with await house.connect() as client:
                for _ in range(3):
                    await client.send(house.get())
                    assert (await client.reply()).body == b"alive\n"
                await client.send(house.get("/livez", "Connection: close"))
                assert (await client.reply()).fields["connection"] == "close"
                assert await client.rest() == b""
            old = await house.raw(house.get(version="1.0"))
            assert old.startswith(b"HTTP/1.1 200 OK\r\n")
            assert old.endswith(b"\r\n\r\nalive\n")

    run(main)


def test_pipelined_requests_are_answered_in_their_order() -> None:
    async def main() -> None:
        async with a_house() as house, await house.connect() as client:
            posts = house.get("/log?level=all", "Content-Length: 3", method="POST") + b"abc"
            await client.send(
                house.get() + house.get("/config") + posts + house.get("/nothing") + house.get("/readyz")
            )
            assert (await client.reply()).body == b"alive\n"
            assert (await client.reply()).text == house.source.config
            assert (await client.reply()).status == 200
            assert (await client.reply()).status == 404
            assert (await client.reply()).body == b"serving\n"

    run(main)


def test_who_has_said_all_and_shuts_down_his_side_is_still_answered() -> None:
    async def main() -> None:
        async with a_house() as house, await house.connect() as client:
            await client.send(house.get() + house.get("/readyz"))
            await client.stream.send_eof()
            assert (await client.reply()).body == b"alive\n"
            assert (await client.reply()).body == b"serving\n"
            assert await client.rest() == b""

    run(main)


def test_a_request_that_comes_byte_by_byte_is_one() -> None:
    async def main() -> None:
        async with a_house() as house, await house.connect() as client:
            for byte in (
                house.get("/log?level=all", "Transfer-Encoding: chunked", method="POST")
                + b"1\r\nx\r\n0\r\n\r\n"
            ):
                await client.send(bytes([byte]))
            assert (await client.reply()).status == 200

    run(main)


def test_who_waits_for_100_gets_it() -> None:
    async def main() -> None:
        async with a_house() as house, await house.connect() as client:
            await client.send(house.get("/drain", "Content-Length: 1", "Expect: 100-continue", method="POST"))
            assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            await client.send(b"x")
            assert (await client.reply()).status == 202

    run(main)


def test_an_offer_to_switch_the_protocol_is_passed_over() -> None:
    async def main() -> None:
        async with a_house() as house, await house.connect() as client:
            for _ in range(2):  # as curl --http2 asks
                await client.send(house.get("/livez", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"))
                assert (await client.reply()).body == b"alive\n"

    run(main)


# ------------------------------------------------------------------ what cannot be read


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"nonsense\r\n\r\n", 400, b"no HTTP/1.1 request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400, b"no HTTP/1.1 request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, b"speaks HTTP/1.1"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, b"Host"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, b"Host"),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\n b: c\r\nno colon\r\n\r\n", 400, b"header line"),
        (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400, b"is no path"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400, b"is no path"),
        (b"POST /drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n", 400, b"Content-Length"),
        (b"POST /drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400, b"Content-Length"),
        (
            b"POST /drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            400,
            b"Content-Length",
        ),
        (
            b"POST /drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
            400,
            b"bad Content-Length",
        ),
        (b"POST /drain HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", 501, b"Encoding"),
        (b"GET /" + b"x" * 3000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414, b"2048 are allowed"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431, b"100 are allowed"),
        (b"GET / HTTP/1.1\r\nHost: a\r\na: " + b"x" * 100_000 + b"\r\n\r\n", 431, b"longer than 16384"),
        (b"GET /" + b"x" * 100_000, 431, b"longer than 16384"),
        (
            b"POST /faults HTTP/1.1\r\nHost: a\r\nContent-Length: 17000\r\n\r\n" + b"x" * 17000,
            413,
            b"more than 16384 bytes of content",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_in_words_and_ends_its_connection(
    data: bytes, status: int, words: bytes
) -> None:
    async def main() -> None:
        async with a_house() as house:
            answer = await house.raw(data)
            assert answer.startswith(f"HTTP/1.1 {status} ".encode())
            assert words in answer
            assert b"\r\nConnection: close\r\n" in answer
            assert house.source.drains == 0
            await is_well(house)

    run(main)


@pytest.mark.parametrize(
    "content",
    [
        b"x\r\n",
        b"-1\r\n",
        b"1\r\nab\r\n",
        b"1\r\naXX0\r\n\r\n",
        b"fffffffffffffffffffffffffff\r\n",
        b"0\r\nno colon\r\n\r\n",
        b"1;" + b"x" * 30_000,
    ],
)
def test_bad_chunks_change_nothing(content: bytes) -> None:
    async def main() -> None:
        async with a_house() as house:
            answer = await house.raw(
                house.get("/drain", "Transfer-Encoding: chunked", method="POST") + content
            )
            assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
            assert house.source.drains == 0
            await is_well(house)

    run(main)


def test_a_request_that_breaks_off_changes_nothing() -> None:
    async def main() -> None:
        async with a_house() as house:
            whole = house.get("/drain", "Content-Length: 2", method="POST") + b"xy"
            for cut in range(0, len(whole), 7):
                async with await house.connect() as client:
                    await client.send(whole[:cut])
                    await client.stream.send_eof()
                    await client.rest()
            assert house.source.drains == 0
            await is_well(house)

    run(main)


PIECES = st.sampled_from(
    [
        b"GET /livez HTTP/1.1\r\n",
        b"POST /log?level=all HTTP/1.1\r\n",
        b"HEAD /config HTTP/1.0\r\n",
        b"Host: localhost\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: " + b"1" * 4400 + b"\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: upgrade\r\nUpgrade: h2c\r\n",
        b"\r\n",
        b"\n",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"\x00",
        b" ",
    ]
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(PIECES, st.binary(max_size=40)), max_size=12).map(b"".join))
def test_whatever_comes_fails_nowhere_on_our_side_and_others_are_answered(data: bytes) -> None:
    async def main() -> None:
        async with a_house() as house:
            async with await house.connect() as client:
                await client.send(data)
                await client.stream.send_eof()
                answer = await client.rest()
                assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
            async with await house.connect() as other:
                await other.send(house.get())
                assert (await other.reply()).status == 200

    run(main)


# ------------------------------------------------------------------ time


async def passes(clock: MockClock, seconds: float) -> None:
    """Let this time pass, once nothing is left to do."""
    await wait_all_tasks_blocked(0.1)
    clock.jump(seconds)


def test_a_request_that_takes_too_long_is_408() -> None:
    clock = MockClock()

    async def main() -> None:
        async with a_house() as house:
            for begin in (
                b"G",
                house.get()[:-4],
                house.get("/drain", "Content-Length: 9", method="POST") + b"x",
            ):
                async with await house.connect() as client:
                    await client.send(house.get("/readyz"))
                    assert (await client.reply()).status == 200
                    await client.send(begin)
                    await passes(clock, 10.5)
                    reply = await client.reply()
                    assert reply.status == 408
                    assert "not complete after 10 s" in reply.text
                    assert await client.rest() == b""
            assert house.source.drains == 0

    run(main, clock=clock)


def test_bytes_that_trickle_in_gain_no_time() -> None:
    clock = MockClock()

    async def main() -> None:
        async with a_house() as house, await house.connect() as client:
            await client.send(b"G")
            for byte in b"ET /":
                await passes(clock, 2.4)
                await client.send(bytes([byte]))
            await passes(clock, 2.4)
            assert (await client.reply()).status == 408

    run(main, clock=clock)


def test_a_connection_without_requests_is_closed_in_the_end_and_not_before() -> None:
    clock = MockClock()

    async def main() -> None:
        async with a_house() as house, await house.connect() as client:
            await client.send(house.get())
            assert (await client.reply()).status == 200
            await passes(clock, 100)
            await client.send(house.get())
            assert (await client.reply()).status == 200
            await passes(clock, 121)
            assert await client.rest() == b""

    run(main, clock=clock)


def test_what_takes_too_long_on_our_side_is_504() -> None:
    clock = MockClock()

    async def main() -> None:
        async with a_house() as house, await house.connect() as client:
            house.source.gate = trio.Event()
            await client.send(house.get("/metrics"))
            while not house.source.asked:  # a source tells nobody that it was asked
                await trio.lowlevel.checkpoint()
            await passes(clock, 31)
            reply = await client.reply()
            assert reply.status == 504
            assert "/metrics after 30 s" in reply.text

    run(main, clock=clock)


def test_who_does_not_read_is_dropped_and_delays_nobody() -> None:
    clock = MockClock()

    async def main() -> None:
        async with a_house() as house, await house.connect() as client:
            small_buffers(client.stream)
            house.source.exposed = b"x" * 20_000_000
            await client.send(house.get("/metrics"))
            await client.until(b"\r\n\r\n")
            house.source.exposed = b""
            async with await house.connect() as other:
                await other.send(house.get("/metrics"))
                assert (await other.reply()).status == 200
            await passes(clock, 11)
            assert len(await client.rest()) < 20_000_000

    run(main, clock=clock)


# ------------------------------------------------------------------ numbers


def test_a_hundred_who_say_nothing_lock_nobody_out() -> None:
    async def main() -> None:
        async with a_house() as house:
            silent = [await house.connect() for _ in range(50)]
            for _ in range(50):
                silent.append(await house.connect())
                await silent[-1].send(b"GET /liv")
            for _ in range(3):
                await is_well(house)
            with trio.fail_after(TIMEOUT_S):
                assert await silent[0].rest() == b""  # the one that has waited for longest made room
            await silent[-1].send(b"ez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await silent[-1].reply()).status == 200
            for client in silent:
                await trio.aclose_forcefully(client.stream)

    run(main)


def test_a_hundred_who_ask_at_once_are_answered_or_told_that_there_are_too_many() -> None:
    async def main() -> None:
        async with a_house(limits=Limits(connections=4)) as house:
            house.source.gate = trio.Event()
            busy = [await house.connect() for _ in range(4)]
            for number, client in enumerate(busy, 1):
                await client.send(house.get("/metrics"))
                while house.source.asked < number:  # noqa: ASYNC110  # a source tells nobody that it was asked
                    await trio.sleep(0.01)
            async with await house.connect() as one_more:
                reply = await one_more.reply()
                assert (reply.status, reply.fields["retry-after"]) == (503, "1")
                assert "all 4 connections" in reply.text
            house.source.gate.set()
            for client in busy:
                assert (await client.reply()).status == 200
            await is_well(house)
            for client in busy:
                await trio.aclose_forcefully(client.stream)

    run(main)


def test_those_who_are_turned_away_are_bounded_as_well() -> None:
    async def main() -> None:
        async with a_house(limits=Limits(connections=1)) as house:
            house.source.gate = trio.Event()
            busy = await house.connect()
            await busy.send(house.get("/metrics"))
            while not house.source.asked:  # a source tells nobody that it was asked
                await trio.lowlevel.checkpoint()
            crowd = [await house.connect() for _ in range(40)]
            answers = [b" 503 " in await client.rest() for client in crowd]
            assert answers == [True] * 16 + [False] * 24
            house.source.gate.set()
            assert (await busy.reply()).status == 200
            for client in (busy, *crowd):
                await trio.aclose_forcefully(client.stream)

    run(main, clock=MockClock())  # so that nobody's second is over


def test_one_who_resets_in_the_middle_touches_nobody() -> None:
    async def main() -> None:
        async with a_house() as house, await house.connect() as other:
            house.source.exposed = b"x" * 1_000_000
            for data in (house.get("/metrics") * 5, b"GET /liv") * 10:
                client = await house.connect()
                await client.send(data)
                linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
                client.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                await trio.aclose_forcefully(client.stream)
            await other.send(house.get())
            assert (await other.reply()).status == 200

    run(main)


def test_without_a_file_to_be_had_it_says_so_and_goes_on() -> None:
    async def main() -> None:
        async with a_house() as house, await house.connect() as kept:
            await kept.send(house.get())
            assert (await kept.reply()).status == 200
            late = trio.socket.socket()
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
            try:
                await late.connect((house.host, house.port))
                while not house.faults:  # noqa: ASYNC110  # it tells a plain function
                    await trio.sleep(0.01)
                await kept.send(house.get())
                assert (await kept.reply()).status == 200
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert house.forgive() == ["cannot accept a connection"]
            async with Client(trio.SocketStream(late)) as client:
                await client.send(house.get())
                assert (await client.reply()).status == 200

    run(main)


def test_cancellation_closes_every_connection_at_once() -> None:
    async def main() -> None:
        clients: list[Client] = []
        async with a_house() as house:
            house.source.gate = trio.Event()
            for data in (b"", b"GET /", house.get("/metrics"), house.get("/events")):
                clients.append(await house.connect())
                await clients[-1].send(data)
            await clients[-1].until(b"retry: 2000\n\n")
        with trio.fail_after(TIMEOUT_S):
            for client in clients:
                await client.rest()
                await trio.aclose_forcefully(client.stream)

    run(main)
