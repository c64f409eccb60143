"""Names whose addresses change while calls are made."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from interop.faults.row import Figures, Outcome, Row, Site, left_out
from interop.faults.world import Backend, Proxy, Settings, calling, proxying, start, stop, until
from interop.shared.dnsmasq import Dnsmasq, dnsmasq
from interop.shared.programs import SYSTEM_PATH

NAME = "orders.internal"
TTL_S = 2
FOLLOWED_SECONDS = TTL_S + 1.0
LOOK_SECONDS = 5.0
#: What was on its way when the cluster heard of the change.
LAST_CALLS_SECONDS = 0.5


@asynccontextmanager
async def _named_backends(count: int) -> AsyncIterator[list[Backend]]:
    """Backends on one port, each on a loopback address of its own: 127.0.0.1 and so on."""
    made: list[Backend] = []
    try:
        for number in range(1, count + 1):
            port = int(made[0].target.rpartition(":")[2]) if made else 0
            backend = Backend(f"127.0.0.{number}", port, host=f"127.0.0.{number}")
            await start(backend)
            made.append(backend)
        yield made
    finally:
        for backend in made:
            await stop(backend)


def _means(server: Dnsmasq, *numbers: int) -> float:
    """The name has these addresses from now on; when that is."""
    server.set({NAME: [f"127.0.0.{number}" for number in numbers]})
    return time.monotonic()


def _served(proxy: Proxy, since: float = 0.0) -> Counter[str]:
    """Calls by the address that had them."""
    return Counter(call.upstream.rpartition(":")[0] for call in list(proxy.calls) if call.ended >= since)


async def changes(site: Site) -> Outcome:
    """A name has two addresses, then three, then one, under load."""
    if shutil.which("dnsmasq", path=SYSTEM_PATH) is None:
        return left_out("dnsmasq is left out: it is not installed here (dnsmasq-base)")
    figures = Figures()
    with dnsmasq({NAME: ["127.0.0.1", "127.0.0.2"]}, ttl_s=TTL_S) as server:
        async with _named_backends(3) as backends:
            port = backends[0].target.rpartition(":")[2]
            cluster = f'dns = "{NAME}:{port}"\ndns_servers = ["{server.address}"]'
            async with proxying(site, Settings(cluster=cluster)) as proxy, calling(proxy.target) as callers:
                await trio.sleep(1)
                figures.note("two have calls", len(_served(proxy)) == 2)
                changed = _means(server, 1, 2, 3)
                await until(lambda: bool(_served(proxy)["127.0.0.3"]), LOOK_SECONDS)
                firsts = [call.ended for call in list(proxy.calls) if call.upstream.startswith("127.0.0.3:")]
                took = firsts[0] - changed if firsts else None
                figures.at_most("the third has calls after", took, FOLLOWED_SECONDS)
                changed = _means(server, 3)
                await trio.sleep(FOLLOWED_SECONDS + LAST_CALLS_SECONDS)
                gone = [
                    call.ended for call in list(proxy.calls) if not call.upstream.startswith("127.0.0.3:")
                ]
                figures.at_most("the other two have none after", gone[-1] - changed, FOLLOWED_SECONDS)
                await trio.sleep(1)
                load = await callers.finish()
                only = _served(proxy, changed + FOLLOWED_SECONDS)
                figures.note(f"then {only.total():,} calls go to one", set(only) == {"127.0.0.3"})
                figures.note(
                    f"{len(load.failures)} of {load.total:,} failed {load.why()}".rstrip(), not load.failures
                )
                figures.note("all places given back", await proxy.quiet())
    return figures.outcome()


ROWS = [
    Row(
        "name_changes",
        "a name has two addresses, then three, then one",
        f"followed within its ttl ({TTL_S} s) and a second; no call fails",
        12.0,
        changes,
    ),
]
