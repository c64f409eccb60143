"""What a client tells of a case: without what cannot be equal, and held against what cases.json expects.

Whether two outcomes are equal is not judged here: see cell.py. Outcomes of etcd are in etcd_cases.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from interop.peers.cases import CASES

_DEADLINE_CASE = "timeout_on_sleeping_server"
# How a server's RST_STREAM(CANCEL) reads where the client's own clock was not the first: grpclib, grpcio, grpc-js.
_RESET_BY_SERVER = re.compile(r"error[_ ]code:? 8\b|^Call cancelled$")


def normalised(case: str, outcome: dict[str, Any]) -> dict[str, Any]:
    """The outcome without what cannot be equal: the end by a deadline is told by whoever noticed it first."""
    for call in outcome.get("calls", []):
        if case == _DEADLINE_CASE and _RESET_BY_SERVER.search(call["message"] or ""):
            call["status"] = "DEADLINE_EXCEEDED"
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
