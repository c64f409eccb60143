"""Two proxies that lead to each other: what ends a call that goes round."""

import trio
from trio.testing import trio_test

from rawgrpc_proxy import Pool, Server, transparent_handler
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import Engine, Http2Settings
from rawgrpc_proxy.net.listen import bound_address
from rawgrpc_proxy.routes import RouteTable
from tests.net.test_listen import LOOPBACK, open_listener
from tests.pool_backend import REQUEST
from tests.proxy.house import A_TEST_S, on_every_engine

pytestmark = on_every_engine


@trio_test
async def test_a_cancel_overtakes_a_call_that_goes_round_between_two_proxies(engine: Engine) -> None:
    settings = Http2Settings(engine=engine)
    with trio.fail_after(A_TEST_S):
        async with (
            trio.open_nursery() as nursery,
            Pool(ms=100, settings=settings) as to_one,
            Pool(ms=100, settings=settings) as to_two,
            Pool(settings=settings) as client,
        ):
            with open_listener(LOOPBACK) as at_one, open_listener(LOOPBACK) as at_two:
                one, two = str(bound_address(at_one)), str(bound_address(at_two))
                first, second = _leading_to(two, to_two, settings), _leading_to(one, to_one, settings)
                await nursery.start(first.serve, at_one.dup())
                await nursery.start(second.serve, at_two.dup())
            conn = await client.get_conn(one)
            stream = conn.open_stream(REQUEST)
            while first.open_calls < 300:  # noqa: ASYNC110  # no event tells of it, and all tasks are never blocked
                await trio.sleep(0.002)
            stream.reset(ErrorCode.CANCEL)
            while first.open_calls + second.open_calls:  # noqa: ASYNC110
                await trio.sleep(0.002)
            conn.close()
            nursery.cancel_scope.cancel()


def _leading_to(address: str, pool: Pool, settings: Http2Settings) -> Server:
    director = RouteTable(default=address).director(pool)
    return Server(unknown_service_handler=transparent_handler(director), settings=settings)
