"""Every client to every server, without the proxy and through it: an application must not see a difference."""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import json
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from interop.matrix import etcd_cases as etcd
from interop.shared.ports import free_port
from interop.shared.processes import Listener, Trouble
from interop.shared.progress import Progress

PEERS_FOLDER = Path(__file__).resolve().parents[1] / "peers"
BUILT = PEERS_FOLDER / "build"
PEERS = {
    "grpcio": [sys.executable, "-m", "interop.peers.grpcio.{role}"],
    "grpcio-aio": [sys.executable, "-m", "interop.peers.grpcio.aio_{role}"],
    "grpclib": [sys.executable, "-m", "interop.peers.grpclib.{role}"],
    "grpc-js": ["node", "{peers}/grpc_js/{role}.js"],
    "grpc-go": [str(BUILT / "grpc_go"), "{role}"],
    "grpc-java": ["java", "-cp", f"{BUILT}/grpc_java/classes:{BUILT}/grpc_java/lib/*", "Peer", "{role}"],
}
#: What `setup.sh` builds if the machine can: a file that is there then, and what it takes. The others are always there.
COMPILED = {
    "grpc-go": (BUILT / "grpc_go", "Go 1.24 or newer"),
    "grpc-java": (BUILT / "grpc_java" / "classes" / "Peer.class", "a JDK 17 or newer, and Maven"),
}
PROXY = "{python} -m rawgrpc_proxy serve --listen 127.0.0.1:0 --upstream {upstream}"
CASES: dict[str, list[dict[str, Any]]] = json.loads((PEERS_FOLDER / "cases.json").read_text())
CLIENT_SECONDS = 900.0
#: Peers that fail a case by themselves: (client, server, case) patterns and why. Equal outcomes are enough there.
KNOWN_FAILURES = [
    (
        "grpcio-aio",
        "*",
        "headers_without_message",
        "grpcio's asyncio client loses initial metadata that the status follows at once, so it is not looked at",
    ),
    (
        "*",
        "grpclib",
        "unimplemented_*",
        "grpclib's server leaves the content-type out of this answer, and some clients insist on one",
    ),
]

EQUAL, DIFFERS, FAILED, CANNOT = "=", "≠", "!", "-"


@dataclass
class Cell:
    """One case of one pair: what came of it, without the proxy and with it."""

    sign: str
    outcomes: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    known: str | None = None

    @property
    def good(self) -> bool:
        """Nothing to complain about."""
        return self.sign in (EQUAL, CANNOT) or (self.sign == FAILED and self.known is not None)


@dataclass
class Options:
    """The command line."""

    proxy_command: str | None
    engine: str | None
    only: str
    cases: list[str]
    rounds: int
    json: Path | None


def left_out(name: str) -> str | None:
    """Why a peer cannot take part on this machine; None if it can."""
    if name not in COMPILED:
        return None
    file, needs = COMPILED[name]
    if file.exists() and shutil.which(PEERS[name][0]):
        return None
    return f"{name} is left out: it has not been built here, which takes {needs}"


def peer_command(name: str, role: str) -> list[str]:
    """The command of a client or server."""
    return [part.format(peers=PEERS_FOLDER, role=role) for part in PEERS[name]]


@contextmanager
def proxy(options: Options, upstream: str) -> Iterator[Listener | None]:
    """A proxy in front of a server; None where the run compares the server with itself."""
    if options.proxy_command is None:
        yield None
        return
    host, port = upstream.rsplit(":", 1)
    chosen = free_port() if "{port}" in options.proxy_command else None
    command = options.proxy_command.format(
        python=shlex.quote(sys.executable),
        upstream=upstream,
        upstream_host=host,
        upstream_port=port,
        port=chosen,
    )
    if options.engine is not None:
        command += f" --engine {shlex.quote(options.engine)}"
    with Listener("proxy", shlex.split(command), chosen) as listener:
        yield listener


