"""The lines of the log about endpoints that get no calls, or get some again."""

import io
import json

from rawgrpc_proxy import CallLog


def test_who_gets_no_calls_is_told_to_people_with_the_reason() -> None:
    file = io.StringIO()
    log = CallLog(file=file)
    log.endpoint_ejected("orders", "10.0.0.7:1", "success_rate", "50.0 % of its calls ended well", 30.0)
    log.endpoint_returned("orders", "10.0.0.7:1")
    log.endpoint_unhealthy("", "10.0.0.7:1", "it says NOT_SERVING\nof everything")
    log.endpoint_healthy("", "10.0.0.7:1")
    assert [line.partition(" ")[2] for line in file.getvalue().splitlines()] == [
        "- upstream 10.0.0.7:1 of orders is ejected for 30 s: 50.0 % of its calls ended well",
        "- upstream 10.0.0.7:1 of orders is ejected no more",
        "- upstream 10.0.0.7:1 is unhealthy: it says NOT_SERVING\\nof everything",
        "- upstream 10.0.0.7:1 is healthy again",
    ]


def test_to_machines_the_same_is_told_in_fields() -> None:
    file = io.StringIO()
    log = CallLog("json", file)
    log.endpoint_ejected("orders", "10.0.0.7:1", "success_rate", "50.0 % of its calls ended well", 30.0)
    line = json.loads(file.getvalue())
    del line["time"]
    assert line == {
        "event": "endpoint_ejected",
        "cluster": "orders",
        "upstream": "10.0.0.7:1",
        "algorithm": "success_rate",
        "for_s": 30.0,
        "reason": "50.0 % of its calls ended well",
    }


def test_a_name_that_changes_is_told_of_with_what_it_is_now() -> None:
    file = io.StringIO()
    CallLog(file=file).addresses_changed("orders.internal:1", ["10.0.0.7:1", "10.0.0.8:1"])
    assert file.getvalue().partition(" ")[2] == "- orders.internal:1 is now 10.0.0.7:1, 10.0.0.8:1\n"
    file = io.StringIO()
    CallLog("json", file).addresses_changed("orders.internal:1", [f"10.0.0.{n}:1" for n in range(200)])
    line = json.loads(file.getvalue())
    assert (line["event"], line["name"], line["count"]) == ("addresses_changed", "orders.internal:1", 200)
    assert line["addresses"] == [*(f"10.0.0.{n}:1" for n in range(20)), "…"]


def test_look_ups_that_fail_again_and_again_are_told_of_once_in_a_while() -> None:
    file = io.StringIO()
    log = CallLog(file=file)
    for name in ("orders.internal:1", "orders.internal:1", "bills.internal:1"):
        log.look_up_failed(name, 0.1, "there is no such name (NXDOMAIN)")
    assert [line.partition(" ")[2] for line in file.getvalue().splitlines()] == [
        f"- the look-up of {name} has failed, and its addresses stay as they were: there is no such name (NXDOMAIN)"
        for name in ("orders.internal:1", "bills.internal:1")
    ]


def test_what_of_an_answer_is_left_out_is_told() -> None:
    file = io.StringIO()
    CallLog(file=file).look_up_noted("orders.internal:1", "it has 5000 addresses")
    assert file.getvalue().partition(" ")[2] == "- the look-up of orders.internal:1: it has 5000 addresses\n"
