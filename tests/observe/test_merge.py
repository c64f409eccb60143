"""Several workers' reports as one."""

from rawgrpc_proxy import CallRecord, Status
from rawgrpc_proxy.observe.merge import Reports, merged
from rawgrpc_proxy.observe.metrics import BOUNDS_S, Metrics, Sources
from rawgrpc_proxy.observe.report import EndpointReport, OpenCall, OpenCallsReport, WorkerReport


def a_call(quiet_s: float) -> OpenCall:
    return {
        "method": "/a.B/C",
        "peer": "127.0.0.1:5",
        "upstream": None,
        "age_s": quiet_s,
        "quiet_s": quiet_s,
        "request_messages": 0,
        "request_bytes": 0,
        "response_messages": 0,
        "response_bytes": 0,
        "waits_for": "the director",
    }


def an_endpoint(state: str, last_error: str | None = None) -> EndpointReport:
    return {
        "cluster": "orders",
        "address": "10.0.0.7:1",
        "connections": 1,
        "calls": 2,
        "waiting": 3,
        "dialling": 0,
        "streams": 5,
        "state": state,
        "standing": "in_rotation",
        "ejections": {},
        "statuses": {},
        "last_error": last_error,
        "explain": "has room\nfull",
    }


def a_report(
    worker: int, *, calls: int = 1, quiet: tuple[float, ...] = (), state: str = "ready"
) -> WorkerReport:
    opened: OpenCallsReport = {
        "open": len(quiet),
        "methods": {"/a.B/C": len(quiet)},
        "upstream_methods": {},
        "calls": [a_call(quiet_s) for quiet_s in quiet],
    }
    metrics = Metrics(["/a.B/C"], worker=worker)
    metrics.sources = Sources(open_calls=lambda _limit: opened, endpoints=lambda: [an_endpoint(state)])
    for _ in range(calls):
        metrics.call_ended(
            CallRecord(method="/a.B/C", peer="", upstream="10.0.0.7:1", status=Status.OK, request_bytes=7)
        )
    metrics.limit_reached(f"127.0.0.1:{worker}", "abuse_budget", "refused")
    report = metrics.report()
    report["pid"] = 100 + worker
    return report


def test_counts_are_added_and_gauges_too() -> None:
    sums = merged([a_report(1, calls=2, quiet=(1.0,)), a_report(2, calls=3)])
    assert sums["calls"] == {"started": 6, "open": 1, "request_bytes": 35, "response_bytes": 0}
    assert sums["methods"]["/a.B/C"]["statuses"] == {"OK": 5}
    assert sums["methods"]["/a.B/C"]["started"] == 6
    assert sum(sums["methods"]["/a.B/C"]["buckets"]) == 5
    assert sums["limits"] == {"abuse_budget": {"count": 2, "peer": "127.0.0.1:2", "detail": "refused"}}
    assert [(line["worker"], line["calls"]) for line in sums["workers"]] == [(1, 1), (2, 0)]


def test_the_reports_stay_as_they_were() -> None:
    first, second = a_report(1), a_report(2)
    merged([first, second])
    merged([first, second])
    assert merged([first, second])["methods"]["/a.B/C"]["statuses"] == {"OK": 2}
    assert first["methods"]["/a.B/C"]["statuses"] == {"OK": 1}


def test_of_no_worker_all_is_zero() -> None:
    sums = merged([])
    assert sums["calls"] == {"started": 0, "open": 0, "request_bytes": 0, "response_bytes": 0}
    assert (sums["workers"], sums["stuck"], sums["bounds_s"]) == ([], [], list(BOUNDS_S))


def test_an_endpoint_is_as_well_as_it_is_for_any_worker_and_each_explains_itself() -> None:
    [endpoint] = merged([a_report(1, state="backoff"), a_report(2)])["endpoints"]
    assert (endpoint["state"], endpoint["connections"], endpoint["statuses"]) == ("ready", 2, {"OK": 2})
    assert endpoint["explain"].splitlines() == [
        "worker 1: has room",
        "worker 1: full",
        "worker 2: has room",
        "worker 2: full",
    ]


