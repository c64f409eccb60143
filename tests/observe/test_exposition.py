"""What Prometheus reads: valid in both formats, with the names that dashboards know; and the documents about it."""

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from rawgrpc_proxy import CallRecord, Status
from rawgrpc_proxy.errors import ConnectionGone, RpcError
from rawgrpc_proxy.observe.exposition import CODES, exposition
from rawgrpc_proxy.observe.families import FAMILIES
from rawgrpc_proxy.observe.merge import Reports
from rawgrpc_proxy.observe.metrics import Metrics, Sources
from rawgrpc_proxy.observe.report import EndpointReport, TrafficReport, WorkerReport

DOCS = Path(__file__).parents[2] / "docs"
ADDRESS = "10.0.0.7:1"
STRANGE = "".join(map(chr, range(33, 127)))


def an_endpoint(state: str = "ready", cluster: str = "orders", address: str = ADDRESS) -> EndpointReport:
    return {
        "cluster": cluster,
        "address": address,
        "connections": 2,
        "calls": 3,
        "waiting": 4,
        "dialling": 1,
        "streams": 9,
        "state": state,
        "standing": "in_rotation",
        "ejections": {},
        "statuses": {},
        "last_error": None,
        "explain": "has room: 1 of 20 streams",
    }


def a_record(method: str = "/a.B/C", status: Status = Status.OK, duration_s: float = 0.002) -> CallRecord:
    return CallRecord(
        method=method,
        peer="127.0.0.1:5",
        upstream=ADDRESS,
        status=status,
        origin="upstream",
        duration_s=duration_s,
        request_bytes=10,
        response_bytes=20,
        request_messages=1,
        response_messages=2,
    )


def some_traffic() -> TrafficReport:
    return {
        "refused_by_routes": {"/p.S/*": {"rate_limit": 3, "concurrency": 2}},
        "refused_by_clusters": {"orders": {"max_requests": 1}},
        "under_way": {"/p.S/*": 5},
        "concurrency": {"/p.S/*": 20},
        "mirrored": {"/p.S/*": 9},
        "mirror_statuses": {"/p.S/*": {"same": 6, "different": 1, "given_up": 1}},
        "mirror_dropped": {"/p.S/*": {"bytes": 1}},
    }


def a_busy_worker(worker: int = 1) -> Metrics:
    """One that has something to say of everything."""
    metrics = Metrics(worker=worker, sources=Sources(endpoints=lambda: [an_endpoint()], traffic=some_traffic))
    metrics.call_ended(a_record())
    metrics.call_ended(a_record(status=Status.DEADLINE_EXCEEDED, duration_s=100.0))
    metrics.connection_opened("127.0.0.1:1", None)
    metrics.connection_closed("127.0.0.1:1", ConnectionGone("gone", why="closed_by_peer"), 1.0, 3)
    metrics.limit_reached("127.0.0.1:1", "abuse_budget", "refused")
    metrics.tls_handshake_done("127.0.0.1:1", 0.5)
    metrics.dial_started(ADDRESS)
    metrics.dial_succeeded(ADDRESS, 0.25)
    metrics.upstream_opened(ADDRESS, None)
    metrics.upstream_closed(ADDRESS, ConnectionGone("gone", why="goaway"), 1.0, 41)
    metrics.call_waits(ADDRESS, 0)
    metrics.call_refused(ADDRESS, RpcError(Status.UNAVAILABLE))
    metrics.endpoint_ejected("orders", ADDRESS, "success_rate", "so many calls have failed", 30.0)
    metrics.looked_up("orders.internal:1", 0.1, 2)
    metrics.look_up_failed("orders.internal:1", 0.1, "SERVFAIL")
    return metrics


def families(reports: list[WorkerReport], *, openmetrics: bool) -> dict[str, Metric]:
    text = exposition(reports, openmetrics=openmetrics).decode()
    parse = parse_openmetrics if openmetrics else parse_text
    parsed: list[Metric] = list(parse(text))
    by_name = {family.name: family for family in parsed}
    assert len(by_name) == len(parsed)
    return by_name


