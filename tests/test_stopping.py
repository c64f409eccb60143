"""Whether a server stops, as those hear of it who would go on."""

import pytest
import trio
from trio.testing import trio_test, wait_all_tasks_blocked

from rawgrpc_proxy.stopping import Stopping


@trio_test
async def test_what_goes_on_until_the_stop_is_cancelled_then() -> None:
    stopping = Stopping()
    ended = []

    async def goes_on() -> None:
        with stopping.ends() as scope:
            await trio.Event().wait()
        ended.append(scope.cancelled_caught)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(goes_on)
        nursery.start_soon(goes_on)
        nursery.start_soon(stopping.wait)
        await wait_all_tasks_blocked()
        assert not stopping.is_set()
        stopping.set()
        stopping.set()
    assert stopping.is_set()
    assert ended == [True, True]


@trio_test
async def test_what_begins_after_the_stop_is_cancelled_at_once() -> None:
    stopping = Stopping()
    stopping.set()
    with trio.fail_after(5), stopping.ends():
        await trio.Event().wait()


@trio_test
async def test_what_has_ended_by_itself_hears_no_more_of_the_stop() -> None:
    stopping = Stopping()
    with stopping.ends() as scope:
        pass
    with pytest.raises(KeyError), stopping.ends() as failed:
        raise KeyError
    stopping.set()
    assert not scope.cancel_called
    assert not failed.cancel_called
