"""What is counted, under which labels, and what a report says."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy import CallRecord, Status
from rawgrpc_proxy.errors import (
    ConnectionGone,
    ConnectionLimit,
    PeerAbuse,
    ProxyStopping,
    RpcError,
    UpstreamUnavailable,
)
from rawgrpc_proxy.http2.events import StreamReset
from rawgrpc_proxy.observe.metrics import BOUNDS_S, MOST_METHODS, OTHER, Metrics, Sources
from rawgrpc_proxy.observe.record import Repeats
from rawgrpc_proxy.observe.report import EndpointReport, OpenCallsReport


def a_record(
    method: str = "/a.B/C",
    status: Status = Status.OK,
    *,
    upstream: str | None = "10.0.0.7:1",
    origin: str = "upstream",
    cause: str = "",
    duration_s: float = 0.002,
    repeats: Repeats | None = None,
) -> CallRecord:
    return CallRecord(
        method=method,
        peer="127.0.0.1:5",
        upstream=upstream,
        status=status,
        origin=origin,
        cause=cause,
        duration_s=duration_s,
        repeats=repeats,
        request_bytes=10,
        response_bytes=20,
        request_messages=1,
        response_messages=2,
    )


def opened(**methods: int) -> OpenCallsReport:
    by_method = {f"/a.B/{name}": count for name, count in methods.items()}
    return {
        "open": sum(methods.values()),
        "methods": by_method,
        "upstream_methods": by_method,
        "calls": [],
    }


def an_endpoint(address: str = "10.0.0.7:1", streams: int = 0) -> EndpointReport:
    return {
        "cluster": "orders",
        "address": address,
        "connections": 1,
        "calls": 0,
        "waiting": 0,
        "dialling": 0,
        "streams": streams,
        "state": "ready",
        "standing": "in_rotation",
        "ejections": {},
        "statuses": {},
        "last_error": None,
        "explain": "",
    }


def test_calls_are_counted_by_method_and_status_with_messages_bytes_and_time() -> None:
    metrics = Metrics()
    for status in (Status.OK, Status.OK, Status.NOT_FOUND):
        metrics.call_ended(a_record(status=status))
    report = metrics.report()
    method = report["methods"]["/a.B/C"]
    assert method["statuses"] == {"OK": 2, "NOT_FOUND": 1}
    assert (method["started"], method["request_messages"], method["response_messages"]) == (3, 3, 6)
    assert method["seconds"] == pytest.approx(0.006, abs=1e-5)
    assert report["upstream_methods"] == report["methods"]
    assert report["calls"] == {"started": 3, "open": 0, "request_bytes": 30, "response_bytes": 60}


@given(
    st.lists(
        st.builds(
            a_record,
            st.sampled_from(["/a.B/C", "/a.B/D", "/made.Up/X"]),
            st.sampled_from([Status.OK, Status.UNIMPLEMENTED, Status.UNAVAILABLE]),
            upstream=st.sampled_from(["10.0.0.7:1", "10.0.0.8:1", None]),
            origin=st.sampled_from(["upstream", "proxy"]),
            duration_s=st.floats(0, 100),
            repeats=st.sampled_from([None, Repeats(retries=1)]),
        )
    )
)
def test_calls_told_together_are_counted_as_those_told_one_by_one(records: list[CallRecord]) -> None:
    together, alone = Metrics(["/a.B/C"]), Metrics(["/a.B/C"])
    together.calls_ended(records)
    for record in records:
        alone.call_ended(record)
    for part in ("calls", "methods", "upstream_methods", "failed", "upstream"):
        assert together.report()[part] == alone.report()[part]


def test_calls_that_have_no_upstream_count_for_callers_alone() -> None:
    metrics = Metrics(["/a.B/C"])
    metrics.call_ended(a_record(status=Status.PERMISSION_DENIED, upstream=None, origin="director"))
    metrics.call_ended(a_record())
    report = metrics.report()
    assert report["methods"]["/a.B/C"]["statuses"] == {"OK": 1, "PERMISSION_DENIED": 1}
    assert report["upstream_methods"]["/a.B/C"]["statuses"] == {"OK": 1}


@given(st.lists(st.floats(0, 100) | st.sampled_from(BOUNDS_S), max_size=30))
def test_each_call_is_in_the_first_bucket_whose_bound_it_does_not_pass(durations: list[float]) -> None:
    metrics = Metrics()
    for duration_s in durations:
        metrics.call_ended(a_record(duration_s=duration_s))
    methods = metrics.report()["methods"]
    buckets = methods["/a.B/C"]["buckets"] if durations else [0] * (len(BOUNDS_S) + 1)
    assert len(buckets) == len(BOUNDS_S) + 1
    for number, bound in enumerate(BOUNDS_S, 1):
        assert sum(buckets[:number]) == sum(duration_s <= bound for duration_s in durations)
    assert sum(buckets) == len(durations)


# --- labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "origin"),
    [
        (Status.UNIMPLEMENTED, "upstream"),
        (Status.UNIMPLEMENTED, "proxy"),
        (Status.UNAVAILABLE, "proxy"),
        (Status.PERMISSION_DENIED, "director"),
        (Status.UNKNOWN, "HTTP 200"),
        (Status.CANCELLED, "downstream"),
        (Status.DEADLINE_EXCEEDED, "proxy"),
    ],
)
def test_a_method_that_a_caller_may_have_made_up_has_no_label(status: Status, origin: str) -> None:
    metrics = Metrics(["/known.S/M"])
    metrics.call_ended(a_record("/made.Up/X", status, origin=origin))
    metrics.call_ended(a_record("/known.S/M", status, origin=origin))
    assert set(metrics.report()["methods"]) == {OTHER, "/known.S/M"}


def test_a_method_that_an_upstream_knows_has_a_label_from_then_on() -> None:
    metrics = Metrics()
    metrics.call_ended(a_record(status=Status.UNAVAILABLE, origin="proxy"))
    metrics.call_ended(a_record(status=Status.INVALID_ARGUMENT))
    metrics.call_ended(a_record(status=Status.UNAVAILABLE, origin="proxy"))
    methods = metrics.report()["methods"]
    assert methods[OTHER]["statuses"] == {"UNAVAILABLE": 1}
    assert methods["/a.B/C"]["statuses"] == {"INVALID_ARGUMENT": 1, "UNAVAILABLE": 1}


def test_the_number_of_labels_is_bounded_whatever_callers_send_and_upstreams_answer() -> None:
    metrics = Metrics(["/late.Known/M"])
    for number in range(10 * MOST_METHODS):
        metrics.call_ended(a_record(f"/made.Up/{number}", upstream=f"10.0.0.7:{number}"))
        metrics.limit_reached("127.0.0.1:1", "abuse_budget", "x" * 10_000)
        metrics.upstream_failed(f"10.0.0.7:{number}", UpstreamUnavailable("x" * 10_000))
    metrics.call_ended(a_record("/late.Known/M"))
    report = metrics.report()
    assert len(report["methods"]) == MOST_METHODS + 2
    assert report["methods"][OTHER]["statuses"] == {"OK": 9 * MOST_METHODS}
    assert report["methods"]["/late.Known/M"]["statuses"] == {"OK": 1}
    assert report["calls"]["started"] == 10 * MOST_METHODS + 1
    assert len(json.dumps(report)) < 400_000


@pytest.mark.parametrize("method", ["/" + "x" * 300 + "/M", "/a.B/\xe4", "/a.B/\x7f"])
def test_what_is_too_long_or_no_plain_text_is_no_label(method: str) -> None:
    metrics = Metrics()
    metrics.call_ended(a_record(method))
    assert set(metrics.report()["methods"]) == {OTHER}


# --- what is open ---------------------------------------------------------------------------------------------------


def test_started_is_what_has_ended_and_what_is_open_now() -> None:
    metrics = Metrics(["/a.B/C", "/a.B/Idle"])
    metrics.sources = Sources(open_calls=lambda _limit: opened(C=3, Idle=1, Unknown=5))
    metrics.call_ended(a_record())
    report = metrics.report()
    assert report["methods"]["/a.B/C"]["started"] == 4
    assert report["methods"]["/a.B/Idle"]["started"] == 1
    assert report["calls"]["started"] == 10
    assert report["calls"]["open"] == 9
    # Which label they are to have is known when they have ended.
    assert set(report["methods"]) == {"/a.B/C", "/a.B/Idle"}


def test_no_counter_goes_down_when_a_call_was_seen_twice_while_it_ended() -> None:
    metrics = Metrics(["/a.B/C"])
    metrics.sources = Sources(
        open_calls=lambda _limit: opened(C=1), endpoints=lambda: [an_endpoint(streams=7)]
    )
    metrics.call_ended(a_record())
    assert metrics.report()["methods"]["/a.B/C"]["started"] == 2
    assert metrics.report()["upstream"]["picks"] == 7
    metrics.sources = Sources()
    report = metrics.report()
    assert report["methods"]["/a.B/C"]["started"] == 2
    assert report["upstream_methods"]["/a.B/C"]["started"] == 2
    assert report["calls"] | {"request_bytes": 0, "response_bytes": 0} == {
        "started": 2,
        "open": 0,
        "request_bytes": 0,
        "response_bytes": 0,
    }
    assert report["upstream"]["picks"] == 7


# --- connections -----------------------------------------------------------------------------------------------------


def test_connections_of_callers_are_counted_with_why_they_ended() -> None:
    metrics = Metrics()
    for _ in range(4):
        metrics.connection_opened("127.0.0.1:1", None)
    metrics.connection_closed("127.0.0.1:1", ConnectionGone("gone", why="closed_by_peer"), 1.0, 3)
    metrics.connection_closed("127.0.0.1:1", ProxyStopping(), 1.0, 3)
    abuse = PeerAbuse("too much", limit="abuse_budget")
    metrics.connection_closed("127.0.0.1:9", abuse, 1.0, 3)
    metrics.connection_failed("127.0.0.1:9", abuse)
    metrics.stream_refused("127.0.0.1:1", StreamReset(1, 7, by_peer=False, reason="one too many"))
    metrics.accept_failed(ConnectionLimit("too many"))
    metrics.accept_failed(OSError("something else"))
    metrics.tls_handshake_done("127.0.0.1:1", 0.5)
    metrics.tls_handshake_failed("127.0.0.1:1", 0.5, abuse)
    report = metrics.report()
    assert report["downstream"] == {
        "open": 1,
        "opened": 4,
        "closed": {"closed_by_peer": 1, "proxy_stopping": 1, "abuse": 1},
        "failed": 1,
        "refused_streams": 1,
        "turned_away": 1,
        "tls_handshakes": 1,
        "tls_failed": 1,
        "tls_seconds": 0.5,
    }
    assert report["limits"] == {"abuse_budget": {"count": 1, "peer": "127.0.0.1:9", "detail": "too much"}}


def test_connections_to_upstreams_are_counted_with_dials_waits_and_refusals() -> None:
    metrics = Metrics()
    address = "10.0.0.7:1"
    for _ in range(3):
        metrics.dial_started(address)
    metrics.dial_succeeded(address, 0.25)
    metrics.upstream_opened(address, None)
    metrics.dial_failed(address, 1.0, UpstreamUnavailable("refused"))
    metrics.upstream_failed(address, UpstreamUnavailable("refused"))
    metrics.call_waits(address, 0)
    metrics.call_refused(address, RpcError(Status.UNAVAILABLE))
    for algorithm in ("success_rate", "consecutive_failures", "success_rate"):
        metrics.endpoint_ejected("orders", address, algorithm, "so many calls have failed", 30.0)
    metrics.endpoint_ejected("others", address, "success_rate", "so many calls have failed", 30.0)
    metrics.upstream_closed(address, ConnectionGone("gone", why="goaway"), 1.0, 41)
    metrics.call_ended(a_record())
    metrics.call_ended(a_record(repeats=Repeats(retries=2, is_exhausted=True)))
    metrics.call_ended(a_record(repeats=Repeats(hedges=3, is_throttled=True)))
    metrics.sources = Sources(endpoints=lambda: [an_endpoint(streams=2)])
    report = metrics.report()
    assert report["upstream"] == {
        "open": 0,
        "opened": 1,
        "closed": {"goaway": 1},
        "dials": 3,
        "dials_failed": 1,
        "dials_succeeded": 1,
        "dial_seconds": 0.25,
        "picks": 43,
        "waits": 1,
        "refused": 1,
        "retries": 2,
        "hedges": 3,
        "retries_exhausted": 1,
        "retries_throttled": 1,
    }
    [endpoint] = report["endpoints"]
    assert endpoint["statuses"] == {"OK": 3}
    assert endpoint["last_error"] == "UNAVAILABLE: refused"
    assert endpoint["ejections"] == {"success_rate": 2, "consecutive_failures": 1}


def test_an_endpoint_that_comes_after_a_thousand_others_have_gone_is_counted() -> None:
    endpoints: list[EndpointReport] = []
    metrics = Metrics(sources=Sources(endpoints=lambda: [endpoint.copy() for endpoint in endpoints]))

    def happens_at(address: str) -> None:
        metrics.call_ended(a_record(status=Status.UNAVAILABLE, upstream=address))
        metrics.upstream_failed(address, UpstreamUnavailable(f"{address} is away"))
        metrics.endpoint_ejected("orders", address, "success_rate", "too many calls have failed", 30.0)

    endpoints.append(an_endpoint("10.0.0.1:1"))
    happens_at("10.0.0.1:1")
    for number in range(1100):
        happens_at(f"10.1.{number // 256}.{number % 256}:1")
    metrics.report()
    endpoints.append(an_endpoint("10.0.0.2:1"))
    happens_at("10.0.0.2:1")
    for endpoint in metrics.report()["endpoints"]:
        assert endpoint["statuses"] == {"UNAVAILABLE": 1}
        assert endpoint["ejections"] == {"success_rate": 1}
        assert endpoint["last_error"] == f"UNAVAILABLE: {endpoint['address']} is away"


def test_a_report_tells_of_its_process_and_can_be_written_as_json() -> None:
    metrics = Metrics(
        worker=3,
        sources=Sources(
            dropped_lines=lambda: 4,
            spans=lambda: (6, 7),
            tls_reload_failures=lambda: 5,
            tasks=lambda: 8,
            state=lambda: "draining",
        ),
    )
    metrics.call_ended(a_record())
    held = random.Random(1).randbytes(32 * 2**20)
    report = metrics.report()
    assert (report["worker"], report["state"]) == (3, "draining")
    assert (report["log"], report["tls_reload_failures"]) == ({"dropped_lines": 4}, 5)
    assert report["spans"] == {"exported": 6, "dropped": 7}
    assert report["tasks"] == 8
    assert len(held) < report["rss_bytes"] < 2**34
    assert report["cpu_s"] > 0
    before = report["open_files"]
    with open(__file__):  # noqa: PTH123
        assert metrics.report()["open_files"] == before + 1
    assert json.loads(json.dumps(report)) == report


@given(st.lists(st.floats(0, 1e5), min_size=3, max_size=8))
def test_sums_of_seconds_are_the_same_in_any_order(durations: list[float]) -> None:
    seconds = []
    for duration_s in durations:
        metrics = Metrics(["/a.B/C"])
        metrics.call_ended(a_record(duration_s=duration_s))
        seconds.append(metrics.report()["methods"]["/a.B/C"]["seconds"])
    assert sum(seconds) == sum(reversed(seconds))
    assert all(abs(a - b) < 1e-5 for a, b in zip(durations, seconds, strict=True))


def test_failed_calls_are_counted_by_who_made_the_status_and_what_it_comes_of() -> None:
    metrics = Metrics()
    metrics.call_ended(a_record())
    for _ in range(2):
        metrics.call_ended(a_record(status=Status.UNAVAILABLE, origin="lost", cause="FIN"))
    metrics.call_ended(a_record(status=Status.CANCELLED, origin="reset", cause="RST_STREAM CANCEL"))
    metrics.call_ended(a_record(status=Status.NOT_FOUND))
    report = metrics.report()
    assert report["failed"] == {"lost": {"FIN": 2}, "reset": {"RST_STREAM CANCEL": 1}, "upstream": {"": 1}}
    assert [(call["status"], call["cause"]) for call in report["last_failed"]] == [
        ("UNAVAILABLE", "FIN"),
        ("UNAVAILABLE", "FIN"),
        ("CANCELLED", "RST_STREAM CANCEL"),
        ("NOT_FOUND", ""),
    ]


def test_words_that_a_director_makes_up_do_not_become_any_number_of_labels() -> None:
    metrics = Metrics()
    for number in range(1000):
        metrics.call_ended(a_record(status=Status.ABORTED, origin="director", cause=f"user {number}"))
    metrics.call_ended(a_record(status=Status.ABORTED, origin="director", cause="x" * 1000))
    metrics.call_ended(a_record(status=Status.UNAVAILABLE, origin="lost", cause="FIN"))
    failed = metrics.report()["failed"]
    assert len(failed["director"]) < 100
    assert failed[OTHER][OTHER] + sum(failed["director"].values()) == 1001
    assert failed["lost"] == {"FIN": 1}


def test_a_report_has_the_last_calls_that_failed_and_bounded_texts_of_them() -> None:
    metrics = Metrics()
    for number in range(100):
        record = a_record(f"/a.B/{number}" + "x" * 5000, Status.ABORTED)
        record.detail = "y" * 5000
        metrics.call_ended(record)
    last = metrics.report()["last_failed"]
    assert last[-1]["method"].startswith("/a.B/99")
    assert len(last) < 50
    assert len(json.dumps(last)) < 50 * 1000
