"""For each preset of faults: which calls are made, and what gRPC's documents say that comes of them.

The first seven are the cases of gRPC's "Negative HTTP/2 Interop Test Case Descriptions", with the calls and assertions
of both ends written there. Of the others the documents are those of status codes: "HTTP to gRPC Status Code Mapping",
the mapping of RST_STREAM in "gRPC over HTTP2", "Status codes and their use in gRPC".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from interop.lab.wire import Kept
from interop.shared.frames import ACK, DATA, GOAWAY, HEADERS, PING

REQUEST_BYTES, RESPONSE_BYTES = 271_828, 314_159
SMALL_BYTES = 1_000
PADDED = 0x8
Plan = list[dict[str, Any]]


@dataclass(frozen=True)
class Ended:
    """How a call has ended, as its caller tells."""

    status: str
    message: str
    size: int | None
    seconds: float


@dataclass(frozen=True)
class Seen:
    """What came of a plan: at the caller, and on the wire between it and the faults."""

    steps: list[list[Ended]]
    connections: list[Kept]
    deadline_s: float

    @property
    def calls(self) -> list[Ended]:
        """All of them, in order."""
        return list(chain.from_iterable(self.steps))


@dataclass(frozen=True)
class Case:
    """What is done with one preset."""

    says: str
    """What the documents say."""
    plan: Plan
    wrong: Callable[[Seen], Iterator[str]]
    """What of that is not so."""
    deadline_s: float = 10.0


def _step(calls: int, *, request: int = SMALL_BYTES, response: int = SMALL_BYTES) -> dict[str, Any]:
    return {"calls": calls, "request_size": request, "response_size": response}


def _pause(seconds: float) -> dict[str, Any]:
    return {"pause_s": seconds}


def _large(calls: int = 1) -> dict[str, Any]:
    return _step(calls, request=REQUEST_BYTES, response=RESPONSE_BYTES)


def _good(calls: Sequence[Ended], size: int = RESPONSE_BYTES) -> Iterator[str]:
    for number, call in enumerate(calls, 1):
        if (call.status, call.size) != ("OK", size):
            yield f"call {number} of {len(calls)} is {call.status} ({call.message[:100]}), with {call.size} bytes"


def _ended(calls: Sequence[Ended], *wanted: set[str]) -> Iterator[str]:
    """With one of these statuses each."""
    for number, (call, statuses) in enumerate(zip(calls, wanted, strict=True), 1):
        if call.status not in statuses:
            yield f"call {number} is {call.status} ({call.message[:100]}) instead of {' or '.join(sorted(statuses))}"


# --- gRPC's negative HTTP/2 cases


def _goaway(seen: Seen) -> Iterator[str]:
    yield from _good(seen.calls)
    streams = [_streams(kept) for kept in seen.connections]
    if all(call.status == "OK" for call in seen.calls) and [len(each) for each in streams if each] != [1, 1]:
        yield f"the calls are on connections like this: {streams}"
    if not any(kind == GOAWAY for client, (kind, *_) in seen.connections[0].frames() if not client):
        yield "there was no GOAWAY"


def _streams(kept: Kept) -> list[int]:
    return [stream_id for client, (kind, _, stream_id, _) in kept.frames() if client and kind == HEADERS]


def _reset(seen: Seen) -> Iterator[str]:
    yield from _ended(seen.calls, {"INTERNAL", *NO_STATUS})


def _ping(seen: Seen) -> Iterator[str]:
    yield from _good(seen.calls)
    pings: Counter[bytes] = Counter()
    total = 0
    for kept in seen.connections:
        for client, (kind, flags, _, payload) in kept.frames():
            if kind == PING and client is bool(flags & ACK):
                pings[payload] += -1 if client else 1
                total += not client
    if not total:
        yield "there was no PING"
    if outstanding := sum(abs(count) for count in pings.values()):
        yield f"{outstanding} of {total} PINGs have no answer"


def _at_a_time(seen: Seen, limit: int) -> Iterator[str]:
    most = max((kept.most_open() for kept in seen.connections), default=0)
    if most > limit:
        yield f"{most} streams were open at once on a connection"


def _max_streams(seen: Seen) -> Iterator[str]:
    yield from _good(seen.calls)
    yield from _at_a_time(seen, 1)


def _padding(seen: Seen) -> Iterator[str]:
    yield from _good(seen.calls)
    frames = [frame for kept in seen.connections for client, frame in kept.frames() if not client]
    padded = [bool(flags & PADDED) for kind, flags, _, payload in frames if kind == DATA and payload]
    if not padded or not all(padded):
        yield f"{padded.count(True)} of {len(padded)} frames have padding"


# --- outages


def _flaky(seen: Seen) -> Iterator[str]:
    yield from _ended(
        seen.calls, *[{"OK", "UNAVAILABLE", "INTERNAL", "CANCELLED", *NO_STATUS}] * len(seen.calls)
    )
    yield from _some(seen, {"OK": 0.3, "UNAVAILABLE": 0.05})


def _some(seen: Seen, least: dict[str, float]) -> Iterator[str]:
    count = Counter(call.status for call in seen.calls)
    for status, share in least.items():
        if count[status] < share * len(seen.calls):
            yield f"{count[status]} of {len(seen.calls)} are {status}"


def _slow(seen: Seen) -> Iterator[str]:
    yield from _good(seen.calls, _SLOW_BYTES)
    least = 2 * 0.08 + _SLOW_BYTES / 65_536
    for number, call in enumerate(seen.calls, 1):
        if call.seconds < least:
            yield f"call {number} took {call.seconds:.2f} s, less than {least:.2f}"


def _dead(seen: Seen) -> Iterator[str]:
    yield from _ended(seen.calls, {"OK"}, {"OK"}, {"DEADLINE_EXCEEDED"})
    if not seen.deadline_s - 0.1 < seen.calls[-1].seconds < seen.deadline_s + 1:
        yield f"the last one ended after {seen.calls[-1].seconds:.1f} s"


def _overloaded(seen: Seen) -> Iterator[str]:
    yield from _ended(seen.calls, *[{"OK", "RESOURCE_EXHAUSTED"}] * len(seen.calls))
    yield from _some(seen, {"OK": 0.4, "RESOURCE_EXHAUSTED": 0.05})
    yield from _at_a_time(seen, 4)


def _bad_gateway(seen: Seen) -> Iterator[str]:
    yield from _ended(seen.calls, {"UNAVAILABLE"})


def _deploy(seen: Seen) -> Iterator[str]:
    good, unavailable = {"OK"}, {"UNAVAILABLE"}
    cut = {"UNAVAILABLE", *NO_STATUS}
    yield from _ended(seen.calls, *[good] * 4, cut, unavailable, unavailable, *[good] * 3)


NO_STATUS = {"StreamTerminatedError", "ConnectionLost", "ConnectionResetError"}
"""Exceptions of grpclib: where a stream or a connection breaks it raises these, and has no status."""
_SLOW_BYTES = 16_000
_RESET_SAYS = "not successful; a stream that is reset with NO_ERROR is INTERNAL"

CASES: dict[str, Case] = {
    "goaway": Case(
        "both are successful, the second one on another connection", [_large(), _pause(1), _large()], _goaway
    ),
    "rst_after_header": Case(_RESET_SAYS, [_large()], _reset),
    "rst_during_data": Case(_RESET_SAYS, [_large()], _reset),
    "rst_after_data": Case(_RESET_SAYS, [_large()], _reset),
    "ping": Case("successful, and no PING is left without an answer", [_large()], _ping),
    "max_streams": Case(
        "one call, then ten at once: all are successful, and one stream is open at a time",
        [_large(), _large(10)],
        _max_streams,
        deadline_s=20,
    ),
    "data_frame_padding": Case("successful, with all of the data", [_large()], _padding),
    "flaky-backend": Case(
        "of 40 calls some are UNAVAILABLE, a few are reset; by the same seed the same ones for every client",
        [_step(1)] * 40,
        _flaky,
    ),
    "slow-network": Case("successful, later", [_step(1, response=_SLOW_BYTES)] * 2, _slow),
    "dead-link": Case(
        "two are good, the third is DEADLINE_EXCEEDED, at its deadline", [_step(1)] * 3, _dead, deadline_s=2
    ),
    "overloaded": Case(
        "some of 21 are RESOURCE_EXHAUSTED; four streams at a time", [_step(1), _step(20)], _overloaded
    ),
    "lb-502": Case("HTTP 502 is UNAVAILABLE", [_step(1)], _bad_gateway),
    "deploy": Case(
        "of ten, the fifth (connection lost), sixth and seventh are UNAVAILABLE; GOAWAY fails none",
        [_step(1)] * 10,
        _deploy,
    ),
}
