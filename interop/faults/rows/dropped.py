"""Links that are pulled, between network namespaces: packets are lost, retransmitted, and lost again."""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager

import trio

from interop.faults.netns import impossible, namespaces
from interop.faults.row import Figures, Outcome, Row, Site, left_out
from interop.faults.world import Backend, Proxy, Settings, calling, holding, play, proxying, until
from interop.shared.ports import free_port
from interop.shared.running import running

#: PING after 10 s, the least there may be, 2 s for its answer, 1 s for a dial that comes to nothing.
HTTP2 = "upstream_keepalive = 10\nkeepalive_timeout = 2\ndownstream_keepalive = 10\nsend_timeout = 8"
POOL = "dial_timeout = 1"
SAFE_SECONDS = 10.0 + 2.0 + 1.0 + 0.5
BACK_SECONDS = 5.0
FREED_SECONDS = 10.0 + 2.0 + 1.0
PULLED_SECONDS = 20.0
DEADLINE_SECONDS = 3.0


async def backend_dropped(site: Site) -> Outcome:
    """One of two backends is behind a link that is pulled for 10 s."""
    if why := impossible():
        return left_out(why)
    figures = Figures()
    with namespaces() as nets:
        far = nets.run(nets.far)
        first, second = (
            Backend(name, host=nets.far_address(n), prefix=far) for n, name in ((1, "a"), (2, "b"))
        )
        async with running(first), running(second):
            settings = Settings(
                [first.target, second.target], http2=HTTP2, pool=POOL, listen=f"{nets.near_address(1)}:0"
            )
            async with (
                proxying(site, settings, nets.run(nets.near)) as proxy,
                calling(
                    proxy.target, nets.run(nets.near), at_a_time=4, rest=0.05, timeout=DEADLINE_SECONDS
                ) as callers,
            ):
                pulled = time.monotonic()
                nets.pull(1)
                await trio.sleep(PULLED_SECONDS)
                plugged = time.monotonic()
                nets.plug(1)
                await until(lambda: _first_on(proxy, first.target, plugged) is not None, 20)
                load = await callers.finish()
    last = max((each.started - pulled for each in load.failures), default=0.0)
    figures.at_most("the last call that was lost began after", last, SAFE_SECONDS)
    overruns = [each.ended - each.started - DEADLINE_SECONDS for each in load.failures]
    figures.at_most("the latest end after its deadline", max(overruns, default=0.0), 0.25)
    figures.note(f"{len(load.failures)} of {load.total:,} calls lost")
    figures.at_most(
        "plugged in, it has calls again after", _first_on(proxy, first.target, plugged), BACK_SECONDS
    )
    figures.note(f"{load.truncated} truncated successes", not load.truncated)
    return figures.outcome()


def _first_on(proxy: Proxy, target: str, since: float) -> float | None:
    ends = [
        call.ended - since
        for call in proxy.calls
        if call.upstream == target and call.status == "OK" and call.ended - call.seconds > since
    ]
    return min(ends, default=None)


async def only_backend_dropped(site: Site) -> Outcome:
    """The link to the only backend is pulled for 10 s, at the defaults but for keepalive."""
    if why := impossible():
        return left_out(why)
    figures = Figures()
    with namespaces() as nets:
        near = nets.run(nets.near)
        async with running(Backend("a", host=nets.far_address(1), prefix=nets.run(nets.far))) as server:
            settings = Settings(
                [server.target], http2=HTTP2, pool=POOL, listen=f"{nets.near_address(1)}:{free_port()}"
            )
            async with proxying(site, settings, near) as proxy:
                await play(proxy.target, [{"method": "Echo"}], prefix=near)
                nets.pull(1)
                calls = [{"method": "Echo", "after_s": n * 1.0} for n in range(20)]
                results = await play(proxy.target, calls, prefix=near)
                longest = max(each.seconds for each in results)
                figures.at_most("without a deadline the longest call took", longest, 10.0 + 2.0 + 2.0)
                statuses = sorted({each.status for each in results})
                figures.note(f"statuses {statuses}", statuses == ["UNAVAILABLE"])
                plugged = time.monotonic()
                nets.plug(1)
                with trio.move_on_after(30):
                    while (await play(proxy.target, [{"method": "Echo"}], prefix=near))[0].status != "OK":
                        pass
                figures.at_most(
                    "plugged in, calls go through after", time.monotonic() - plugged, BACK_SECONDS
                )
    return figures.outcome()


async def caller_dropped(site: Site) -> Outcome:
    """A caller's link is pulled, under an idle stream and under one that is being written to."""
    if why := impossible():
        return left_out(why)
    figures = Figures()
    with namespaces() as nets:
        near, far = nets.run(nets.near), nets.run(nets.far)
        for name in ("idle", "busy"):
            async with running(Backend("a", prefix=near)) as server:
                settings = Settings([server.target], http2=HTTP2, listen=f"{nets.near_address(2)}:0")
                async with proxying(site, settings, near) as proxy, _stream(name, proxy.target, far):
                    await trio.sleep(1.0)
                    pulled = time.monotonic()
                    nets.pull(2)
                    freed = None
                    with trio.move_on_after(30):
                        while await proxy.open_calls():  # noqa: ASYNC110  # another process is asked
                            await trio.sleep(0.05)
                        freed = time.monotonic() - pulled
                    figures.at_most(f"{name}: freed after", freed, FREED_SECONDS)
            nets.plug(2)
    return figures.outcome()


def _stream(name: str, target: str, prefix: list[str]) -> AbstractAsyncContextManager[object]:
    if name == "idle":
        return holding(target, 1, prefix)
    return calling(target, prefix, kind="stream", channels=1, at_a_time=1, count=1_000_000, pause=0.01)


ROWS = [
    Row(
        "dropped",
        f"the link to one of two backends is pulled for {PULLED_SECONDS:.0f} s; keepalive 10 + 2 s",
        "no call is lost that begins 13.5 s later; deadlines are kept; it has calls again 5 s after",
        40,
        backend_dropped,
        waits=True,
    ),
    Row(
        "dropped_only",
        "the same link, with one backend, and calls without a deadline",
        "UNAVAILABLE within 14 s; calls go through again 5 s after",
        40,
        only_backend_dropped,
        waits=True,
    ),
    Row(
        "dropped_caller",
        "a caller's link is pulled under a stream, idle or busy; keepalive 10 + 2 s",
        "the call is freed within 13 s",
        40,
        caller_dropped,
        waits=True,
    ),
]
