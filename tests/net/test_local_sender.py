"""Sending DATA of our own: it waits while the peer takes none."""

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import RpcError
from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.net.local_sender import LocalSender
from tests.net.test_connection import a_link
from tests.proxy.house import on_every_engine
from tests.proxy.raw_peers import INITIAL_WINDOW, request_fields

pytestmark = on_every_engine


@trio_test
async def test_a_sender_waits_while_the_peer_takes_nothing_and_hears_of_the_end(engine: Engine) -> None:
    async with a_link(engine, client_side=True) as link, trio.open_nursery() as nursery:
        link.peer.credits = False
        stream = link.connection.open_stream(request_fields())
        sender = LocalSender(stream)
        await sender.send(bytes(INITIAL_WINDOW))
        await sender.send(bytes(64 * 1024))
        await trio.testing.wait_all_tasks_blocked()
        served = link.peer.streams[stream.id]
        assert served.received_bytes == INITIAL_WINDOW
        nursery.start_soon(served.reset, 8)
        with pytest.raises(RpcError, match="CANCEL"):
            await sender.send(b"one more")


@trio_test
async def test_a_sender_goes_on_when_the_peer_takes_more(engine: Engine) -> None:
    async with a_link(engine, client_side=True) as link, trio.open_nursery() as nursery:
        link.peer.credits = False
        stream = link.connection.open_stream(request_fields())
        sender = LocalSender(stream)
        await sender.send(bytes(INITIAL_WINDOW))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(link.peer.credit_everything)
        await sender.send(bytes(200_000), end_stream=True)
        await trio.testing.wait_all_tasks_blocked()
        assert link.peer.streams[stream.id].received_bytes == INITIAL_WINDOW + 200_000