def run_client(name: str, target: str, cases: list[str]) -> dict[str, Any]:
    """The outcomes of a client program. If it dies of a case, the rest is played by another one."""
    outcomes: dict[str, Any] = {}
    for _ in cases:
        waiting = [case for case in cases if case not in outcomes]
        if not waiting:
            break
        run_id = secrets.token_hex(8)
        command = [*peer_command(name, "client"), "--target", target, "--cases", ",".join(waiting)]
        try:
            done = subprocess.run(
                [*command, "--run-id", run_id],
                capture_output=True,
                text=True,
                timeout=CLIENT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            outcomes.update((case, {"failure": "the client program hangs"}) for case in waiting)
            break
        for line in done.stdout.splitlines():
            outcome = json.loads(line.replace(target, "TARGET").replace(run_id, "RUN"))
            outcomes[outcome.pop("case")] = normalised(outcome)
        missing = [case for case in waiting if case not in outcomes]
        if len(missing) == len(waiting):
            tail = " / ".join(done.stderr.splitlines()[-3:])
            outcomes[missing[0]] = {"failure": f"the client ended with exit code {done.returncode}: {tail}"}
    return outcomes


_DEADLINE_CASE = "timeout_on_sleeping_server"
_GRPCLIB_CANCELLED = "Stream reset by remote party, error_code: 8"


def normalised(outcome: dict[str, Any]) -> dict[str, Any]:
    """The outcome without what cannot be equal: the end by a deadline is told by whoever noticed it first."""
    for call in outcome.get("calls", []):
        if outcome.get("case") == _DEADLINE_CASE and call["message"] == _GRPCLIB_CANCELLED:
            call["status"] = "DEADLINE_EXCEEDED"  # grpclib's word for a server that was the first
        if call["status"] == "DEADLINE_EXCEEDED":
            call["message"] = "ANY"
            call["trailing"].pop("content-type", None)  # grpc-js shows it where a server was the first
    return outcome


def unmet(expected: Any, seen: Any, where: str = "") -> Iterator[str]:
    """What of an expectation is not so: all of it has to be there, and lists have to be of the same length."""
    if isinstance(expected, dict) and isinstance(seen, dict):
        for key, value in expected.items():
            yield from unmet(value, seen.get(key), f"{where}.{key}")
    elif isinstance(expected, list) and isinstance(seen, list) and len(expected) == len(seen):
        for number, value in enumerate(expected):
            yield from unmet(value, seen[number], f"{where}[{number}]")
    elif expected != seen:
        yield f"{where.lstrip('.')} is {json.dumps(seen)} instead of {json.dumps(expected)}"


def problems(case: str, outcome: dict[str, Any], *, records: bool) -> list[str]:
    """What is wrong with an outcome in itself. Without `records` nothing is known of what the server saw."""
    if "failure" in outcome:
        return [outcome["failure"]]
    found: list[str] = []
    if "passed" in outcome:  # the client is a library's own interop client, which has looked by itself
        return found
    for number, (spec, call) in enumerate(zip(CASES[case], outcome["calls"], strict=True)):
        expected = {key: value for key, value in spec["expect"].items() if records or key != "server"}
        found += unmet(expected, call, f"call {number}")
        if "others" in call:
            found.append(f"call {number}: equal calls ended in {1 + len(call['others'])} ways")
    return found


def compare(direct: Any, proxied: Any, found: list[str], known: str | None = None) -> Cell:
    """The cell for two outcomes."""
    outcomes = [direct, proxied]
    seconds = [outcome.pop("seconds", 0.0) for outcome in outcomes]
    if direct != proxied:
        before, after = (
            json.dumps(outcome, indent=1, sort_keys=True, ensure_ascii=False).splitlines()
            for outcome in outcomes
        )
        diff = difflib.unified_diff(before, after, "without the proxy", "through the proxy", lineterm="", n=4)
        return Cell(DIFFERS, outcomes, list(diff), seconds)
    if found:
        return Cell(FAILED, outcomes, found, seconds, known)
    return Cell(EQUAL, outcomes, [], seconds)


class Run:
    """One run of the suite: its cells by pair and case, and what went wrong beside them."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.cells: dict[str, dict[str, Cell]] = {}
        self.troubles: list[str] = []
        self.left_out = [reason for name in PEERS if (reason := left_out(name))]
        peers = [name for name in PEERS if not left_out(name)]
        self._pairs = [
            (server, [client for client in peers if self._wanted(f"{client}->{server}")]) for server in peers
        ]
        self._with_etcd = self._wanted("etcd")
        pairs = sum(len(clients) for _, clients in self._pairs) + self._with_etcd
        self._progress = Progress(options.rounds * pairs)
        self._played = 0

    def play(self) -> None:
        """Play all rounds."""
        for _ in range(self.options.rounds):
            for server, clients in self._pairs:
                if clients:
                    self._guarded(partial(self._play_server, server, clients))
            if self._with_etcd:
                self._guarded(self._play_etcd)
        self._progress.end()

    @property
    def good(self) -> bool:
        """Everything was equal, and nothing failed."""
        cells = [cell for row in self.cells.values() for cell in row.values()]
        return bool(cells) and not self.troubles and all(cell.good for cell in cells)

    def _wanted(self, pair: str) -> bool:
        return fnmatch.fnmatch(pair, self.options.only)

    def _guarded(self, part: Callable[[], None]) -> None:
        try:
            part()
        except Trouble as error:
            self.troubles.append(str(error))

    def _play_server(self, name: str, clients: list[str]) -> None:
        command = peer_command(name, "server")
        with Listener(f"{name} server", command) as server, proxy(self.options, server.target) as front:
            for client in clients:
                pair = f"{client}->{name}"
                self._progress.show(self._played, pair)
                self._keep(pair, self._play_pair(client, name, server, front))
                server.check()
                self._check_proxy(front)

    def _play_pair(
        self, client: str, server_name: str, server: Listener, front: Listener | None
    ) -> dict[str, Cell]:
        cases = [case for case in self.options.cases if case in CASES]
        playable = [case for case in cases if case not in server.cannot]
        direct = run_client(client, server.target, playable)
        proxied = run_client(client, (front or server).target, playable)
        cells: dict[str, Cell] = {}
        for case in cases:
            if case in server.cannot:
                cells[case] = Cell(CANNOT, notes=[f"{server_name} server: {server.cannot[case]}"])
            elif "cannot" in direct[case]:
                cells[case] = Cell(CANNOT, notes=[f"{client} client: {direct[case]['cannot']}"])
            else:
                known = known_failure(client, server_name, case)
                found = problems(case, direct[case], records="records" not in server.cannot)
                cells[case] = compare(direct[case], proxied[case], found, known)
        return cells

    def _play_etcd(self) -> None:
        self._progress.show(self._played, "etcd")
        cases = [case for case in self.options.cases if case in etcd.CASES]
        ports = etcd.Ports()
        with etcd.server(ports) as target:
            direct = {case: etcd.play(case, target) for case in cases}
        with etcd.server(ports) as target, proxy(self.options, target) as front:
            proxied = {case: etcd.play(case, front.target if front else target) for case in cases}
            self._check_proxy(front)
        found = {case: etcd.problems(case, direct[case]) for case in cases}
        self._keep("etcd", {case: compare(direct[case], proxied[case], found[case]) for case in cases})

    def _check_proxy(self, front: Listener | None) -> None:
        if front is not None:
            front.check_tracebacks()

    def _keep(self, pair: str, cells: dict[str, Cell]) -> None:
        """Keep the cells of a round; of several rounds the first bad one counts."""
        row = self.cells.setdefault(pair, {})
        for case, cell in cells.items():
            if case not in row or row[case].good:
                row[case] = cell
        self._played += 1
        signs = " ".join(cell.sign for cell in cells.values())
        self._progress.show(self._played, f"{pair:24} {signs}")


def known_failure(client: str, server: str, case: str) -> str | None:
    """Why a case fails with these peers even without a proxy."""
    for client_pattern, server_pattern, case_pattern, reason in KNOWN_FAILURES:
        pairs = zip((client, server, case), (client_pattern, server_pattern, case_pattern), strict=True)
        if all(fnmatch.fnmatch(name, pattern) for name, pattern in pairs):
            return reason
    return None


def print_matrix(rows: dict[str, dict[str, Cell]]) -> None:
    """The cells, and what the columns are."""
    columns = list(dict.fromkeys(case for row in rows.values() for case in row))
    width = max(map(len, rows))
    print(" " * width + "".join(f"{number:3}" for number in range(1, len(columns) + 1)))
    for pair, row in rows.items():
        print(f"{pair:{width}}" + "".join(f"{row[case].sign if case in row else ' ':>3}" for case in columns))
    print()
    for start in range(0, len(columns), 3):
        entries = [f"{start + at + 1:2} {name:32}" for at, name in enumerate(columns[start : start + 3])]
        print("".join(entries).rstrip())
    print()


def print_notes(rows: dict[str, dict[str, Cell]]) -> None:
    """Why cells are not `=`."""
    legend: dict[str, list[str]] = {}
    for pair, row in rows.items():
        for case, cell in row.items():
            if cell.sign == CANNOT:
                legend.setdefault(cell.notes[0], []).append(case)
            elif cell.sign == FAILED:
                print(f"{pair} {case}: equal, but " + ("known: " + cell.known if cell.known else "failed"))
                print("".join(f"    {note}\n" for note in cell.notes), end="")
            elif cell.sign == DIFFERS:
                print(f"{pair} {case}: differs")
                print("".join(f"    {note}\n" for note in cell.notes), end="")
    for reason, cases in legend.items():
        print(f"- {reason}: {', '.join(dict.fromkeys(cases))}")


def parse(arguments: list[str]) -> Options:
    """The options from the command line."""
    known = [*CASES, *etcd.CASES]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", help="handed on to the proxy")
    parser.add_argument("--only", default="*", metavar="GLOB", help="pairs, for example 'grpclib->*' or etcd")
    parser.add_argument("--cases", default=",".join(known), metavar="A,B", help="all of them unless given")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="run everything N times")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all outcomes there")
    parser.add_argument(
        "--proxy-command",
        default=PROXY,
        metavar="CMD",
        help="another proxy; {upstream}, {upstream_host}, {upstream_port} and {python} are filled in, and {port}, "
        "a free port, for a program that cannot say on which one it listens",
    )
    parser.add_argument("--no-proxy", action="store_true", help="compare two runs without a proxy")
    given = parser.parse_args(arguments)
    cases = given.cases.split(",")
    if unknown := set(cases) - set(known):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    return Options(
        None if given.no_proxy else given.proxy_command,
        given.engine,
        given.only,
        cases,
        given.rounds,
        given.json,
    )


def main(arguments: list[str]) -> int:
    """Run the suite."""
    options = parse(arguments)
    run = Run(options)
    start = time.monotonic()
    run.play()
    for rows in (
        {pair: row for pair, row in run.cells.items() if pair != "etcd"},
        {pair: row for pair, row in run.cells.items() if pair == "etcd"},
    ):
        if any(rows.values()):
            print_matrix(rows)
    print_notes(run.cells)
    for line in (*run.left_out, *run.troubles):
        print(line)
    signs = Counter(cell.sign for row in run.cells.values() for cell in row.values())
    print(
        f"{signs[EQUAL]} equal, {signs[DIFFERS]} differ, {signs[FAILED]} fail alike, {signs[CANNOT]} impossible, "
        f"{len(run.troubles)} other troubles, {time.monotonic() - start:.0f} s"
    )
    if options.json is not None:
        pairs = {pair: {case: asdict(cell) for case, cell in row.items()} for pair, row in run.cells.items()}
        options.json.write_text(
            json.dumps({"pairs": pairs, "troubles": run.troubles}, indent=1, sort_keys=True)
        )
    return 0 if run.good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
