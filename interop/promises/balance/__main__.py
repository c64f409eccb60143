"""Which backend gets which call, by each policy of balancing: `rawgrpc-proxy serve` before three real backends.

    .venv/bin/python -m interop.promises.balance [--calls 30000] [--in-flight 16] [--workers 2] [--engine relay]

The backends are servers of grpcio in processes of their own, and say who they are; the caller is grpcio's client.

- round_robin: the shares differ by 3 % at the most, with weights too.
- least_request, and one backend that takes 50 ms for a call: it gets 15 % at the most.
- ring_hash on a header: each key always gets to the same backend; when one of n is killed, 1/n + 10 % of the keys move
  at the most, and none of those that were elsewhere; and no call fails.
- ring_hash, and one key for all calls: by the bound no backend has more than 1.25 times its share of those in flight,
  and so, where all are as fast, about as much of the calls.
- pick_first: one has all calls.

Exit code 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import grpc.aio

from interop.shared.processes import Listener, Trouble
from interop.shared.progress import Progress

CHANNELS = 8
"""Connections of the caller, so that all workers of the proxy have some."""
SLOW_MS = 50
BOUND = 1.25
SLACK = 0.08


@dataclass
class Outcome:
    """A promise, and what came of it."""

    policy: str
    promise: str
    outcome: str
    kept: bool
    calls_per_s: float


@dataclass
class Site:
    """What is run, and how far all of it is."""

    calls: int
    in_flight: int
    workers: int
    engine: str
    progress: Progress
    done: int = 0


def backend(pause_ms: float = 0) -> Listener:
    """A process of backend.py."""
    command = [sys.executable, "-m", "interop.promises.balance.backend", f"--pause-ms={pause_ms}"]
    return Listener("a backend", command)


@contextlib.contextmanager
def a_proxy(site: Site, backends: Sequence[Listener], balance: str, weights: Sequence[int]) -> Iterator[str]:
    """A proxy that balances so between the backends; where it listens."""
    table = ", ".join(f'"{each.target}" = {weight}' for each, weight in zip(backends, weights, strict=True))
    endpoints = ", ".join(f'"{each.target}"' for each in backends)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "proxy.toml"
        file.write_text(
            f'workers = {site.workers}\nlog = {{ format = "none" }}\nhttp2 = {{ engine = "{site.engine}" }}\n'
            '[[listeners]]\naddress = "127.0.0.1:0"\n'
            f"[clusters.backends]\nendpoints = [{endpoints}]\nbalance = {balance}\n"
            f"weights = {{ {table} }}\npool = {{ min_idle = 1 }}\n"
            '[[routes]]\ncluster = "backends"\n',
            encoding="utf-8",
        )
        command = [sys.executable, "-m", "rawgrpc_proxy", "serve", f"--config={file}"]
        with Listener("the proxy", command) as proxy:
            yield proxy.target


@contextlib.contextmanager
def three(
    site: Site, balance: str, *, slow: bool = False, weights: Sequence[int] = (1, 1, 1)
) -> Iterator[tuple[str, list[Listener]]]:
    """Three backends, the last of which may be slow, and where the proxy before them listens."""
    with contextlib.ExitStack() as stack:
        backends = [
            stack.enter_context(backend(SLOW_MS if slow and number == 2 else 0)) for number in range(3)
        ]
        yield stack.enter_context(a_proxy(site, backends, balance, weights)), backends


async def places(site: Site, target: str, keys: Sequence[str], text: str) -> list[str]:
    """Make a call for each of the keys, many at a time; who has answered each. A call that fails ends the program."""
    found = [""] * len(keys)
    to_come = iter(enumerate(keys))

    async def caller(channel: grpc.aio.Channel) -> None:
        call = channel.unary_unary("/interop.Balance/Who")
        for number, key in to_come:
            try:
                found[number] = (await call(b"", metadata=[("x-user", key)])).decode()
            except grpc.aio.AioRpcError as error:
                raise Trouble(f"a call failed: {error.code()}: {error.details()}") from None
            site.done += 1
            site.progress.show(site.done, text)

    async with contextlib.AsyncExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(target, options=options))
            for _ in range(CHANNELS)
        ]
        async with asyncio.TaskGroup() as group:
            for number in range(site.in_flight):
                group.create_task(caller(channels[number % CHANNELS]))
    return found


def call_all(site: Site, target: str, keys: Sequence[str], text: str) -> tuple[list[str], float]:
    """The places of all calls, and how many there were in a second."""
    began = time.monotonic()
    try:
        found = asyncio.run(places(site, target, keys, text))
    except* Trouble as several:
        raise several.exceptions[0] from None
    return found, len(found) / (time.monotonic() - began)


def shares_of(found: Sequence[str], backends: Sequence[Listener]) -> list[float]:
    """What part of the calls each backend had."""
    counts = Counter(found)
    return [counts[each.target.rpartition(":")[2]] / len(found) for each in backends]


def percent(shares: Sequence[float]) -> str:
    """Several shares for the table."""
    return " / ".join(f"{share:.1%}" for share in shares)


def round_robin(site: Site, weights: Sequence[int]) -> Outcome:
    """By the weights."""
    with three(site, '"round_robin"', weights=weights) as (target, backends):
        found, rate = call_all(site, target, [""] * site.calls, "round_robin")
        shares = shares_of(found, backends)
    wanted = [weight / sum(weights) for weight in weights]
    kept = all(abs(share / part - 1) <= 0.03 for share, part in zip(shares, wanted, strict=True))
    promise = f"weights {', '.join(map(str, weights))}: each its share, within 3 %"
    return Outcome("round_robin", promise, percent(shares), kept, rate)


def least_request(site: Site) -> Outcome:
    """One that is slow."""
    with three(site, '"least_request"', slow=True) as (target, backends):
        found, rate = call_all(site, target, [""] * site.calls, "least_request")
        shares = shares_of(found, backends)
    return Outcome(
        "least_request",
        f"the last takes {SLOW_MS} ms: at most 15 %",
        percent(shares),
        shares[2] <= 0.15,
        rate,
    )


def ring_hash(site: Site) -> list[Outcome]:
    """Keys stay, and one backend is killed."""
    keys = [f"user-{number}" for number in range(site.calls // 3)]
    balance = '{ policy = "ring_hash", header = "x-user", bounded_load = "none" }'
    with three(site, balance) as (target, backends):
        before, rate = call_all(site, target, keys, "ring_hash")
        again, _ = call_all(site, target, keys, "ring_hash, again")
        backends[0].kill()
        after, _ = call_all(site, target, keys, "ring_hash, one killed")
    strayed = sum(one != other for one, other in zip(before, again, strict=True)) / len(keys)
    moved = [one for one, other in zip(again, after, strict=True) if one != other]
    needless = sum(f"127.0.0.1:{place}" != backends[0].target for place in moved)
    share = len(moved) / len(keys)
    return [
        Outcome("ring_hash", "a key stays where it is", f"{1 - strayed:.1%} stay", not strayed, rate),
        Outcome(
            "ring_hash",
            "one of 3 killed: at most 43.3 % of the keys move",
            f"{share:.1%} move, {needless} of them without need",
            share <= 1 / 3 + 0.1 and not needless,
            rate,
        ),
    ]


def bounded_load(site: Site) -> Outcome:
    """One key for all."""
    # The bound is a whole number of calls in each worker: with few of them it is a rough one.
    many = replace(site, in_flight=3 * site.in_flight)
    with three(site, '{ policy = "ring_hash", header = "x-user" }') as (target, backends):
        found, rate = call_all(many, target, ["me"] * site.calls, "ring_hash, one key")
        site.done = many.done
        shares = shares_of(found, backends)
    kept = max(shares) <= BOUND / 3 + SLACK
    promise = f"one key: {BOUND / 3:.0%} each at most, give or take {SLACK:.0%}"
    return Outcome("ring_hash", promise, percent(shares), kept, rate)


def pick_first(site: Site) -> Outcome:
    """One has all."""
    with three(site, '"pick_first"') as (target, backends):
        found, rate = call_all(site, target, [""] * (site.calls // 10), "pick_first")
        shares = shares_of(found, backends)
    return Outcome("pick_first", "the first has all", percent(shares), shares[0] == 1, rate)


def main() -> int:
    """Run all, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=30_000)
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--engine", default="relay")
    given = parser.parse_args()
    progress = Progress(5.1 * given.calls, pause=5)
    site = Site(given.calls, given.in_flight, given.workers, given.engine, progress)
    try:
        outcomes = [
            round_robin(site, (1, 1, 1)),
            round_robin(site, (1, 2, 3)),
            least_request(site),
            *ring_hash(site),
            bounded_load(site),
            pick_first(site),
        ]
    except Trouble as trouble:
        progress.end()
        print(trouble, file=sys.stderr)
        return 2
    progress.end()
    print("| policy | promised | came of it | kept | calls/s |\n|---|---|---|---|---|")
    for each in outcomes:
        kept = "yes" if each.kept else "**no**"
        print(f"| {each.policy} | {each.promise} | {each.outcome} | {kept} | {each.calls_per_s:.0f} |")
    return 0 if all(each.kept for each in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
