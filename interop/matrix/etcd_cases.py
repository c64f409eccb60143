"""What a user of etcd sees of put, get, watch, leases and transactions, with etcdctl."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from typing import Any

from interop.shared.etcd import COMMAND_SECONDS, Etcdctl

#: What differs from run to run: a lease's id and time left, the number of elections, a client's name in its log.
VARYING = [
    (re.compile(r"\b[0-9a-f]{16}\b"), "LEASE"),
    (re.compile(r"endpoint://client-[-0-9a-f]+/[.:0-9]+"), "ENDPOINT"),
    (re.compile(r'"lease":\d+'), '"lease":LEASE'),
    (re.compile(r'"raft_term":\d+'), '"raft_term":TERM'),
    (re.compile(r"remaining\(\d+s\)"), "remaining(TIME)"),
]


def put(etcdctl: Etcdctl) -> list[Any]:
    """Small, UTF-8 and large values."""
    return [
        etcdctl("put", "fruit/apple", "red", "-w", "json"),
        etcdctl("put", "fruit/äpfel", "grün ☺", "-w", "json"),
        etcdctl("put", "fruit/apple", "green", "--prev-kv", "-w", "json"),
        etcdctl("put", "large", "-w", "json", stdin="v" * 1_000_000),
        etcdctl("put", "too large", stdin="v" * 1_600_000),
    ]


def get(etcdctl: Etcdctl) -> list[Any]:
    """A key, a prefix, an old revision, a large value, nothing, and a revision that is yet to come."""
    return [
        etcdctl("get", "fruit/apple", "-w", "json"),
        etcdctl("get", "--prefix", "fruit/", "-w", "json"),
        etcdctl("get", "fruit/apple", "--rev=2", "-w", "json"),
        etcdctl("get", "large", "--print-value-only"),
        etcdctl("get", "nothing", "-w", "json"),
        etcdctl("get", "fruit/apple", "--rev=1000000"),
    ]


def watch(etcdctl: Etcdctl) -> list[Any]:
    """Two events from before the watch, then three while it runs."""
    first = [etcdctl("put", "watched/a", "1"), etcdctl("put", "watched/b", "2")]
    watching = etcdctl.start("watch", "--prefix", "watched/", "--rev=1")
    try:
        before = watching.take(6, COMMAND_SECONDS)
        second = [
            etcdctl("put", "watched/a", "3"),
            etcdctl("del", "watched/b"),
            etcdctl("put", "elsewhere", "4"),
            etcdctl("put", "watched/c", "5"),
        ]
        return [*first, before, *second, watching.take(15, COMMAND_SECONDS)]
    finally:
        watching.stop()


def lease_keep_alive(etcdctl: Etcdctl) -> list[Any]:
    """A lease that is granted, kept alive beyond its time, looked at and revoked; and one that never was."""
    granted = etcdctl("lease", "grant", "3")
    found = re.search(r"lease ([0-9a-f]+) granted", "\n".join(granted["stdout"]))
    if found is None:
        return [granted]
    lease = found[1]
    with_lease = etcdctl("put", "leased", "value", f"--lease={lease}")
    keeping = etcdctl.start("lease", "keep-alive", lease)
    try:
        kept = keeping.take(4, COMMAND_SECONDS)[:4]
    finally:
        keeping.stop()
    return [
        granted,
        with_lease,
        kept,
        etcdctl("get", "leased", "-w", "json"),
        etcdctl("lease", "timetolive", lease, "--keys"),
        etcdctl("lease", "revoke", lease),
        etcdctl("get", "leased", "-w", "json"),
        etcdctl("lease", "revoke", "1234567890abcdef"),
    ]


def txn(etcdctl: Etcdctl) -> list[Any]:
    """A transaction whose comparison holds, and the same again, when it does not."""
    steps = 'value("counter") = "0"\n\nput counter 1\nget counter\n\nget counter\nput failed yes\n\n'
    return [
        etcdctl("put", "counter", "0"),
        etcdctl("txn", "-w", "json", stdin=steps),
        etcdctl("txn", "-w", "json", stdin=steps),
        etcdctl("get", "failed"),
    ]


CASES: dict[str, Callable[[Etcdctl], list[Any]]] = {
    "put": put,
    "get": get,
    "watch": watch,
    "lease_keep_alive": lease_keep_alive,
    "txn": txn,
}
#: The exit codes of the commands of a case, in order; everything else is compared, not expected.
EXPECTED_EXITS: dict[str, list[int]] = {
    "put": [0, 0, 0, 0, 1],
    "get": [0, 0, 0, 0, 0, 1],
    "watch": [0, 0, 0, 0, 0, 0],
    "lease_keep_alive": [0, 0, 0, 0, 0, 0, 1],
    "txn": [0, 0, 0, 0],
}
#: How many lines the long-running commands print.
EXPECTED_LINES: dict[str, list[int]] = {"watch": [6, 15], "lease_keep_alive": [4]}


def play(case: str, target: str) -> dict[str, Any]:
    """The outcome of a case."""
    try:
        results: Any = CASES[case](Etcdctl(target))
    except subprocess.TimeoutExpired as error:
        return {"failure": f"{error.cmd} hangs"}
    return {"results": normalised(results)}


def normalised(value: Any) -> Any:
    """The outcome without what differs from run to run."""
    if isinstance(value, dict):
        return {key: normalised(member) for key, member in value.items()}
    if isinstance(value, list):
        return [normalised(member) for member in value]
    if isinstance(value, str):
        for pattern, replacement in VARYING:
            value = pattern.sub(replacement, value)
    return value


def problems(case: str, outcome: dict[str, Any]) -> list[str]:
    """What is wrong with an outcome in itself."""
    if "failure" in outcome:
        return [outcome["failure"]]
    exits = [result["exit"] for result in outcome["results"] if isinstance(result, dict)]
    lines = [len(result) for result in outcome["results"] if isinstance(result, list)]
    found = []
    if exits != EXPECTED_EXITS[case]:
        found.append(f"exit codes {exits} instead of {EXPECTED_EXITS[case]}")
    if lines != EXPECTED_LINES.get(case, []):
        found.append(f"{lines} lines instead of {EXPECTED_LINES.get(case, [])}")
    return found
