"""Calls go on while the proxy is reloaded, upgraded, and loses workers: on real processes, under steady load.

    .venv/bin/python -m interop.promises.lifecycle [--reloads 20] [--upgrades 20] [--kills 20] [--tls 3] [--json FILE]

Twenty callers of grpcio make one unary call after the other, twenty more hold streams that last some seconds, each on
a connection of its own that lasts as long as it may; what grpcio repeats by itself is told in callers.py. Between them
and the backend `rawgrpc-proxy serve --config FILE` with two workers, to which these things happen:

- nothing, to compare with;
- SIGHUP, with other settings each time, and again as soon as the new workers have taken over: no call may fail, and no
  stream be cut, for all of them end within the grace;
- SIGUSR2, the same;
- SIGKILL of the worker with the most connections: only what was in flight on it may fail;
- SIGHUP and SIGUSR2 with TLS.

Exit code 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from interop.promises.backend import backend
from interop.promises.lifecycle.load import Crowd, calling
from interop.promises.lifecycle.phases import Outcome, Story
from interop.promises.lifecycle.proxy import Setup, running_proxy
from interop.shared.processes import Trouble
from interop.shared.security import made_by_the_proxy

_HEAD = (
    "phase",
    "events",
    "calls",
    "calls/s",
    "failed",
    "streams",
    "cut",
    "in flight",
    "broken",
    "longest pause",
)


def measure(given: argparse.Namespace) -> list[Outcome]:
    """Run all phases. Raises `Trouble` if they cannot be."""
    crowd = Crowd(
        unary=given.callers,
        streams=given.streams,
        processes=given.processes,
        pause_s=given.pause,
        retries=not given.no_retries,
    )
    outcomes: list[Outcome] = []
    with backend() as server, tempfile.TemporaryDirectory() as made:
        setup = Setup(server.target, given.workers, given.engine, given.python, given.admin)
        if given.reloads or given.upgrades or given.kills:
            outcomes += _story(setup, crowd, Path(made), given.reloads, given.upgrades, given.kills)
        if given.tls:
            made_by_the_proxy(Path(made))
            ca, certificate, key = (str(Path(made) / name) for name in ("ca.pem", "server.pem", "server.key"))
            setup = Setup(**{**vars(setup), "tls": (certificate, key)})
            outcomes += _story(setup, crowd, Path(made), given.tls, given.tls, 0, [f"--tls-ca={ca}"])
    return outcomes


def _story(
    setup: Setup,
    crowd: Crowd,
    folder: Path,
    reloads: int,
    upgrades: int,
    kills: int,
    options: Sequence[str] = (),
) -> list[Outcome]:
    with running_proxy(setup, folder) as proxy:
        with calling(crowd, proxy.process.target, options) as load:
            story = Story(proxy, load, crowd.names, "" if setup.tls is None else ", TLS")
            story.settle()
            story.quiet()
            if reloads:
                story.take_overs(signal.SIGHUP, reloads)
            if upgrades:
                story.take_overs(signal.SIGUSR2, upgrades)
            if kills:
                story.kills(kills)
        return story.outcomes(crowd.pause_s)


def show(outcomes: Sequence[Outcome]) -> None:
    """Print the table, and under it what was told of calls that failed."""
    rows = [
        (
            each.phase,
            str(each.events),
            f"{each.calls:,}",
            f"{each.calls_per_s:,.0f}",
            str(each.failed),
            str(each.streams),
            str(each.cut),
            str(each.in_flight),
            str(each.broken),
            f"{each.longest_pause_s * 1e3:,.0f} ms",
        )
        for each in outcomes
    ]
    widths = [max(map(len, column)) for column in zip(_HEAD, *rows, strict=True)]
    for first, *others in [_HEAD, *rows]:
        print(
            "  ".join(
                [
                    first.ljust(widths[0]),
                    *(text.rjust(wide) for text, wide in zip(others, widths[1:], strict=True)),
                ]
            )
        )
    for each in outcomes:
        for text in each.failures:
            print(f"{each.phase}: {text}")
    broken = [each.phase for each in outcomes if not each.kept]
    print(f"broken: {'; '.join(broken)}" if broken else "every promise was kept")


def main() -> int:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(
        prog="python -m interop.promises.lifecycle",
        description="calls go on while the proxy is reloaded, upgraded, and loses workers",
    )
    parser.add_argument("--reloads", type=int, default=20, metavar="N", help="SIGHUP so many times (20)")
    parser.add_argument("--upgrades", type=int, default=20, metavar="N", help="SIGUSR2 so many times (20)")
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="kill so many workers (20)")
    parser.add_argument("--tls", type=int, default=3, metavar="N", help="so many of both with TLS (3)")
    parser.add_argument("--callers", type=int, default=20, metavar="N", help="of unary calls (20)")
    parser.add_argument("--streams", type=int, default=20, metavar="N", help="callers of streams (20)")
    parser.add_argument("--processes", type=int, default=4, metavar="N", help="that they are spread over (4)")
    parser.add_argument(
        "--pause", type=float, default=0.02, metavar="SECONDS", help="between two calls of a caller (0.02)"
    )
    parser.add_argument(
        "--no-retries", action="store_true", help="callers without grpcio's transparent retries"
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="of the proxy (2)")
    parser.add_argument("--admin", action="store_true", help="the proxy has an admin listener")
    parser.add_argument("--engine", choices=["h2", "relay"], default="relay", help="of the proxy")
    parser.add_argument("--python", default=sys.executable, metavar="FILE", help="that runs the proxy")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there")
    given = parser.parse_args()
    try:
        outcomes = measure(given)
    except Trouble as trouble:
        print(trouble)
        return 1
    show(outcomes)
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(each) for each in outcomes], indent=1))
    return 0 if all(each.kept for each in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
