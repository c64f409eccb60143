"""Attacks the proxy, and tells what each attack costs and who is hurt. Loopback only, and every attack has an end.

    .venv/bin/python -m interop.attacks [--only GLOB] [--proxies A,B] [--connections N] [--seconds S] [--json FILE]

For each attack a fresh proxy at its defaults. Measured: the longest step of its loop and its CPU time, how far its
memory rises and how much of that stays, how long somebody else's calls take meanwhile (and before, since the machine
has its own moods), and what ends the attack. The bounds: a step of 25 ms, a peak of 8 MiB for each connection of the
attacker's, of which 8 MiB in all may stay (where memory itself is attacked, the system allows the proxy 512 MiB, and
the peak is 192), 50 ms for the ninety-ninth call of a hundred, no failed call, and the proxy lives. Exit code 1 if one
is missed by the proxy on either engine; nghttpx and HAProxy, where they are installed, stand beside it and are not
judged. They have no steps to be measured.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from pathlib import Path

from interop.attacks.proxies import PROXIES
from interop.attacks.rows import ROWS
from interop.attacks.run import Result, measure
from interop.attacks.table import table
from interop.shared.processes import Trouble
from interop.shared.progress import Progress


def installed(names: list[str]) -> dict[str, str]:
    """Those of these proxies that can be run, with the versions of references; a line tells of each other one."""
    found = {}
    for name in names:
        try:
            found[name] = PROXIES[name].version()
        except Trouble as trouble:
            print(f"{trouble}, and left out", file=sys.stderr)
    return found


def names_of(text: str) -> list[str]:
    """The proxies that an argument names."""
    names = text.split(",")
    if unknown := [name for name in names if name not in PROXIES]:
        raise argparse.ArgumentTypeError(f"no proxy is called {unknown[0]}; there are {', '.join(PROXIES)}")
    return names


def main() -> int:
    """Parse the arguments and attack."""
    parser = argparse.ArgumentParser(
        prog="python -m interop.attacks", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--only", default="*", metavar="GLOB", help="these attacks alone")
    parser.add_argument(
        "--proxies", type=names_of, default=list(PROXIES), metavar="A,B", help=f"default: {','.join(PROXIES)}"
    )
    parser.add_argument("--side", choices=["downstream", "upstream"], help="default: both")
    parser.add_argument("--connections", type=int, default=1, help="of the attacker; default: 1")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each attack; default: 4")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--list", action="store_true", help="tell the attacks")
    given = parser.parse_args()
    if given.list:
        for row in ROWS:
            print(f"{row.name:18} {row.what}{', from a backend too' if row.upstream else ''}")
        return 0
    versions = installed(given.proxies)
    steps = [
        (row, side, PROXIES[name])
        for row in ROWS
        if fnmatch.fnmatch(row.name, given.only)
        for side in ("downstream", "upstream")
        if given.side in (None, side) and (row.upstream if side == "upstream" else row.downstream)
        for name in versions
    ]
    if not steps:
        print(f"no attack is called {given.only}; --list tells their names", file=sys.stderr)
        return 2
    results: list[Result] = []
    progress = Progress(len(steps))
    for number, (row, side, proxy) in enumerate(steps):
        progress.show(number, f"{row.name}, {side}, {proxy.name}")
        results.append(measure(row, side, proxy, given.connections, given.seconds))
    progress.end()
    print(table(results))
    if given.json is not None:
        told = {
            "seconds": given.seconds,
            "versions": versions,
            "results": [each.as_json() for each in results],
        }
        given.json.write_text(json.dumps(told, indent=1))
    return int(any(each.missed for each in results))


if __name__ == "__main__":
    sys.exit(main())