def test_failed_calls_are_added_by_cause_and_stay_when_a_worker_is_gone() -> None:
    reports, every = Reports(), []
    for worker in (1, 2):
        metrics = Metrics(worker=worker)
        for _ in range(worker):
            metrics.call_ended(
                CallRecord(
                    method="/a.B/C",
                    peer="",
                    status=Status.UNAVAILABLE,
                    origin="lost",
                    cause="FIN",
                    duration_s=1,
                )
            )
        report = metrics.report()
        report["pid"] = worker
        reports.heard(report)
        every.append(report)
    told = merged(every)
    assert told["failed"] == {"lost": {"FIN": 3}}
    assert sorted(call["worker"] for call in told["last_failed"]) == [1, 2, 2]
    ats = [call["at"] for call in told["last_failed"]]
    assert ats == sorted(ats, reverse=True)
    reports.lost(2)
    assert merged(reports.all())["failed"] == {"lost": {"FIN": 3}}
    assert [call["worker"] for call in merged(reports.all())["last_failed"]] == [1]


def test_an_endpoint_that_gets_no_calls_from_some_worker_is_told_of_as_such_and_its_ejections_stay() -> None:
    first, second, third = a_report(1), a_report(2), a_report(3)
    first["endpoints"][0]["ejections"] = {"success_rate": 1}
    second["endpoints"][0]["standing"] = "ejected"
    second["endpoints"][0]["ejections"] = {"success_rate": 2}
    reports = Reports()
    for pid, report in enumerate((first, second, third)):
        reports.heard({**report, "pid": pid})
    [endpoint] = merged(reports.all())["endpoints"]
    assert (endpoint["standing"], endpoint["ejections"]) == ("ejected", {"success_rate": 3})
    reports.lost(1)
    [endpoint] = merged(reports.all())["endpoints"]
    assert (endpoint["standing"], endpoint["ejections"]) == ("in_rotation", {"success_rate": 3})


def test_reports_of_a_version_that_told_less_of_its_endpoints_are_added_all_the_same() -> None:
    old, new = a_report(1), a_report(2)
    for name in ("standing", "ejections"):
        del old["endpoints"][0][name]  # type: ignore[misc]  # as it was before
    del old["look_ups"]  # type: ignore[misc]
    del old["traffic"]  # type: ignore[misc]
    reports = Reports([{**old, "pid": 1}])
    reports.heard({**new, "pid": 2})
    assert merged([old])["traffic"]["mirrored"] == {}
    [endpoint] = merged(reports.all())["endpoints"]
    assert (endpoint["standing"], endpoint["ejections"], endpoint["connections"]) == ("in_rotation", {}, 2)
    for pid in (1, 2):
        reports.lost(pid)
    assert merged(reports.all())["traffic"] == merged([])["traffic"]


def test_the_longest_quiet_calls_of_all_are_kept_and_whose_they_are() -> None:
    many = tuple(float(number) for number in range(80))
    stuck = merged([a_report(1, quiet=many), a_report(2, quiet=(79.5,) * 30)])["stuck"]
    assert len(stuck) == 100
    assert stuck[0]["worker"] == 2
    assert [call["quiet_s"] for call in stuck] == sorted((call["quiet_s"] for call in stuck), reverse=True)


def test_sums_do_not_go_down_when_workers_are_replaced_again_and_again() -> None:
    reports = Reports()
    reports.heard(a_report(2, calls=1))
    total = 1
    for generation in range(3):
        report = a_report(1, calls=10, quiet=(5.0,))
        report["pid"] = generation + 10
        reports.lost(generation + 9)
        reports.heard(report)
        total += 10
        sums = merged(reports.all())
        assert sums["methods"]["/a.B/C"]["statuses"] == {"OK": total}
        assert sums["calls"]["open"] == 1
        assert len(sums["workers"]) == 2
        assert len(sums["stuck"]) == 1
        assert sums["endpoints"][0]["statuses"] == {"OK": total}
        assert sums["endpoints"][0]["connections"] == 2
    reports.lost(7)
    assert merged(reports.all()) == sums


