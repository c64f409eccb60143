"""Measures the bounds that the README promises, on the real command line in a process of its own.

    .venv/bin/python -m interop.promises.bounds [--engine h2|relay] [--only idle] [--gib 4]

- slow reader: one server stream of so many GiB to a client that reads in small sips; the proxy's memory stays bounded;
- no reader: a client that never reads its stream; memory stays bounded, and another call on its connection works;
- streams: 1000 calls at once with --ms 20 make 50 upstream connections with 20 streams each, never more;
- idle: 10,000 connections that say nothing after their SETTINGS; what the proxy grows by for each, and what they cost.

Exit code 1 if a bound does not hold.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

import trio

from interop.promises.bounds.backend import MESSAGE_BYTES, SERVICE, Backend
from interop.promises.bounds.client import RawClient
from interop.shared import proc
from interop.shared.processes import Listener, Trouble, proxy_command
from interop.shared.progress import Progress
from interop.shared.running import running

MEMORY_LIMIT_MB = 100
CALLS, MS = 1000, 20
SIP_SECONDS = 0.0005
PROGRESS_SECONDS = 30.0
#: Connections that are idle, as far as the limit on open files goes; memory and CPU time that each may take.
IDLE, IDLE_KIB, IDLE_LOOK_SECONDS, IDLE_CPU_SHARE = 10_000, 25.0, 10.0, 0.02
#: How long the call beside one that is not read may take, and all calls of `streams`.
ANSWER_SECONDS, STREAMS_SECONDS = 10.0, 60.0


@dataclass(frozen=True)
class Site:
    """What one bound is measured on: a fresh proxy, and the backend behind it."""

    proxy: Listener
    backend: Backend
    gib: float

    @property
    def messages(self) -> int:
        """How many make up the long stream."""
        return int(self.gib * 2**30 / MESSAGE_BYTES)

    @property
    def peak_mb(self) -> float:
        """The most memory that the proxy has had."""
        return self.memory().peak_mib

    def memory(self) -> proc.Memory:
        """What the proxy has."""
        return proc.memory(proc.worker_of(self.proxy.pid))


async def slow_reader(site: Site) -> tuple[str, bool]:
    """A stream read in sips: how it went, and whether memory stayed in bounds and nothing was lost."""
    client = await RawClient.connect(site.proxy.target)
    await client.call(1, SERVICE + "Stream", str(site.messages).encode())
    total, started = site.messages * MESSAGE_BYTES, trio.current_time()
    progress = Progress(total, pause=PROGRESS_SECONDS)
    while 1 not in client.ended:
        await client.read_some(credit=True)
        await trio.sleep(SIP_SECONDS)
        progress.show(client.body_bytes[1], f"slow reader: {site.memory().now_mib:.0f} MB")
    progress.end()
    seconds, peak, body = trio.current_time() - started, site.peak_mb, client.body_bytes[1]
    text = f"{body / 2**30:.2f} GiB in {seconds:.0f} s, the proxy's peak {peak:.0f} MB"
    return text, body == total and peak < MEMORY_LIMIT_MB


async def no_reader(site: Site) -> tuple[str, bool]:
    """A stream that is not read: whether another call is answered meanwhile, and memory stayed in bounds."""
    client = await RawClient.connect(site.proxy.target)
    await client.call(1, SERVICE + "Stream", str(site.messages).encode())
    while client.body_bytes[1] < 1 << 20:
        await client.read_some(credit=False)
    await client.call(3, SERVICE + "Hello", b"still there?")
    with trio.move_on_after(ANSWER_SECONDS):
        while 3 not in client.ended:
            await client.read_some(credit=False)
    answered, peak = 3 in client.ended, site.peak_mb
    text = f"a second call is {'answered' if answered else 'NOT answered'}, the proxy's peak {peak:.0f} MB"
    return text, answered and peak < MEMORY_LIMIT_MB


async def streams(site: Site) -> tuple[str, bool]:
    """Calls at once: whether they go out on as many connections as they have to, with as many streams on each."""
    client = await RawClient.connect(site.proxy.target)
    for index in range(CALLS):
        await client.call(2 * index + 1, SERVICE + "Hold", b"")
    with trio.move_on_after(STREAMS_SECONDS):
        while len(client.ended) < CALLS:
            await client.read_some(credit=True)
    ended, connections, most = len(client.ended), len(site.backend.held), site.backend.most_on_one
    text = f"{ended} calls, {connections} upstream connections, up to {most} streams on one"
    return text, (ended, connections, most) == (CALLS, CALLS // MS, MS)


async def idle(site: Site) -> tuple[str, bool]:
    """Connections without calls: memory for each, the CPU time of all, and whether a call is answered beside them."""
    count = min(IDLE, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500)
    worker = proc.worker_of(site.proxy.pid)
    held = [await RawClient.connect(site.proxy.target) for _ in range(10)]  # they pay for what is made once
    for client in held:
        await client.settle()
    before, progress = site.memory().now_kib, Progress(count, pause=PROGRESS_SECONDS)
    for number in range(count):
        held.append(await RawClient.connect(site.proxy.target))
        await held[-1].settle()
        if number % 100 == 0:
            progress.show(number, f"idle connections: {site.memory().now_mib:.0f} MB")
    progress.end()
    each = (site.memory().now_kib - before) / count
    cpu_before = proc.exact_cpu_seconds([worker])
    await trio.sleep(IDLE_LOOK_SECONDS)
    share = (proc.exact_cpu_seconds([worker]) - cpu_before) / IDLE_LOOK_SECONDS
    await held[0].call(1, SERVICE + "Hello", b"still there?")
    with trio.move_on_after(ANSWER_SECONDS):
        while 1 not in held[0].ended:
            await held[0].read_some(credit=False)
    answered = 1 in held[0].ended
    text = f"{count} connections, {each:.1f} KiB for each, {1000 * share:.1f} ms CPU a second for all"
    return text, answered and each < IDLE_KIB and share < IDLE_CPU_SHARE


BOUNDS: dict[str, Callable[[Site], Awaitable[tuple[str, bool]]]] = {
    "slow reader": slow_reader,
    "no reader": no_reader,
    "streams": streams,
    "idle": idle,
}


async def measure(engine: str, gib: float, only: Collection[str]) -> bool:
    """Measure these bounds with one engine and print a line for each; whether all hold."""
    backend, good = Backend(CALLS), True
    async with trio.open_nursery() as nursery:
        upstream = await nursery.start(backend.serve, "127.0.0.1:0")
        options = [f"--upstream={upstream}", f"--ms={MS}", "--grace=1", "--log-format=none"]
        for name in only:
            try:
                async with running(Listener("the proxy", proxy_command(*options, engine=engine))) as proxy:
                    text, held = await BOUNDS[name](Site(proxy, backend, gib))
            except (Trouble, OSError) as error:
                text, held = str(error), False
            print(f"{engine:6} {name:12} {'ok' if held else 'FAILED':7} {text}", flush=True)
            good = good and held
        nursery.cancel_scope.cancel()
    return good


def main() -> int:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(
        prog="python -m interop.promises.bounds", description="measure the proxy's bounds"
    )
    parser.add_argument("--engine", action="append", choices=["h2", "relay"], help="default: both")
    parser.add_argument("--only", action="append", choices=list(BOUNDS), help="default: all")
    parser.add_argument("--gib", type=float, default=4.0, help="length of the slow stream (default: 4)")
    given = parser.parse_args()
    held = [
        trio.run(measure, engine, given.gib, given.only or BOUNDS)
        for engine in given.engine or ["h2", "relay"]
    ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
