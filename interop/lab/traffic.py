"""What `rawgrpc-proxy lint` tells of the libraries that others write gRPC with: nothing that no document defends.

All clients of `interop/peers` call each server through the command, with nearly all cases of the interop suite; etcdctl
calls etcd.
"""

from __future__ import annotations

import fnmatch
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from interop.lab.programs import command, in_thread
from interop.lab.row import Row, Say
from interop.matrix import etcd_cases
from interop.matrix.programs import run_client
from interop.peers.cases import CASES
from interop.peers.catalogue import CLIENTS, PEERS, left_out, peer_command
from interop.shared.etcd import EtcdPorts, etcd_server
from interop.shared.processes import Listener, Trouble
from interop.shared.programs import find

PART = "the linter, with the traffic of others"
#: They move so much that they take longer than all others together, in frames like these.
LONG = ("concurrent_large_unary", "message_64mib")


@dataclass(frozen=True)
class Defended:
    """A finding that is right, and why."""

    server: str
    rule: str
    who: str
    method: str
    """A pattern."""
    why: str


DEFENDED = [
    Defended(
        "grpclib", "content-type-missing", "upstream", "/*Unimplemented*",
        "grpclib answers a method that it does not know without content-type, which Trailers-Only in gRPC's "
        "PROTOCOL-HTTP2 asks for; clients that insist on it fail such a call with UNKNOWN",
    ),
]  # fmt: skip


async def traffic(say: Say) -> list[Row]:
    """A row for each server, and one for each finding."""
    rows: list[Row] = []
    clients = [name for name in (*PEERS, *CLIENTS) if name not in PEERS or left_out(name) is None]
    for server in PEERS:
        if (reason := left_out(server)) is not None:
            rows.append(Row(PART, f"* -> {server}", None, reason))
            continue
        cannot: set[str] = set()
        calls = [(f"{client} -> {server}", partial(_play, client, server, cannot)) for client in clients]
        rows += await _of_server(server, _server(server, cannot), calls, say)
    try:
        find("etcd"), find("etcdctl")
    except Trouble as trouble:
        return [*rows, Row(PART, "etcdctl -> etcd", None, str(trouble))]
    calls = [(f"etcdctl {case}", partial(_play_etcd, case)) for case in etcd_cases.CASES]
    return [*rows, *await _of_server("etcd", etcd_server(EtcdPorts()), calls, say)]


async def _of_server(
    name: str,
    server: AbstractContextManager[str],
    calls: list[tuple[str, Callable[[str], None]]],
    say: Say,
) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "findings.json"
        try:
            async with (
                in_thread(server) as target,
                command("lint", f"--upstream={target}", f"--json={file}", "--fail-on=never") as address,
            ):
                for what, play in calls:
                    say(f"linted: {what}")
                    await trio.to_thread.run_sync(play, address)
        except Trouble as trouble:
            return [Row(PART, f"* -> {name}", False, str(trouble))]
        told = json.loads(file.read_text())
    rows = list(_findings(name, told["findings"]))
    wrong = sum(row.good is False for row in rows)
    words = f"{told['streams']} streams on {told['connections']} connections; "
    words += (
        f"{wrong} findings that nothing defends" if wrong else "no finding" + " but what follows" * bool(rows)
    )
    what = "etcdctl -> etcd" if name == "etcd" else f"{len(calls)} clients -> {name}"
    return [Row(PART, what, not wrong and told["streams"] > 0, words), *rows]


def _findings(server: str, findings: list[dict[str, object]]) -> Iterator[Row]:
    """Those of one rule and end together."""
    defended: dict[Defended, int] = {}
    for finding in findings:
        for each in DEFENDED:
            here = (each.server, each.rule, each.who) == (server, finding["rule"], finding["who"])
            if here and fnmatch.fnmatchcase(str(finding["method"]), each.method):
                defended[each] = defended.get(each, 0) + int(str(finding["count"]))
                break
        else:
            seen = finding["first"]["seen"]  # type: ignore[index]
            told = f"{finding['count']} times, {finding['method'] or 'the connection'}: {seen} [{finding['section']}]"
            yield Row(PART, f"  {finding['severity']} {finding['rule']} of the {finding['who']}", False, told)
    for each, count in defended.items():
        yield Row(PART, f"  {each.rule} of the {each.who}", True, f"{count} times, defended: {each.why}")


@contextmanager
def _server(name: str, cannot: set[str]) -> Iterator[str]:
    """Its target; `cannot` gets the cases that it does not have."""
    with Listener(f"{name} server", peer_command(name, "server")) as server:
        cannot.update(server.cannot)
        yield server.target


def _play(client: str, server: str, cannot: set[str], target: str) -> None:
    """What comes of the cases is looked at by `make interop`; here it matters that the calls were made."""
    cases = [case for case in CASES if case not in LONG and case not in cannot]
    outcomes = run_client(client, target, cases)
    if failed := [case for case, outcome in outcomes.items() if "hangs" in str(outcome.get("failure"))]:
        raise Trouble(f"{client} -> {server}: {', '.join(failed)} hang")


def _play_etcd(case: str, target: str) -> None:
    if "failure" in (outcome := etcd_cases.play(case, target)):
        raise Trouble(outcome["failure"])