def value(reports: list[WorkerReport], sample: str, **labels: str) -> float:
    """Of this sample with exactly these labels; both formats have to say the same."""
    found = [
        [
            each.value
            for family in families(reports, openmetrics=openmetrics).values()
            for each in family.samples
            if each.name == sample and each.labels == labels
        ]
        for openmetrics in (False, True)
    ]
    assert found[0] == found[1]
    [only] = found[0]
    return only


both_formats = pytest.mark.parametrize("openmetrics", [False, True], ids=["text", "openmetrics"])


@both_formats
def test_what_prometheus_reads_has_all_metrics_with_their_kinds_and_texts(*, openmetrics: bool) -> None:
    parsed = families([a_busy_worker().report()], openmetrics=openmetrics)
    kinds = {"info": "info" if openmetrics else "gauge"}
    for family in FAMILIES:
        name = family.name.removesuffix("_total")
        name = name.removesuffix("_info") if openmetrics else name
        assert parsed[name].type == kinds.get(family.kind, family.kind)
        assert parsed[name].documentation == family.about
        for sample in parsed[name].samples:
            assert set(sample.labels) - {"le"} == set(family.labels), sample
    assert len(parsed) == len(FAMILIES)


@both_formats
def test_a_proxy_that_has_done_nothing_can_be_read(*, openmetrics: bool) -> None:
    assert families([], openmetrics=openmetrics)
    assert families([Metrics().report()], openmetrics=openmetrics)


def test_calls_have_the_names_and_labels_of_the_ecosystem() -> None:
    reports = [a_busy_worker().report()]
    method = {"grpc_service": "a.B", "grpc_method": "C"}
    assert value(reports, "grpc_server_started_total", **method) == 2
    assert value(reports, "grpc_server_handled_total", **method, grpc_code="DeadlineExceeded") == 1
    assert value(reports, "grpc_client_handled_total", **method, grpc_code="OK") == 1
    assert value(reports, "grpc_server_handling_seconds_bucket", **method, le="0.001") == 0
    assert value(reports, "grpc_server_handling_seconds_bucket", **method, le="0.0025") == 1
    assert value(reports, "grpc_server_handling_seconds_bucket", **method, le="+Inf") == 2
    assert value(reports, "grpc_server_handling_seconds_sum", **method) == pytest.approx(100.002)
    assert value(reports, "grpc_server_msg_received_total", **method) == 2
    assert value(reports, "grpc_client_msg_received_total", **method) == 4
    assert value(reports, "rawgrpc_proxy_upstream_dial_seconds_sum") == 0.25
    assert value(reports, "rawgrpc_proxy_upstream_streams_opened_total") == 50
    assert value(reports, "rawgrpc_proxy_downstream_connections_closed_total", reason="closed_by_peer") == 1


def test_statuses_are_spelled_as_grpc_go_spells_them() -> None:
    assert CODES["OK"] == "OK"
    assert CODES["CANCELLED"] == "Canceled"
    assert CODES["RESOURCE_EXHAUSTED"] == "ResourceExhausted"


def test_workers_are_added_up_and_told_apart_where_they_are_processes() -> None:
    reports = [a_busy_worker(1).report(), a_busy_worker(2).report()]
    reports[1]["state"] = "draining"
    assert value(reports, "grpc_server_started_total", grpc_service="a.B", grpc_method="C") == 4
    assert value(reports, "rawgrpc_proxy_workers", state="serving") == 1
    assert value(reports, "rawgrpc_proxy_workers", state="draining") == 1
    assert value(reports, "rawgrpc_proxy_endpoint_connections", cluster="orders", address=ADDRESS) == 4
    assert (
        value(reports, "rawgrpc_proxy_endpoint_workers", cluster="orders", address=ADDRESS, state="ready")
        == 2
    )
    assert value(reports, "rawgrpc_proxy_endpoint_handled_total", address=ADDRESS, grpc_code="OK") == 2
    for worker in "12":
        assert value(reports, "rawgrpc_proxy_worker_resident_memory_bytes", worker=worker) > 2**20


