"""Calls that stay open are answered once, when they are old enough; what has ended is forgotten."""

from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.observe.long_calls import LongCalls
from rawgrpc_proxy.observe.record import CallRecord


def call(name: str = "/p.S/M") -> CallRecord:
    return CallRecord(method=name, peer="10.0.0.1:1")


def test_a_call_is_due_when_it_is_old_enough_and_only_once() -> None:
    calls, record = LongCalls(5.0), call()
    calls.started(record, 100.0)
    assert calls.due(104.9, 10) == []
    [(found, age_s)] = calls.due(105.5, 10)
    assert found is record
    assert age_s == 5.5
    assert calls.due(200.0, 10) == []


def test_the_end_of_a_call_says_whether_it_was_told_of() -> None:
    calls = LongCalls(5.0)
    short, long = call(), call()  # equal, and not the same
    calls.started(short, 0.0)
    calls.started(long, 0.0)
    assert calls.ended(short) is False
    assert len(calls.due(9.0, 10)) == 1
    assert calls.ended(long) is True
    assert calls.ended(long) is False


def test_no_more_are_answered_than_asked_for_and_the_oldest_first() -> None:
    calls = LongCalls(1.0)
    for number in range(5):
        calls.started(call(f"/p.S/M{number}"), float(number))
    assert [record.method for record, _ in calls.due(10.0, 2)] == ["/p.S/M0", "/p.S/M1"]
    assert [record.method for record, _ in calls.due(10.0, 9)] == ["/p.S/M2", "/p.S/M3", "/p.S/M4"]


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["start", "end", "look"])), max_size=60))
def test_of_calls_that_have_ended_nothing_is_left(steps: list[tuple[int, str]]) -> None:
    calls, now, open_ones = LongCalls(2.0), 0.0, []
    for pause, what in steps:
        now += pause
        if what == "start":
            open_ones.append(call())
            calls.started(open_ones[-1], now)
        elif what == "end" and open_ones:
            calls.ended(open_ones.pop(pause % len(open_ones)))
        else:
            calls.due(now, 1)
        assert len(calls._fresh) + len(calls._told) == len(open_ones)
