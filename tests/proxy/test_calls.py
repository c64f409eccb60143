from trio.testing import trio_test

from rawgrpc_proxy import Status
from rawgrpc_proxy.config import Engine
from tests.proxy.house import a_proxy, on_every_engine
from tests.proxy.raw_peers import OK, RESPONSE, message

pytestmark = on_every_engine


@trio_test
async def test_a_unary_call_goes_through(engine: Engine) -> None:
    async with a_proxy(engine) as house:
        client = await house.client()
        call = await client.request("/a.B/C", (b"x-user", b"ann"), body=b"hello")
        served = await house.backend.request()
        assert served.request.get(b":path") == b"/a.B/C"
        assert served.request.get(b"x-user") == b"ann"
        assert await served.request_body() == message(b"hello")
        await served.headers([*RESPONSE, (b"x-from", b"backend")])
        await served.body(message(b"bye"))
        await served.headers([*OK, (b"x-end", b"now")], end=True)
        answer = await call.answer()
        assert answer.headers is not None
        assert answer.headers.get(b"x-from") == b"backend"
        assert answer.body == message(b"bye")
        assert answer.status == Status.OK
        assert answer.get(b"x-end") == b"now"
        record = await house.record()
        assert (record.status, record.origin) == (Status.OK, "upstream")
        assert (record.request_messages, record.response_messages) == (1, 1)