def test_look_ups_are_counted_and_it_is_told_how_many_workers_they_fail_for() -> None:
    reports = [a_busy_worker(1).report(), a_busy_worker(2).report()]
    for outcome in ("done", "failed"):
        labels = {"name": "orders.internal:1", "outcome": outcome}
        assert value(reports, "rawgrpc_proxy_look_ups_total", **labels) == 2
    assert value(reports, "rawgrpc_proxy_look_ups_failing", name="orders.internal:1") == 2


def test_who_gets_no_calls_and_how_often_it_was_ejected_is_told() -> None:
    reports = [a_busy_worker(1).report(), a_busy_worker(2).report()]
    for worker, report in enumerate(reports):
        [endpoint] = report["endpoints"]
        endpoint["standing"] = "ejected" if worker else "in_rotation"
        endpoint["ejections"] = {"success_rate": worker + 1}
    place = {"cluster": "orders", "address": ADDRESS}
    name = "rawgrpc_proxy_endpoint_ejections_total"
    assert value(reports, name, **place, algorithm="success_rate") == 3
    for standing in ("ejected", "in_rotation"):
        assert value(reports, "rawgrpc_proxy_endpoint_standing", **place, standing=standing) == 1


def test_calls_to_an_address_that_two_clusters_have_in_common_are_counted_once() -> None:
    metrics = a_busy_worker()
    metrics.sources = Sources(endpoints=lambda: [an_endpoint(), an_endpoint(cluster="others")])
    reports = [metrics.report()]
    assert value(reports, "rawgrpc_proxy_endpoint_handled_total", address=ADDRESS, grpc_code="OK") == 1


def test_what_a_worker_that_has_died_had_counted_stays_and_nothing_else_of_it() -> None:
    reports = Reports()
    for worker in (1, 2):
        reports.heard({**a_busy_worker(worker).report(), "pid": worker})
    before = families(reports.all(), openmetrics=False)
    reports.lost(1)
    after = families(reports.all(), openmetrics=False)
    for name, family in before.items():
        if family.type in {"counter", "histogram", "summary"} and "_worker_" not in name:
            assert after[name].samples == family.samples, name
    place = {"cluster": "orders", "address": ADDRESS}
    assert value(reports.all(), "rawgrpc_proxy_endpoint_connections", **place) == 2
    assert value(reports.all(), "rawgrpc_proxy_endpoint_workers", **place, state="ready") == 1
    assert value(reports.all(), "rawgrpc_proxy_workers", state="serving") == 1


