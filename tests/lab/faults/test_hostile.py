"""Peers that keep to nothing, before a connection with faults: what waits for them is bounded."""

import contextlib
from time import process_time

import trio
from trio.testing import trio_test

from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.http2 import frames as h2
from rawgrpc_proxy.lab.faults.actions import Delay, DoubleMessage
from rawgrpc_proxy.lab.faults.fault import Fault
from rawgrpc_proxy.lab.faults.header_blocks import BlockReader, write_block
from rawgrpc_proxy.lab.faults.lane import MAX_WAITING_FIELDS
from rawgrpc_proxy.lab.faults.places import AfterMessage, BeforeHeaders, Part
from rawgrpc_proxy.lab.faults.pump import MAX_WAITING_BYTES, with_faults
from tests.lab.faults.talk import RESPONSE, Scripted, Talk, message, request_fields
from tests.proxy.house import a_proxy, on_every_engine

HELD = Fault(do=Delay(seconds=3600), where=BeforeHeaders(of=Part.REQUEST))
FLOW_CONTROL_ERROR = 3


@on_every_engine
@trio_test
async def test_data_that_no_window_allows_ends_its_connection_though_a_fault_holds_the_call(
    engine: Engine,
) -> None:
    async with a_proxy(engine, wrap=with_faults(Scripted([HELD]))) as house:
        client = await house.client()
        call = await client.open(request_fields())
        frame = h2.frame_header(h2.DATA, 0, call.id, 16_384) + bytes(16_384)
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for _ in range(3000):
                await client.send_bytes(frame)
        assert (await client.expect_goaway()).code == FLOW_CONTROL_ERROR


def test_data_beyond_the_windows_is_not_kept_for_them() -> None:
    talk = Talk(HELD)
    talk.client.headers(1, request_fields())
    frame = h2.frame_header(h2.DATA, 0, 1, 16_384) + bytes(16_384)
    for _ in range(10):
        talk.client.raw_bytes(frame)
    assert talk.server.raw.count(frame) == 7, "beyond 65,535 bytes it is for the connection to say so"


def test_a_call_whose_header_lists_pile_up_behind_a_delay_is_reset() -> None:
    talk = Talk(HELD)
    talk.client.headers(1, request_fields())
    talk.client.log.clear()
    size = 10_000
    for _ in range(MAX_WAITING_FIELDS // size + 1):
        talk.client.headers(1, [(b"x", b"y" * size)])
    assert talk.client.log == ["RST 1 11"]


def test_header_lists_that_pass_do_not_count() -> None:
    talk = Talk(Fault(do=Delay(seconds=1), where=AfterMessage(number=1, of=Part.RESPONSE)))
    talk.client.headers(1, request_fields(), end=True)
    talk.client.log.clear()
    for _ in range(MAX_WAITING_FIELDS // 10_000 + 1):
        talk.server.headers(1, [(b":status", b"103"), (b"x", b"y" * 10_000)])
    talk.server.respond(1)
    assert talk.client.log[-1] == "HEADERS 1 0 END"


def test_a_reset_that_is_repeated_waits_once() -> None:
    talk = Talk(Fault(do=Delay(seconds=1), where=BeforeHeaders(of=Part.RESPONSE)))
    talk.client.request(1)
    talk.server.headers(1, RESPONSE)
    for _ in range(100):
        talk.server.reset(1)
    assert len(talk.middle._calls[1].response.inbox) == 1
    talk.wait(1)
    assert talk.client.log == ["HEADERS 1 200", "RST 1 8"]


def test_what_waits_behind_a_shut_window_stops_the_connection_from_saying_more() -> None:
    talk = Talk(Fault(method="/x.Y/Z", do=DoubleMessage(), where=AfterMessage(number=1)))
    client, server = talk.client, talk.server
    client.credits = False
    client.request(1, path="/x.Y/Z")
    server.headers(1, RESPONSE)
    server.body(1, message(b"m" * 30_000))
    client.headers(3, request_fields(), end=True)
    server.headers(3, RESPONSE)
    server.data(3, message(b"m" * 16_000))
    number = 5
    while talk.middle.unsent_to(peer=True) <= MAX_WAITING_BYTES and number < 1000:
        client.headers(number, request_fields(), end=True)
        server.headers(number, [*RESPONSE, (b"x", b"y" * 1000)])
        client.reset(number)
        number += 2
    assert number < 1000, "headers that wait behind DATA are counted"
    client.allow(0, 100_000)
    assert talk.middle.unsent_to(peer=True) == 0


def test_tiny_window_updates_have_all_calls_look_once_for_each_read() -> None:
    talk = Talk(Fault(do=Delay(seconds=3600), where=BeforeHeaders(of=Part.RESPONSE)))
    for number in range(1, 201, 2):
        talk.client.headers(number, request_fields(), end=True)
    flood = h2.window_update(0, 1) * 50_000
    began = process_time()
    talk.middle.from_peer(flood, talk.now)
    assert process_time() - began < 2


def test_new_table_sizes_of_blocks_that_go_nowhere_are_not_collected() -> None:
    reader = BlockReader(of_requests=True)
    block = b"\x20\x3f\xe1\x1f" + write_block(request_fields())
    frame = h2.frame_header(h2.HEADERS, h2.END_HEADERS, 1, len(block)) + block
    for untouched in (True, False):
        for _ in range(10):
            assert reader.add(frame, h2.HEADERS, h2.END_HEADERS, 1, untouched=untouched) is not None
        assert reader.size_update == (b"" if untouched else b"\x20")
