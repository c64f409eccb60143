"""`Metrics`: counts what a server and its pools do, and reports it when it is asked.

For each call it adds to a few integers, and nothing else: no library, no lock, no clock. All that can be seen by
looking (which calls are open, how the endpoints are, how much memory is used) is looked at for a report, and not kept.

What it does not do: add up several processes (`merge.py`), or write the text that Prometheus reads (`exposition.py`).
The invariants: no number of labels follows from what callers send; a counter of a report never goes down, but for those
of an endpoint that was gone while a thousand others came, which begin anew.
"""

import os
import resource
import sys
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import ConnectionFailed, ConnectionLimit, PeerAbuse, ProxyError, RpcError
from rawgrpc_proxy.http2.events import StreamReset
from rawgrpc_proxy.observe.causes import ORIGINS, is_known
from rawgrpc_proxy.observe.observer import PoolObserver, ServerObserver
from rawgrpc_proxy.observe.record import CallRecord, Repeats
from rawgrpc_proxy.observe.report import (
    EndpointReport,
    FailedCall,
    LimitReport,
    LookUpReport,
    MethodReport,
    OpenCallsReport,
    TrafficReport,
    WorkerReport,
    place_of,
)
from rawgrpc_proxy.observe.words import beginning
from rawgrpc_proxy.version import python, version

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Of the histograms of durations, in seconds: from what a proxy adds to what a caller puts up with."""
OTHER = "other"
"""The label of all methods that have none of their own."""
MOST_METHODS = 300
"""So many methods get a label because an upstream knows them; those of routes are not counted."""
_LONGEST_METHOD = 200
_MOST_ADDRESSES = 1000
"""So many are told apart; when there have been as many, those that are no endpoints any more are forgotten."""
_LONGEST_TEXT = 300
_MOST_OWN_WORDS = 50
"""So many pairs of an origin and a cause that are not ours, but a director's or a handler's, are told apart."""
_LAST_FAILED = 20
STUCK = 100
"""Open calls that a report has."""
_STATUSES = len(Status)
_STEPS_PER_SECOND = 1 << 20


def no_traffic() -> TrafficReport:
    """Of who has neither limits nor mirrors."""
    return {
        "refused_by_routes": {},
        "refused_by_clusters": {},
        "under_way": {},
        "concurrency": {},
        "mirrored": {},
        "mirror_statuses": {},
        "mirror_dropped": {},
    }


@attrs.frozen(kw_only=True)
class Sources:
    """Whom `Metrics` asks for a report, and for nothing else: what can be seen by looking need not be counted."""

    open_calls: Callable[[int], OpenCallsReport] | None = None
    """`Server.open_call_facts`."""
    endpoints: Callable[[], list[EndpointReport]] | None = None
    """`partial(cluster_facts, clusters)`, see `cluster/facts.py`."""
    tasks: Callable[[], int] = int
    """Of trio: `lambda: trio.lowlevel.current_statistics().tasks_living`."""
    dropped_lines: Callable[[], int] = int
    """Of the log: `lambda: log.dropped_lines`."""
    spans: Callable[[], tuple[int, int]] = lambda: (0, 0)
    """Of tracing, how many spans were exported and how many dropped."""
    tls_reload_failures: Callable[[], int] = int
    """The sum of `ContextOfFiles.failures`."""
    traffic: Callable[[], TrafficReport] = no_traffic
    """What limits have refused, and mirrors copied."""
    state: Callable[[], str] = lambda: "serving"
    """"serving" or "draining"."""


class _Counts:
    """The calls of one method that have ended."""

    __slots__ = (
        "buckets",
        "failed",
        "request_bytes",
        "request_messages",
        "response_bytes",
        "response_messages",
        "seconds",
    )

    def __init__(self) -> None:
        self.failed = [0] * _STATUSES
        """By status; those that are OK are the others."""
        self.buckets = [0] * (len(BOUNDS_S) + 1)
        self.seconds = 0.0
        self.request_messages = self.response_messages = 0
        self.request_bytes = self.response_bytes = 0


class Metrics(ServerObserver, PoolObserver):
    """Counts; give it to a `Server` and its `Pool`s as their observer, with others by `Observers(log, metrics)`.

    A caller can make up methods. So a method has a label of its own only if it is one of `methods` (those that routes
    name exactly, and those that are served here), or an upstream has answered it with something other than
    UNIMPLEMENTED, and is one of the first 300 of those; all others are counted together, as "other".

    `sources` may be set later: the server that it asks needs it first. For one thread.
    """

    def __init__(
        self, methods: Iterable[str] = (), *, worker: int = 1, sources: Sources | None = None
    ) -> None:
        self.worker = worker
        self.sources = sources or Sources()
        self._labels = set(methods)
        self._may_learn = MOST_METHODS
        self._here: dict[str, _Counts] = {}
        """By label: calls that have no upstream, as they were refused, or served here."""
        self._passed_on: dict[str, _Counts] = {}
        self._of_address: dict[str, list[int]] = {}
        """Calls by upstream and status."""
        self._ejections: dict[tuple[str, str], dict[str, int]] = {}
        """By cluster and address: how often an endpoint was ejected, by algorithm."""
        self._look_ups: dict[str, LookUpReport] = {}
        self._last_error: dict[str, str] = {}
        self._failed_calls: dict[tuple[str, str], int] = {}
        """Calls by origin and cause of their status."""
        self._own_words = 0
        self._last_failed: deque[FailedCall] = deque(maxlen=_LAST_FAILED)
        self._limits: dict[str, LimitReport] = {}
        self._reported: dict[tuple[str, str], int] = {}
        """What was reported of counters that are worked out from what is open: they must not go down."""
        self._started_at = time.time()
        self._opened = self._failed = self._refused_streams = self._turned_away = 0
        self._closed: dict[str, int] = {}
        self._tls_handshakes = self._tls_failed = 0
        self._tls_seconds = 0.0
        self._upstream_opened = self._upstream_streams = 0
        self._upstream_closed: dict[str, int] = {}
        self._dials = self._dials_failed = self._dials_succeeded = 0
        self._dial_seconds = 0.0
        self._waits = self._refused = 0
        self._retries = self._hedges = self._exhausted = self._throttled = 0

    # ------------------------------------------------------------------ calls

    def call_ended(self, record: CallRecord) -> None:
        self.calls_ended((record,))

    def calls_ended(self, records: Sequence[CallRecord]) -> None:
        here, passed_on, of_address = self._here, self._passed_on, self._of_address
        for record in records:  # each line runs for every call
            upstream, status, seconds = record.upstream, record.status, record.duration_s
            counts = (here if upstream is None else passed_on).get(record.method)
            if counts is None:
                counts = self._counts_of(record)
            counts.buckets[bisect_left(BOUNDS_S, seconds)] += 1
            counts.seconds += seconds
            counts.request_messages += record.request_messages
            counts.response_messages += record.response_messages
            counts.request_bytes += record.request_bytes
            counts.response_bytes += record.response_bytes
            if upstream is not None:
                statuses = of_address.get(upstream)
                if statuses is None:
                    statuses = of_address.setdefault(self._address(upstream), [0] * _STATUSES)
                statuses[status] += 1
                if record.repeats is not None:
                    self._count_repeats(record.repeats)
            if status:
                counts.failed[status] += 1
                self._note_failed(record)

    def _note_failed(self, record: CallRecord) -> None:
        """A call has not ended with OK: count whose status that is, and what it comes of."""
        origin, cause = record.origin, record.cause
        key = origin, cause
        if key not in self._failed_calls and not (origin in ORIGINS and (not cause or is_known(cause))):
            if self._own_words < _MOST_OWN_WORDS and len(origin) + len(cause) <= _LONGEST_TEXT:
                self._own_words += 1
            else:
                key = OTHER, OTHER
        self._failed_calls[key] = self._failed_calls.get(key, 0) + 1
        self._last_failed.append(
            {
                "at": time.time(),
                "method": beginning(record.method, _LONGEST_TEXT),
                "peer": record.peer,
                "upstream": record.upstream,
                "duration_s": record.duration_s,
                "status": record.status.name,
                "origin": beginning(origin, _LONGEST_TEXT),
                "cause": beginning(cause, _LONGEST_TEXT),
                "detail": beginning(record.detail, _LONGEST_TEXT),
            }
        )

    def _count_repeats(self, repeats: Repeats) -> None:
        self._retries += repeats.retries
        self._hedges += repeats.hedges
        self._exhausted += repeats.is_exhausted
        self._throttled += repeats.is_throttled

    def _counts_of(self, record: CallRecord) -> _Counts:
        """Where the call is counted, if not yet under its method."""
        method = record.method
        if method not in self._labels:
            if self._has_shown_to_exist(record):
                self._labels.add(method)
                self._may_learn -= 1
            else:
                method = OTHER
        table = self._here if record.upstream is None else self._passed_on
        return table.setdefault(method, _Counts())

    def _has_shown_to_exist(self, record: CallRecord) -> bool:
        method = record.method
        return (
            self._may_learn > 0
            and record.origin in {"upstream", "served"}
            and record.status is not Status.UNIMPLEMENTED
            and len(method) <= _LONGEST_METHOD
            and method.isascii()
            and method.isprintable()
        )

    def _address(self, address: str) -> str:
        """The address, unless a director has come to too many of them."""
        return address if len(self._of_address) < _MOST_ADDRESSES else OTHER

    # ------------------------------------------------------------- downstream

    def stream_refused(self, peer: str, reset: StreamReset) -> None:
        self._refused_streams += 1

    def connection_opened(self, peer: str, tls: str | None) -> None:
        self._opened += 1

    def connection_closed(self, peer: str, error: ConnectionFailed, age_s: float, calls: int) -> None:
        _count(self._closed, error.why)
        self._note_abuse(peer, error)

    def connection_failed(self, peer: str, error: ConnectionFailed) -> None:
        self._failed += 1

    def tls_handshake_done(self, peer: str, duration_s: float) -> None:
        self._tls_handshakes += 1
        self._tls_seconds += duration_s

    def tls_handshake_failed(self, peer: str, duration_s: float, error: ConnectionFailed) -> None:
        self._tls_failed += 1

    def accept_failed(self, error: OSError) -> None:
        if isinstance(error, ConnectionLimit):
            self._turned_away += 1

    def limit_reached(self, peer: str, limit: str, detail: str) -> None:
        """Count it, be it a caller's or an upstream's."""
        before = self._limits.get(limit)
        count = 1 if before is None else before["count"] + 1
        self._limits[limit] = {
            "count": count,
            "peer": beginning(peer, _LONGEST_TEXT),
            "detail": beginning(detail, _LONGEST_TEXT),
        }

    def _note_abuse(self, peer: str, error: ConnectionFailed) -> None:
        """A limit that ends the connection is told by its end."""
        if isinstance(error, PeerAbuse) and error.limit:
            self.limit_reached(peer, error.limit, error.message)

    # --------------------------------------------------------------- upstream

    def call_waits(self, address: str, others: int) -> None:
        self._waits += 1

    def call_refused(self, address: str, error: RpcError) -> None:
        self._refused += 1

    def dial_started(self, address: str) -> None:
        self._dials += 1

    def dial_succeeded(self, address: str, duration_s: float) -> None:
        self._dials_succeeded += 1
        self._dial_seconds += duration_s

    def dial_failed(self, address: str, duration_s: float, error: ProxyError) -> None:
        self._dials_failed += 1

    def upstream_opened(self, address: str, tls: str | None) -> None:
        self._upstream_opened += 1

    def upstream_closed(self, address: str, error: ConnectionFailed, age_s: float, calls: int) -> None:
        self._upstream_streams += calls
        _count(self._upstream_closed, error.why)
        self._note_abuse(address, error)

    def upstream_failed(self, address: str, error: ProxyError) -> None:
        if address in self._last_error or len(self._last_error) < _MOST_ADDRESSES:
            self._last_error[address] = beginning(str(error), _LONGEST_TEXT)

    def endpoint_ejected(self, cluster: str, address: str, algorithm: str, why: str, for_s: float) -> None:
        place = cluster, address
        if place in self._ejections or len(self._ejections) < _MOST_ADDRESSES:
            _count(self._ejections.setdefault(place, {}), algorithm)

    def looked_up(self, name: str, duration_s: float, addresses: int) -> None:
        look_ups = self._look_ups_of(name)
        look_ups["done"] += 1
        look_ups["failing"] = 0

    def look_up_failed(self, name: str, duration_s: float, problem: str) -> None:
        look_ups = self._look_ups_of(name)
        look_ups["failed"] += 1
        look_ups["failing"] = 1
        look_ups["problem"] = problem

    def _look_ups_of(self, name: str) -> LookUpReport:
        # As many as there are clusters.
        return self._look_ups.setdefault(name, {"done": 0, "failed": 0, "failing": 0, "problem": ""})

    # ----------------------------------------------------------------- report

    def report(self, opened: OpenCallsReport | None = None) -> WorkerReport:
        """What there is to say, now. It looks at each open call, some microseconds for each: ask now and then.

        `opened` is for who has looked at them already, in steps: `Server.open_call_steps(STUCK)`.
        """
        sources = self.sources
        exported, dropped = sources.spans()
        if opened is None:
            opened = {"open": 0, "methods": {}, "upstream_methods": {}, "calls": []}
            if sources.open_calls is not None:
                opened = sources.open_calls(STUCK)
        endpoints = [] if sources.endpoints is None else sources.endpoints()
        self._make_room_for_addresses(endpoints)
        for endpoint in endpoints:
            endpoint["statuses"] = _by_name(self._of_address.get(endpoint["address"], ()))
            ejections = self._ejections.get(place_of(endpoint), {})
            endpoint["ejections"] = dict(ejections)
            endpoint["last_error"] = endpoint["last_error"] or self._last_error.get(endpoint["address"])
        counts = [*self._here.values(), *self._passed_on.values()]
        ended = sum(sum(each.buckets) for each in counts)
        picks = self._upstream_streams + sum(endpoint["streams"] for endpoint in endpoints)
        return {
            "worker": self.worker,
            "pid": os.getpid(),
            "state": sources.state(),
            "started_at": self._started_at,
            "cpu_s": time.process_time(),
            "rss_bytes": _resident_bytes(),
            "open_files": _open_files(),
            "tasks": sources.tasks(),
            "version": version(),
            "python": python(),
            "calls": {
                "started": self._never_less("calls", "", ended + opened["open"]),
                "open": opened["open"],
                "request_bytes": sum(each.request_bytes for each in counts),
                "response_bytes": sum(each.response_bytes for each in counts),
            },
            "methods": self._methods("methods", (self._here, self._passed_on), opened["methods"]),
            "upstream_methods": self._methods("upstream", (self._passed_on,), opened["upstream_methods"]),
            "bounds_s": list(BOUNDS_S),
            "failed": self._failed_by_origin(),
            "downstream": {
                "open": self._opened - sum(self._closed.values()),
                "opened": self._opened,
                "closed": dict(self._closed),
                "failed": self._failed,
                "refused_streams": self._refused_streams,
                "turned_away": self._turned_away,
                "tls_handshakes": self._tls_handshakes,
                "tls_failed": self._tls_failed,
                "tls_seconds": _exact(self._tls_seconds),
            },
            "upstream": {
                "open": self._upstream_opened - sum(self._upstream_closed.values()),
                "opened": self._upstream_opened,
                "closed": dict(self._upstream_closed),
                "dials": self._dials,
                "dials_failed": self._dials_failed,
                "dials_succeeded": self._dials_succeeded,
                "dial_seconds": _exact(self._dial_seconds),
                "picks": self._never_less("picks", "", picks),
                "waits": self._waits,
                "refused": self._refused,
                "retries": self._retries,
                "hedges": self._hedges,
                "retries_exhausted": self._exhausted,
                "retries_throttled": self._throttled,
            },
            "endpoints": endpoints,
            "limits": {name: limit.copy() for name, limit in self._limits.items()},
            "log": {"dropped_lines": sources.dropped_lines()},
            "spans": {"exported": exported, "dropped": dropped},
            "tls_reload_failures": sources.tls_reload_failures(),
            "look_ups": {name: look_ups.copy() for name, look_ups in self._look_ups.items()},
            "traffic": sources.traffic(),
            "stuck": opened["calls"],
            "last_failed": [call.copy() for call in self._last_failed],
        }

    def _make_room_for_addresses(self, endpoints: Iterable[EndpointReport]) -> None:
        """Forget those that nothing is reported of: where addresses come and go, as pods do, new ones need the room."""
        here = {endpoint["address"] for endpoint in endpoints}
        of_address: tuple[dict[str, Any], ...] = (self._of_address, self._last_error)
        for table in of_address:
            if len(table) >= _MOST_ADDRESSES:
                for address in table.keys() - here:
                    del table[address]
        if len(self._ejections) >= _MOST_ADDRESSES:
            places = {place_of(endpoint) for endpoint in endpoints}
            for place in self._ejections.keys() - places:
                del self._ejections[place]

    def _failed_by_origin(self) -> dict[str, dict[str, int]]:
        failed: dict[str, dict[str, int]] = {}
        for (origin, cause), number in self._failed_calls.items():
            failed.setdefault(origin, {})[cause] = number
        return failed

    def _methods(
        self, what: str, tables: Iterable[Mapping[str, _Counts]], opened: Mapping[str, int]
    ) -> dict[str, MethodReport]:
        """By label. A call that is open counts as started if its method has a label; else when it has ended."""
        sums: dict[str, MethodReport] = {}
        for table in tables:
            for label, counts in table.items():
                if (sum_ := sums.get(label)) is None:
                    sum_ = sums[label] = _nothing()
                fine = sum(counts.buckets) - sum(counts.failed)
                for status, number in _by_name([fine, *counts.failed[1:]]).items():
                    _count(sum_["statuses"], status, number)
                sum_["buckets"] = [a + b for a, b in zip(sum_["buckets"], counts.buckets, strict=True)]
                sum_["seconds"] += _exact(counts.seconds)
                sum_["request_messages"] += counts.request_messages
                sum_["response_messages"] += counts.response_messages
        for method in opened:
            if method in self._labels and method not in sums:
                sums[method] = _nothing()
        for label, sum_ in sums.items():
            started = sum(sum_["buckets"]) + opened.get(label, 0)
            sum_["started"] = self._never_less(what, label, started)
        return sums

    def _never_less(self, what: str, label: str, number: int) -> int:
        """The number, or what was reported before, if that was more: while a call ends it may be seen twice."""
        number = max(number, self._reported.get((what, label), 0))
        self._reported[what, label] = number
        return number


def _nothing() -> MethodReport:
    return {
        "started": 0,
        "statuses": {},
        "buckets": [0] * (len(BOUNDS_S) + 1),
        "seconds": 0.0,
        "request_messages": 0,
        "response_messages": 0,
    }


def _by_name(statuses: Iterable[int]) -> dict[str, int]:
    return {Status(number).name: count for number, count in enumerate(statuses) if count}


def _exact(seconds: float) -> float:
    """So much less, by up to a microsecond, that sums of such numbers are exact.

    By rounding, a sum could be less in another order, when a worker has gone: a counter that goes down.
    """
    return int(seconds * _STEPS_PER_SECOND) / _STEPS_PER_SECOND


def _count(counts: dict[str, int], name: str, number: int = 1) -> None:
    counts[name] = counts.get(name, 0) + number


def _resident_bytes() -> int:
    """Memory that the process has; where the system does not tell, the most that it had."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return pages * resource.getpagesize()


def _open_files() -> int:
    """Open file descriptors; 0 where nobody can tell."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            # Linux says the number as the folder's size since 6.2; before, and elsewhere, it has to be counted.
            return os.stat(folder).st_size if _tells_number_of_files else len(os.listdir(folder))  # noqa: PTH116, PTH208
        except OSError:
            continue
    return 0


def _told_by_size() -> bool:
    try:
        return os.stat("/proc/self/fd").st_size > 0  # noqa: PTH116
    except OSError:
        return False


_tells_number_of_files = _told_by_size()
