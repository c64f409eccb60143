"""Whole services that come and go: etcd behind the proxy, the proxy itself, and addresses in DNS."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import AsyncExitStack

import trio

from interop.faults.row import Figures, Outcome, Row, Site, left_out
from interop.faults.rows.deaths import note_calls
from interop.faults.world import Backend, Proxy, Settings, backends, calling, proxying, start, stop, until
from interop.shared.etcd import Etcdctl
from interop.shared.ports import free_port
from interop.shared.processes import Listener

ROLLING_RESTARTS = 50
CHANNELS = 2
BACK_SECONDS = 5.0
DEATH_SECONDS = 0.1
ETCD_PUTS = 20


async def etcd_restarted(site: Site) -> Outcome:
    """Etcd is killed under a watch, and comes back with its data."""
    if not (shutil.which("etcd") and shutil.which("etcdctl")):
        return left_out("etcd is left out: it is not installed here (etcd-server, etcd-client)")
    figures = Figures()
    client, peer = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "etcd", f"--data-dir={folder}", "--log-level=error", "--logger=zap",
            f"--listen-client-urls=http://127.0.0.1:{client}", f"--advertise-client-urls=http://127.0.0.1:{client}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
        ]  # fmt: skip
        server = Listener("etcd", command, client)
        await start(server)
        try:
            async with proxying(site, Settings([server.target])) as proxy:
                await _etcd(figures, server, command, proxy)
        finally:
            await stop(server)
    return figures.outcome()


async def _etcd(figures: Figures, server: Listener, command: list[str], proxy: Proxy) -> None:
    etcdctl = Etcdctl(proxy.target)
    watch = etcdctl.start("watch", "--prefix", "key")
    again = None
    try:
        await trio.sleep(1)
        put = await trio.to_thread.run_sync(etcdctl, "put", "key1", "before")
        figures.note("a put before: OK" if put["exit"] == 0 else str(put), put["exit"] == 0)
        seen = await trio.to_thread.run_sync(watch.take, 3, 5.0)
        figures.note("the watch has seen it", "before" in seen)
        killed = time.time()
        server.kill()
        await until(lambda: any(call.status == "UNAVAILABLE" for call in proxy.calls), 5)
        ends = [call.over - killed for call in proxy.calls if call.status == "UNAVAILABLE"]
        # etcdctl begins its watch anew, with calls that fail as long as there is no etcd.
        figures.at_most("the watch ends as UNAVAILABLE after", min(ends, default=None), DEATH_SECONDS)
        again = Listener("etcd", command, server.port)
        await start(again)
        back = time.monotonic()
        failed = 0
        first = None
        for number in range(ETCD_PUTS):
            put = await trio.to_thread.run_sync(etcdctl, "put", f"key{number}", "after")
            if put["exit"] == 0:
                first = first or time.monotonic() - back
            elif first is not None:
                failed += 1
        figures.at_most("back, the first put went through after", first, BACK_SECONDS)
        figures.note(f"{failed} puts failed after that", not failed)
        kept = await trio.to_thread.run_sync(etcdctl, "get", "key1")
        figures.note("what was put is there", "after" in kept["stdout"])
        later = await trio.to_thread.run_sync(watch.take, 10, 10.0)
        figures.note("etcdctl's watch goes on by itself", "after" in later)
    finally:
        watch.stop()
        if again is not None:
            await stop(again)


async def rolling(site: Site) -> Outcome:
    """Two proxies are restarted in turn by SIGTERM; callers know both, and repeat what no server has seen."""
    figures = Figures()
    ports = free_port(), free_port()
    async with backends("a") as (server,):
        settings = [Settings([server.target], listen=f"127.0.0.1:{port}") for port in ports]
        async with AsyncExitStack() as stack:
            proxies = [await stack.enter_async_context(AsyncExitStack()) for _ in ports]
            for place, its in zip(proxies, settings, strict=True):
                await place.enter_async_context(proxying(site, its))
            target = f"ipv4:127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}"
            async with calling(
                target, channels=CHANNELS, at_a_time=8, retries=True, round_robin=True, rest=0.01
            ) as callers:
                began = time.monotonic()
                for number in range(ROLLING_RESTARTS):
                    place, its = proxies[number % 2], settings[number % 2]
                    await place.aclose()
                    proxy = await place.enter_async_context(proxying(site, its))
                    # The next one goes when all callers are connected to this one, as in any deployment.
                    with trio.move_on_after(10):
                        while len(await proxy.connections("downstream")) < CHANNELS:  # noqa: ASYNC110
                            await trio.sleep(0.05)
                seconds = time.monotonic() - began
                load = await callers.finish()
    note_calls(figures, load)
    figures.note(f"{ROLLING_RESTARTS} restarts in {seconds:.0f} s")
    return figures.outcome()


async def drained_backend(site: Site) -> Outcome:
    """One of two backends is stopped for good, in good order, and another one takes its port a while later."""
    figures = Figures()
    async with (
        backends("a", "b") as servers,
        proxying(site, Settings([server.target for server in servers])) as proxy,
        calling(proxy.target, at_a_time=4, rest=0.01) as callers,
    ):
        await trio.sleep(2)
        port = int(servers[0].target.rpartition(":")[2])
        await stop(servers[0])
        await trio.sleep(5)
        servers[0] = Backend("c", port)
        await start(servers[0])
        back = time.monotonic()
        first = servers[0].target

        def answered() -> list[float]:
            return [call.ended - back for call in proxy.calls if call.upstream == first and call.ended > back]

        await until(lambda: bool(answered()), 15)
        load = await callers.finish()
    theirs = sum((each.status, each.details) == ("CANCELLED", "CANCELLED") for each in load.failures)
    note_calls(figures, load, allowed=theirs)
    figures.note(f"{theirs} of them answered with CANCELLED by grpcio as it stopped")
    figures.at_most("another one at its port has calls after", min(answered(), default=None), BACK_SECONDS)
    return figures.outcome()


ROWS = [
    Row(
        "etcd",
        "etcd is killed under a watch, and comes back",
        "the watch ends as UNAVAILABLE within 100 ms; puts go through within 5 s of its return, none fails then",
        15,
        etcd_restarted,
    ),
    Row(
        "gone",
        "one of two backends stops for 5 s, and another one takes its port",
        "no call fails (but those that grpcio cancels as it stops); it has calls within 5 s",
        12,
        drained_backend,
    ),
    Row(
        "rolling",
        f"{ROLLING_RESTARTS} rolling restarts of two proxies (SIGTERM), under load",
        "0 failed calls of callers that repeat what no server has seen",
        ROLLING_RESTARTS * 2.5,
        rolling,
    ),
]
