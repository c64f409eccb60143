"""The reports of several processes as one, and what those have counted that are gone.

What it does not do: ask the processes. The invariant: a sum of counters never goes down when a worker dies and another
takes its place; a counter that did would look, to whoever takes differences, like all its calls at once.
"""

import heapq
from collections.abc import Collection, Iterable
from typing import Any, TypedDict, cast

from rawgrpc_proxy.observe.metrics import Metrics
from rawgrpc_proxy.observe.report import (
    EndpointReport,
    FailedCall,
    OpenCall,
    SummedReport,
    WorkerReport,
    place_of,
)

GONE = "gone"
"""The state of a report that is only what processes have counted that are no more."""
_STUCK = 100
_LAST_FAILED = 50
_MOST_GONE_ENDPOINTS = 1000
"""Of workers that are gone. Addresses come and go, as pods do, and each is a series in whoever scrapes."""
_BEST_FIRST = ("ready", "connecting", "backoff", "idle", GONE)
_WORST_FIRST = ("ejected", "unhealthy", "unreachable", "unchecked", "draining", "in_rotation")


class StuckCall(OpenCall):
    """An open call, and whose it is."""

    worker: int


class FailedCallOfWorker(FailedCall):
    """A call that has failed, and whose it was."""

    worker: int


class WorkerLine(TypedDict):
    """A worker in a line. `connections` are those of callers."""

    worker: int
    pid: int
    state: str
    cpu_s: float
    rss_bytes: int
    connections: int
    calls: int


class Merged(SummedReport):
    """All workers together. Endpoints are by cluster and address; `stuck` are at most a hundred of all.

    `last_failed` are at most fifty, the latest first.
    """

    workers: list[WorkerLine]
    bounds_s: list[float]
    endpoints: list[EndpointReport]
    stuck: list[StuckCall]
    last_failed: list[FailedCallOfWorker]


_ADDED = tuple(SummedReport.__annotations__)


class Reports:
    """The last report of each worker, and one of all that those before it have counted, for sums that never go down.

    `heard` is for each report that comes, `lost` for a worker that is gone. What a worker has counted after its last
    report is lost with it. Workers are known by their process: of two with the same number one may drain while the
    other serves.
    """

    def __init__(self, before: Iterable[WorkerReport] = ()) -> None:
        """`before` is what `all()` has answered in another process, which these reports are to go on from."""
        before = [_as_now(report) for report in before]
        self._of_worker = {report["pid"]: report for report in before if report["state"] != GONE}
        """By process id."""
        self._gone = next((report for report in before if report["state"] == GONE), None)

    def heard(self, report: WorkerReport) -> None:
        """Take a worker's report. One that was started at another time means that its process is another one."""
        report = _as_now(report)
        pid = report["pid"]
        before = self._of_worker.get(pid)
        if before is not None and before["started_at"] != report["started_at"]:
            self.lost(pid)
        self._of_worker[pid] = report

    def lost(self, pid: int) -> None:
        """Keep what this worker had counted, and nothing else of it."""
        report = self._of_worker.pop(pid, None)
        if report is None:
            return
        counted = _counted(report)
        if self._gone is not None:
            both = merged([self._gone, counted])
            for name in (*_ADDED, "endpoints"):
                counted[name] = both[name]  # type: ignore[literal-required]  # each is of both
            counted["endpoints"] = self._bounded(counted["endpoints"], report)
        self._gone = counted

    def _bounded(self, endpoints: list[EndpointReport], last: WorkerReport) -> list[EndpointReport]:
        """Not more than may be, unless more are in use: those of `last` and of the workers that there are, then others.

        Of the others those that were gone last.
        """
        if len(endpoints) <= _MOST_GONE_ENDPOINTS:
            return endpoints
        in_use = {
            place_of(each) for report in (last, *self._of_worker.values()) for each in report["endpoints"]
        }
        others = [each for each in endpoints if place_of(each) not in in_use]
        room = max(0, _MOST_GONE_ENDPOINTS - (len(endpoints) - len(others)))
        return [*others[len(others) - room :], *[each for each in endpoints if place_of(each) in in_use]]

    def only(self, pids: Collection[int]) -> None:
        """All workers but these are gone."""
        for pid in self._of_worker.keys() - set(pids):
            self.lost(pid)

    def all(self) -> list[WorkerReport]:
        """The reports of all workers, by their numbers, and behind them that of those that are gone, if any are."""
        reports = sorted(
            self._of_worker.values(), key=lambda report: (report["worker"], report["started_at"])
        )
        return reports if self._gone is None else [*reports, self._gone]


