"""Measures this project's proxy beside others: same backend, same load, in turns, medians of the rounds."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from interop.bench import machine
from interop.bench.child import Cpus, Trouble
from interop.bench.contenders.catalogue import HERE, SYSTEM_PATH, Peer, all_peers
from interop.bench.load import MIB, Backend, Files, Load
from interop.bench.report import Results, markdown
from interop.bench.stories import QUICK, STORIES, Bench, Sizes, Story

WANTED_OPEN_FILES = 65_536
BAR = 30
INTERRUPTED = 130
Step = tuple[Story, int, Peer]


def main() -> int:
    options = _options()
    os.environ["PATH"] = SYSTEM_PATH
    peers = [
        peer
        for peer in all_peers(options.pypy)
        if any(fnmatch.fnmatch(peer.name, glob) for glob in options.only)
    ]
    if options.list:
        return _list(peers)
    if not peers:
        print(f"no peer is called {' or '.join(options.only)}; --list tells their names", file=sys.stderr)
        return 2
    if reason := machine.missing_program():
        print(f"nothing can be measured: {reason}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    results, interrupted = _measured(peers, options)
    _write(results, options.out)
    if interrupted:
        return INTERRUPTED
    return int(any(results.troubles.get(peer.name) and results.values.get(peer.name) for peer in peers))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--only",
        action="append",
        metavar="GLOB",
        help="measure the peers of these names alone; may be given again",
    )
    parser.add_argument(
        "--rounds", type=int, default=None, metavar="N", help="default: 3, and 1 with --quick"
    )
    parser.add_argument(
        "--all-rounds",
        action="store_true",
        help="make in every round what else is made once: many connections, open calls",
    )
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it works")
    parser.add_argument(
        "--out", type=Path, default=HERE / "results", metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--pypy", default=os.environ.get("PYPY"), metavar="PATH",
        help="a PyPy 3.11 to run the proxy on as well (default: $PYPY)",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="tell the peers and whether they can run here")
    options = parser.parse_args()
    options.only = options.only or ["*"]
    if options.rounds is None:
        options.rounds = 1 if options.quick else 3
    return options


def _list(peers: list[Peer]) -> int:
    for peer in peers:
        try:
            print(f"{peer.name:18} {peer.version()}")
        except Trouble as trouble:
            print(f"{peer.name:18} cannot run: {trouble}")
    return 0


# --------------------------------------------------------------------------------- the run


def _measured(peers: list[Peer], options: argparse.Namespace) -> tuple[Results, bool]:
    results = Results(peers)
    able = _able(peers, results)
    sizes = (QUICK if options.quick else Sizes()).within(_open_files())
    results.facts = {
        "when": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        **machine.describe(),
        "rounds": f"{options.rounds}{' (quick: too short to tell much)' if options.quick else ''}",
    }
    disturbance, start, interrupted = machine.Disturbance(), time.monotonic(), False
    with one_bench(sizes) as bench, _Progress() as progress:
        steps = _steps(able, options.rounds, all_rounds=options.all_rounds)
        try:
            for number, (story, turn, peer) in enumerate(steps):
                progress.show(number, len(steps), f"{peer.name}: {story.name}, round {turn}")
                if _is_broken(results, peer):
                    continue
                results.add(peer, story.tell(bench, peer))
        except KeyboardInterrupt:
            interrupted = True
            results.facts["interrupted"] = "yes: what follows is a part"
        else:
            progress.show(len(steps), len(steps), "done")
    results.facts |= disturbance.describe()
    results.facts["took"] = f"{(time.monotonic() - start) / 60:.1f} minutes"
    return results, interrupted


def _able(peers: list[Peer], results: Results) -> list[Peer]:
    """Those that are installed."""
    able = []
    for peer in peers:
        try:
            results.versions[peer.name] = peer.version()
            able.append(peer)
        except Trouble as trouble:
            results.trouble(peer, "everything", str(trouble))
    return able


def _steps(peers: list[Peer], rounds: int, *, all_rounds: bool) -> list[Step]:
    """In turns, so that what disturbs the machine for a while disturbs all alike; each round begins with another."""
    steps = []
    for story in STORIES:
        able = story.peers(peers)
        for turn in range(rounds if story.every_round or all_rounds else 1):
            first = turn * len(able) // rounds
            steps += [(story, turn + 1, peer) for peer in able[first:] + able[:first]]
    return steps


def _is_broken(results: Results, peer: Peer) -> bool:
    """Whether it did not even start."""
    return peer.name in results.troubles and peer.name not in results.values


@contextmanager
def one_bench(sizes: Sizes) -> Iterator[Bench]:
    """The backend and its files, while in the context."""
    cpus = sorted(os.sched_getaffinity(0))
    proxy_cpu, load_cpu = cpus[0], cpus[min(1, len(cpus) - 1)]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        files = Files(Path(folder), sizes.bulk_mib * MIB)
        with Backend("nghttpd", files, {load_cpu}) as backend:
            yield Bench(
                sizes, files, backend, Load("h2load", files, {load_cpu}), {load_cpu},
                partial(_proxy_cpus, cpus, proxy_cpu, load_cpu),
            )  # fmt: skip


def _proxy_cpus(cpus: list[int], proxy_cpu: int, load_cpu: int, peer: Peer) -> Cpus:
    """One; for more workers all but that of the load, or all if that leaves too few."""
    if peer.workers == 1:
        return {proxy_cpu}
    free = set(cpus) - {load_cpu}
    return free if len(free) >= peer.workers else set(cpus)


def _open_files() -> int:
    """Allow as many open files as the system lets us, and tell how many: children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_OPEN_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return soft


class _Progress:
    """A bar on standard error; a line for each step where that is no terminal."""

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        print(file=sys.stderr)

    def show(self, done: int, total: int, what: str) -> None:
        elapsed = time.monotonic() - self._start
        full = BAR * done // max(total, 1)
        left = f", about {elapsed / done * (total - done) / 60:.0f} min left" if done else ""
        line = f"[{'#' * full}{'.' * (BAR - full)}] {done}/{total} {elapsed / 60:.1f} min{left}  {what}"
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


def _write(results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plots: list[str] = []
    if find_spec("matplotlib"):
        from interop.bench.plots import draw_all  # noqa: PLC0415 it is slow, and the benchmark can do without

        plots = draw_all(results, folder)
    else:
        results.facts["plots"] = "none, for matplotlib is not installed"
    text = markdown(results, plots)
    (folder / "results.json").write_text(results.as_json())
    (folder / "results.md").write_text(text)
    print(text)
    print(
        f"written to {folder}: results.json, results.md{''.join(f', {plot}' for plot in plots)}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(INTERRUPTED)
