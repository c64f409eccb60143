"""What Prometheus reads, made of the reports of all workers: as its text format, or as OpenMetrics.

The names are those of the ecosystem (go-grpc-middleware's) for calls, with `rawgrpc_proxy_` before what only a proxy
has; `families.py` has them all, and `docs/metrics.md` is made of it. prometheus-client
serves and counts nothing here: it knows the formats.

What it does not do: count, or answer HTTP.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import exposition as text_format
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.openmetrics import exposition as openmetrics_format
from prometheus_client.registry import Collector

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.observe.families import FAMILIES, PROXY, Family
from rawgrpc_proxy.observe.merge import GONE, merged
from rawgrpc_proxy.observe.metrics import OTHER
from rawgrpc_proxy.observe.report import MethodReport, TrafficReport, WorkerReport

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CONTENT_TYPE_OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def exposition(reports: Iterable[WorkerReport], *, openmetrics: bool = False) -> bytes:
    """All metrics of these workers, in the text format of Prometheus or as OpenMetrics: UTF-8, see `CONTENT_TYPE`.

    The reports are those of `Reports.all()`, so that no counter goes down when a worker is replaced.
    """
    collected = _Collected(list(reports))
    if openmetrics:
        answer: bytes = openmetrics_format.generate_latest(collected)  # type: ignore[no-untyped-call]
        return answer
    return text_format.generate_latest(collected)


class _Collected(Collector):
    """What the formats are made of."""

    def __init__(self, reports: Sequence[WorkerReport]) -> None:
        self._families = {family.name: _empty(family) for family in FAMILIES}
        self._fill(reports)

    def collect(self) -> Iterator[Metric]:
        yield from self._families.values()

    def _add(self, name: str, value: float, *labels: str) -> None:
        family = self._families.get(name) or self._families[PROXY + name]
        assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
        family.add_metric(labels, value)

    def _summary(self, name: str, count: int, seconds: float) -> None:
        family = self._families[PROXY + name]
        assert isinstance(family, SummaryMetricFamily)
        family.add_metric((), count, seconds)

    def _fill(self, reports: Sequence[WorkerReport]) -> None:
        sums = merged(reports)
        self._methods("server", sums["methods"], sums["bounds_s"], ("received", "sent"))
        self._methods("client", sums["upstream_methods"], sums["bounds_s"], ("sent", "received"))
        self._add("open_calls", sums["calls"]["open"])
        quiet = max((call["quiet_s"] for call in sums["stuck"]), default=0.0)
        self._add("longest_quiet_call_seconds", quiet)
        self._add("request_bytes_total", sums["calls"]["request_bytes"])
        self._add("response_bytes_total", sums["calls"]["response_bytes"])
        for origin, causes in sums["failed"].items():
            for cause, count in causes.items():
                self._add("calls_failed_total", count, origin, cause)
        downstream, upstream = sums["downstream"], sums["upstream"]
        self._add("downstream_connections", downstream["open"])
        self._add("downstream_connections_opened_total", downstream["opened"])
        for reason, count in downstream["closed"].items():
            self._add("downstream_connections_closed_total", count, reason)
        self._add("downstream_connections_failed_total", downstream["failed"])
        self._add("downstream_connections_turned_away_total", downstream["turned_away"])
        self._add("downstream_streams_refused_total", downstream["refused_streams"])
        self._summary(
            "downstream_tls_handshake_seconds", downstream["tls_handshakes"], downstream["tls_seconds"]
        )
        self._add("downstream_tls_handshakes_failed_total", downstream["tls_failed"])
        self._add("upstream_connections", upstream["open"])
        self._add("upstream_connections_opened_total", upstream["opened"])
        for reason, count in upstream["closed"].items():
            self._add("upstream_connections_closed_total", count, reason)
        self._add("upstream_dials_started_total", upstream["dials"])
        self._summary("upstream_dial_seconds", upstream["dials_succeeded"], upstream["dial_seconds"])
        self._add("upstream_dials_failed_total", upstream["dials_failed"])
        self._add("upstream_streams_opened_total", upstream["picks"])
        self._add("upstream_calls_waited_total", upstream["waits"])
        self._add("upstream_calls_refused_total", upstream["refused"])
        self._add("upstream_retries_total", upstream["retries"])
        self._add("upstream_hedges_total", upstream["hedges"])
        self._add("upstream_retries_exhausted_total", upstream["retries_exhausted"])
        self._add("upstream_retries_throttled_total", upstream["retries_throttled"])
        self._endpoints(reports)
        for limit, told in sums["limits"].items():
            self._add("limits_reached_total", told["count"], limit)
        self._traffic(sums["traffic"])
        self._add("log_lines_dropped_total", sums["log"]["dropped_lines"])
        self._add("trace_spans_exported_total", sums["spans"]["exported"])
        self._add("trace_spans_dropped_total", sums["spans"]["dropped"])
        self._add("tls_reload_failures_total", sums["tls_reload_failures"])
        for name, look_ups in sums["look_ups"].items():
            self._add("look_ups_total", look_ups["done"], name, "done")
            self._add("look_ups_total", look_ups["failed"], name, "failed")
            self._add("look_ups_failing", look_ups["failing"], name)
        self._workers([report for report in reports if report["state"] != GONE])

    def _methods(
        self, side: str, methods: dict[str, MethodReport], bounds_s: list[float], messages: tuple[str, str]
    ) -> None:
        durations = self._families[f"grpc_{side}_handling_seconds"]
        assert isinstance(durations, HistogramMetricFamily)
        bounds = [*(f"{bound!r}" for bound in bounds_s), "+Inf"]
        for method, report in methods.items():
            labels = _service_and_method(method)
            self._add(f"grpc_{side}_started_total", report["started"], *labels)
            for status, count in report["statuses"].items():
                self._add(f"grpc_{side}_handled_total", count, *labels, CODES[status])
            cumulative = accumulate(report["buckets"])
            durations.add_metric(labels, list(zip(bounds, cumulative, strict=True)), report["seconds"])
            requests, responses = messages
            self._add(f"grpc_{side}_msg_{requests}_total", report["request_messages"], *labels)
            self._add(f"grpc_{side}_msg_{responses}_total", report["response_messages"], *labels)

    def _endpoints(self, reports: Sequence[WorkerReport]) -> None:
        statuses: dict[str, dict[str, int]] = {}
        for endpoint in merged(reports)["endpoints"]:
            place = endpoint["cluster"], endpoint["address"]
            self._add("endpoint_connections", endpoint["connections"], *place)
            self._add("endpoint_open_calls", endpoint["calls"], *place)
            self._add("endpoint_waiting_calls", endpoint["waiting"], *place)
            self._add("endpoint_dialling", endpoint["dialling"], *place)
            for algorithm, count in endpoint["ejections"].items():
                self._add("endpoint_ejections_total", count, *place, algorithm)
            # Of an address that two clusters have in common there is one count.
            statuses[endpoint["address"]] = endpoint["statuses"]
        for address, counts in statuses.items():
            for status, count in counts.items():
                self._add("endpoint_handled_total", count, address, CODES[status])
        live = [each for report in reports for each in report["endpoints"] if each["state"] != GONE]
        states = Counter((each["cluster"], each["address"], each["state"]) for each in live)
        for labels, workers in states.items():
            self._add("endpoint_workers", workers, *labels)
        standings = Counter((each["cluster"], each["address"], str(each["standing"])) for each in live)
        for labels, workers in standings.items():
            self._add("endpoint_standing", workers, *labels)

    def _traffic(self, traffic: TrafficReport) -> None:
        for name, parts in (
            ("route_calls_refused_total", traffic["refused_by_routes"]),
            ("cluster_calls_refused_total", traffic["refused_by_clusters"]),
            ("mirror_statuses_total", traffic["mirror_statuses"]),
            ("mirror_dropped_total", traffic["mirror_dropped"]),
        ):
            for label, counts in parts.items():
                for part, count in counts.items():
                    self._add(name, count, label, part)
        for name, numbers in (
            ("route_calls_under_way", traffic["under_way"]),
            ("route_concurrency_limit", traffic["concurrency"]),
            ("mirrored_calls_total", traffic["mirrored"]),
        ):
            for label, number in numbers.items():
                self._add(name, number, label)

    def _workers(self, reports: Sequence[WorkerReport]) -> None:
        states = [report["state"] for report in reports]
        for state in dict.fromkeys(("serving", "draining", *states)):
            self._add("workers", states.count(state), state)
        for number in dict.fromkeys(report["worker"] for report in reports):
            # After a reload there are two of a number, until the older one has drained.
            those = [report for report in reports if report["worker"] == number]
            worker, newest = str(number), max(those, key=lambda report: report["started_at"])
            self._add("worker_cpu_seconds_total", newest["cpu_s"], worker)
            self._add("worker_resident_memory_bytes", sum(report["rss_bytes"] for report in those), worker)
            self._add("worker_open_files", sum(report["open_files"] for report in those), worker)
            # A report from before an upgrade may come from a version that told nothing of them.
            self._add("worker_tasks", sum(report.get("tasks", 0) for report in those), worker)
            self._add("worker_start_time_seconds", newest["started_at"], worker)
            self._add("worker_open_calls", sum(report["calls"]["open"] for report in those), worker)
            self._add("worker_connections", sum(report["downstream"]["open"] for report in those), worker)
        info = self._families[PROXY + "build_info"]
        assert isinstance(info, InfoMetricFamily)
        for version, python in dict.fromkeys((report["version"], report["python"]) for report in reports):
            info.add_metric((), {"version": version, "python": python})


def _empty(family: Family) -> Metric:
    labels = family.labels
    match family.kind:
        case "counter":
            return CounterMetricFamily(family.name, family.about, labels=labels)
        case "gauge":
            return GaugeMetricFamily(family.name, family.about, labels=labels)
        case "histogram":
            return HistogramMetricFamily(family.name, family.about, labels=labels)
        case "summary":
            return SummaryMetricFamily(family.name, family.about, labels=labels)
        case _:
            return InfoMetricFamily(family.name.removesuffix("_info"), family.about, labels=())


def _service_and_method(method: str) -> tuple[str, str]:
    """`/package.Service/Method` as the ecosystem has it, in two; a prefix goes with the service."""
    if method == OTHER:
        return OTHER, OTHER
    service, _, name = method.removeprefix("/").rpartition("/")
    return service, name


def _code(status: Status) -> str:
    """As grpc-go spells it, whose metrics these are: `DeadlineExceeded`."""
    if status is Status.OK:
        return "OK"
    return "Canceled" if status is Status.CANCELLED else status.name.title().replace("_", "")


CODES = {status.name: _code(status) for status in Status}
"""The label `grpc_code` of each status."""