def merged(reports: Iterable[WorkerReport]) -> Merged:
    """The sum of the reports; of none, all is zero. What is told by name (a limit's last peer) is the last one's."""
    every = list(reports) or [_nothing()]
    live = [report for report in every if report["state"] != GONE]
    sums: dict[str, Any] = dict.fromkeys(_ADDED)
    for report in every:
        for name in _ADDED:
            if name in report:  # one of a version before this may not have it
                sums[name] = _plus(sums[name], report[name])  # type: ignore[literal-required]
    for name in [name for name in _ADDED if sums[name] is None]:
        sums[name] = _nothing()[name]  # type: ignore[literal-required]
    sums["bounds_s"] = every[0]["bounds_s"]
    sums["endpoints"] = _endpoints(every)
    sums["workers"] = [
        {
            "worker": report["worker"],
            "pid": report["pid"],
            "state": report["state"],
            "cpu_s": report["cpu_s"],
            "rss_bytes": report["rss_bytes"],
            "connections": report["downstream"]["open"],
            "calls": report["calls"]["open"],
        }
        for report in live
    ]
    stuck = [{"worker": report["worker"], **call} for report in live for call in report["stuck"]]
    sums["stuck"] = heapq.nlargest(_STUCK, stuck, key=lambda call: float(str(call["quiet_s"])))
    failed = [{"worker": report["worker"], **call} for report in live for call in report["last_failed"]]
    sums["last_failed"] = heapq.nlargest(_LAST_FAILED, failed, key=lambda call: float(str(call["at"])))
    return cast("Merged", sums)


def _as_now(report: WorkerReport) -> WorkerReport:
    """The report, which may be of an earlier version of the program, with what that did not tell."""
    endpoints = [{"standing": "in_rotation", "ejections": {}, **endpoint} for endpoint in report["endpoints"]]
    return cast("WorkerReport", {**report, "endpoints": endpoints})


def _plus(before: Any, more: Any) -> Any:
    """The sum, part by part; of texts the later one that says something."""
    if before is None or isinstance(more, str):
        return _copy(more) if more or before is None else before
    if isinstance(more, dict):
        return {
            key: _plus(before.get(key), more[key]) if key in more else before[key]
            for key in dict.fromkeys((*before, *more))
        }
    if isinstance(more, list):
        return [a + b for a, b in zip(before, more, strict=True)]
    return before + more


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(each) for key, each in value.items()}
    return list(value) if isinstance(value, list) else value


def _endpoints(reports: Iterable[WorkerReport]) -> list[EndpointReport]:
    by_place: dict[tuple[str, str], EndpointReport] = {}
    for report in reports:
        for endpoint in report["endpoints"]:
            key = place_of(endpoint)
            explain = endpoint["explain"]
            if report["worker"] > 0 and explain:
                explain = "\n".join(f"worker {report['worker']}: {line}" for line in explain.splitlines())
            before = by_place.get(key)
            if before is None:
                by_place[key] = endpoint | {"explain": explain}
                continue
            by_place[key] = {
                "cluster": endpoint["cluster"],
                "address": endpoint["address"],
                "connections": before["connections"] + endpoint["connections"],
                "calls": before["calls"] + endpoint["calls"],
                "waiting": before["waiting"] + endpoint["waiting"],
                "dialling": before["dialling"] + endpoint["dialling"],
                "streams": before["streams"] + endpoint["streams"],
                "state": min(before["state"], endpoint["state"], key=_BEST_FIRST.index),
                "standing": min(before["standing"], endpoint["standing"], key=_WORST_FIRST.index),
                "statuses": _plus(before["statuses"], endpoint["statuses"]),
                "ejections": _plus(before["ejections"], endpoint["ejections"]),
                "last_error": endpoint["last_error"] or before["last_error"],
                "explain": "\n".join(filter(None, (before["explain"], explain))),
            }
    return list(by_place.values())


def _counted(report: WorkerReport) -> WorkerReport:
    """Of a report what was counted, as if nothing were open."""
    counted = cast("WorkerReport", _copy(report))
    counted |= {
        "worker": 0,
        "pid": 0,
        "state": GONE,
        "cpu_s": 0.0,
        "rss_bytes": 0,
        "open_files": 0,
        "tasks": 0,
        "stuck": [],
        "last_failed": [],
    }
    counted["calls"]["open"] = counted["downstream"]["open"] = counted["upstream"]["open"] = 0
    for look_ups in counted.get("look_ups", {}).values():
        look_ups["failing"] = 0
    if "traffic" in counted:
        counted["traffic"] |= {"under_way": {}, "concurrency": {}}
    counted["endpoints"] = [
        {
            **endpoint,
            "connections": 0,
            "calls": 0,
            "waiting": 0,
            "dialling": 0,
            "streams": 0,
            "state": GONE,
            "standing": "in_rotation",
            "explain": "",
        }
        for endpoint in counted["endpoints"]
    ]
    return counted


def _nothing() -> WorkerReport:
    return _counted(Metrics().report())