@settings(max_examples=30)
@given(
    text=st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1, max_size=40),
    openmetrics=st.booleans(),
)
def test_no_method_and_no_address_can_break_the_text(text: str, openmetrics: bool) -> None:
    metrics = Metrics([f"/{text}/M"])
    metrics.call_ended(a_record(f"/{text}/M"))
    metrics.sources = Sources(endpoints=lambda: [an_endpoint(address=text, cluster=STRANGE)])
    parsed = families([metrics.report()], openmetrics=openmetrics)
    [started] = parsed["grpc_server_started"].samples
    assert started.labels == {"grpc_service": text, "grpc_method": "M"}
    [connections] = parsed["rawgrpc_proxy_endpoint_connections"].samples
    assert connections.labels == {"cluster": STRANGE, "address": text}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_wrong() -> None:
    text = exposition([a_busy_worker().report()])
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)  # noqa: S607
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_understands_the_alerts() -> None:
    command = ["promtool", "check", "rules", str(DOCS / "alerts.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_limits_refuse_and_mirrors_copy_is_told_by_route_and_stays_when_a_worker_is_gone() -> None:
    reports = Reports()
    reports.heard({**a_busy_worker(1).report(), "pid": 1})
    reports.heard({**a_busy_worker(2).report(), "pid": 2})
    reports.lost(2)
    told, route = reports.all(), "/p.S/*"
    assert value(told, "rawgrpc_proxy_route_calls_refused_total", route=route, limit="rate_limit") == 6
    assert (
        value(told, "rawgrpc_proxy_cluster_calls_refused_total", cluster="orders", limit="max_requests") == 2
    )
    assert value(told, "rawgrpc_proxy_mirrored_calls_total", route=route) == 18
    assert value(told, "rawgrpc_proxy_mirror_statuses_total", route=route, outcome="different") == 2
    assert value(told, "rawgrpc_proxy_mirror_dropped_total", route=route, reason="bytes") == 2
    assert value(told, "rawgrpc_proxy_route_calls_under_way", route=route) == 5
    assert value(told, "rawgrpc_proxy_route_concurrency_limit", route=route) == 20


# --- documents -------------------------------------------------------------------------------------------------------


def samples() -> set[str]:
    parsed = families([a_busy_worker().report()], openmetrics=False)
    return {sample.name for family in parsed.values() for sample in family.samples} | set(parsed)


def named_in(text: str) -> set[str]:
    return set(re.findall(r"\b(?:grpc_(?:server|client)|rawgrpc_proxy)_\w+", text))


def test_the_page_is_made_from_the_source() -> None:
    made: dict[str, Any] = runpy.run_path(str(DOCS / "make_metrics.py"))
    assert (DOCS / "metrics.md").read_text(encoding="utf-8") == made["page"](), (
        "run python docs/make_metrics.py"
    )


@pytest.mark.parametrize("name", ["grafana-dashboard.json", "alerts.yml"])
def test_every_metric_that_a_dashboard_or_an_alert_names_exists(name: str) -> None:
    named = named_in((DOCS / name).read_text(encoding="utf-8"))
    assert len(named) > 10
    assert named <= samples()


def test_the_dashboard_shows_every_metric_that_is_no_detail_of_another() -> None:
    shown = named_in((DOCS / "grafana-dashboard.json").read_text(encoding="utf-8"))
    left_out = {
        family.name
        for family in FAMILIES
        if not any(shown_name.startswith(family.name) for shown_name in shown)
    }
    assert left_out <= {
        "grpc_client_started_total",
        "grpc_client_handling_seconds",
        "grpc_client_msg_sent_total",
        "grpc_client_msg_received_total",
        "rawgrpc_proxy_open_calls",
        "rawgrpc_proxy_build_info",
    }


def test_the_panels_of_the_dashboard_have_a_source_and_do_not_overlap() -> None:
    panels = json.loads((DOCS / "grafana-dashboard.json").read_text(encoding="utf-8"))["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        places = {
            (x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
        }
        assert not taken & places, panel["title"]
        taken |= places
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
    assert max(x for x, _ in taken) == 23


def test_no_two_panels_of_the_dashboard_have_the_same_id() -> None:
    """A link to one panel names it by that."""
    panels = json.loads((DOCS / "grafana-dashboard.json").read_text(encoding="utf-8"))["panels"]
    numbers = [panel["id"] for panel in panels]
    assert sorted(numbers) == sorted(set(numbers))


def test_every_alert_says_what_is_wrong() -> None:
    rules = (DOCS / "alerts.yml").read_text(encoding="utf-8").split("- alert: ")[1:]
    assert len(rules) > 5
    for rule in rules:
        assert re.search(r"^        expr: ", rule, re.MULTILINE), rule
        assert re.search(r"^          summary: ", rule, re.MULTILINE), rule
        assert re.search(r"labels: \{severity: (page|warn|info)\}", rule), rule


def test_two_processes_of_one_number_are_one_line() -> None:
    old, new = a_busy_worker().report(), a_busy_worker().report()
    new["pid"], new["started_at"], new["cpu_s"] = old["pid"] + 1, old["started_at"] + 5, old["cpu_s"] + 7
    reports = [old, new]
    lines = [line.rpartition(" ")[0] for line in exposition(reports).decode().splitlines() if line[0] != "#"]
    assert len(lines) == len(set(lines))
    assert value(reports, "rawgrpc_proxy_worker_resident_memory_bytes", worker="1") == 2 * old["rss_bytes"]
    assert value(reports, "rawgrpc_proxy_worker_start_time_seconds", worker="1") == new["started_at"]
    assert value(reports, "rawgrpc_proxy_worker_cpu_seconds_total", worker="1") == new["cpu_s"]