def test_endpoints_that_are_no_more_do_not_pile_up_and_those_in_use_keep_their_counts() -> None:
    reports = Reports()
    for generation in range(30):
        report = a_report(1, calls=1)
        [in_use] = report["endpoints"]
        others = [{**in_use, "address": f"192.0.{generation}.{number}:1"} for number in range(100)]
        report["endpoints"] += others  # type: ignore[arg-type]  # what `**` makes of it
        report["pid"] = generation
        reports.heard(report)
        reports.lost(generation)
    endpoints = merged(reports.all())["endpoints"]
    assert len(endpoints) == 1000
    statuses = {endpoint["address"]: endpoint["statuses"] for endpoint in endpoints}
    assert statuses[in_use["address"]] == {"OK": 30}
    assert {f"192.0.29.{number}:1" for number in range(100)} <= statuses.keys()
    assert "192.0.21.50:1" in statuses
    assert "192.0.19.50:1" not in statuses


def test_a_worker_that_drains_and_its_successor_are_two() -> None:
    reports = Reports()
    old, new = a_report(1, calls=3), a_report(1, calls=4)
    new["pid"] = 7
    for _ in range(3):
        reports.heard(old)
        reports.heard(new)
    sums = merged(reports.all())
    assert sums["methods"]["/a.B/C"]["statuses"] == {"OK": 7}
    assert len(sums["workers"]) == 2


def test_another_process_may_have_the_number_of_one_that_is_gone() -> None:
    reports = Reports()
    reports.heard(a_report(1, calls=3))
    again = a_report(1, calls=4)
    again["started_at"] += 60
    reports.heard(again)
    sums = merged(reports.all())
    assert sums["methods"]["/a.B/C"]["statuses"] == {"OK": 7}
    assert len(sums["workers"]) == 1


def test_another_process_can_go_on_from_what_one_has_counted() -> None:
    before = Reports()
    before.heard(a_report(1, calls=3))
    before.lost(a_report(1, calls=3)["pid"])
    for pid, calls in ((20, 5), (21, 7)):
        before.heard({**a_report(1, calls=calls), "pid": pid})
    after = Reports(before.all())
    assert after.all() == before.all()
    after.only([21])  # the other one has died while nobody looked
    sums = merged(after.all())
    assert sums["methods"]["/a.B/C"]["statuses"] == {"OK": 15}
    assert [worker["pid"] for worker in sums["workers"]] == [21]
    started_at = after.all()[0]["started_at"]
    after.heard({**a_report(1, calls=8), "pid": 21, "started_at": started_at})
    assert merged(after.all())["methods"]["/a.B/C"]["statuses"] == {"OK": 16}


def test_a_look_up_fails_for_nobody_any_more_once_its_worker_is_gone_and_what_it_counted_stays() -> None:
    failing, fine, always_fine = (Metrics(worker=worker) for worker in (1, 2, 3))
    always_fine.looked_up("orders.internal:1", 0.1, 2)
    failing.look_up_failed("orders.internal:1", 0.1, "SERVFAIL")
    fine.look_up_failed("orders.internal:1", 0.1, "SERVFAIL")
    fine.looked_up("orders.internal:1", 0.1, 2)
    reports = Reports()
    for pid, metrics in enumerate((failing, fine, always_fine)):
        reports.heard({**metrics.report(), "pid": pid})
    told = {"done": 2, "failed": 2, "failing": 1, "problem": "SERVFAIL"}
    assert merged(reports.all())["look_ups"] == {"orders.internal:1": told}
    reports.lost(0)
    assert merged(reports.all())["look_ups"] == {"orders.internal:1": {**told, "failing": 0}}
