"""Every client to every server, without the proxy and through it: an application must not see a difference.

With `--tls` all of them speak TLS, and then mutual TLS, with certificates that the proxy's own command makes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from interop.matrix import etcd_cases
from interop.matrix.run import Options, Run
from interop.matrix.table import print_matrix, print_notes, print_summary
from interop.peers.cases import CASES
from interop.peers.catalogue import CLIENTS, PEERS
from interop.shared.security import PLAINTEXT, Security, made_by_the_proxy

#: These move so much that they take longer than all others together; TLS is in their way but a cost.
TAKES_LONG = ("concurrent_large_unary", "message_64mib")
PROXY = "{python} -m rawgrpc_proxy serve --listen 127.0.0.1:0 --upstream {upstream}"


def main() -> int:
    """Run the suite; 0 if all outcomes are equal and nothing failed unexpectedly."""
    given = parse()
    with tempfile.TemporaryDirectory() as folder:
        return play(given, made_by_the_proxy(Path(folder) / "certs") if given.tls else (PLAINTEXT,))


def play(given: argparse.Namespace, securities: Sequence[Security]) -> int:
    """What `main` answers, by what is `given` on the command line."""
    run = Run(
        Options(
            proxy_command=None if given.no_proxy else given.proxy_command,
            engine=given.engine,
            only=given.only,
            cases=given.cases.split(","),
            rounds=given.rounds,
            securities=securities,
        )
    )
    if not run.pairs:
        print(
            f"no pair is called {given.only}: CLIENT->SERVER of {', '.join(PEERS)}, or etcd; "
            f"clients are {', '.join(CLIENTS)}, too",
            file=sys.stderr,
        )
        return 1
    start = time.monotonic()
    run.play()
    for of_etcd in (False, True):
        rows = {pair: row for pair, row in run.cells.items() if (pair == "etcd") is of_etcd}
        if any(rows.values()):
            print_matrix(rows)
    print_notes(run.cells)
    for line in (*run.left_out, *run.troubles):
        print(line)
    print_summary(run.cells, run.troubles, time.monotonic() - start)
    if given.json is not None:
        pairs = {pair: {case: asdict(cell) for case, cell in row.items()} for pair, row in run.cells.items()}
        given.json.write_text(
            json.dumps({"pairs": pairs, "troubles": run.troubles}, indent=1, sort_keys=True)
        )
    return 0 if run.good else 1


def parse() -> argparse.Namespace:
    """The options from the command line."""
    known = [*CASES, *etcd_cases.CASES]
    parser = argparse.ArgumentParser(prog="python -m interop.matrix", description=__doc__)
    parser.add_argument("--engine", help="handed on to the proxy")
    parser.add_argument("--only", default="*", metavar="GLOB", help="pairs, for example 'grpclib->*' or etcd")
    parser.add_argument(
        "--cases", metavar="A,B", help="all of them unless given; with --tls, all but the longest two"
    )
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="run everything N times")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all outcomes there")
    parser.add_argument(
        "--proxy-command",
        default=PROXY,
        metavar="CMD",
        help="another proxy; {upstream}, {upstream_host}, {upstream_port} and {python} are filled in, and {port}, "
        "a free port, for a program that cannot say on which one it listens",
    )
    parser.add_argument("--tls", action="store_true", help="over TLS and over mutual TLS on both sides")
    parser.add_argument("--no-proxy", action="store_true", help="compare two runs without a proxy")
    given = parser.parse_args()
    if given.cases is None:
        given.cases = ",".join(case for case in known if not given.tls or case not in TAKES_LONG)
    if unknown := set(given.cases.split(",")) - set(known):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    return given


if __name__ == "__main__":
    sys.exit(main())
