import sys
from collections.abc import Sequence

import attrs
import pytest

from rawgrpc_proxy.observe.observer import PoolObserver, ServerObserver
from rawgrpc_proxy.observe.record import CallRecord
from rawgrpc_proxy.observe.tell import EVENTS, Observers, hearing, tell


class Observer:
    def __init__(self) -> None:
        self.heard: list[object] = []

    def happened(self, *facts: object) -> None:
        self.heard.append(facts)

    def fails(self, error: BaseException) -> None:
        raise error

    @property
    def strange(self) -> object:
        raise RuntimeError("not even the method can be had")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


def test_an_observer_hears_the_facts() -> None:
    observer = Observer()
    tell(observer, "happened", 1, "two")
    assert observer.heard == [(1, "two")]


def test_an_observer_may_leave_out_methods() -> None:
    tell(Observer(), "unheard_of", 1)
    tell(None, "happened", 1)


@pytest.mark.parametrize(
    "error", [ValueError("typo"), SystemExit(3), GeneratorExit(), BaseException("base"), Unprintable()]
)
def test_what_an_observer_raises_is_reported_and_goes_no_further(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(unraisable.exc_value))
    tell(Observer(), "fails", error)
    assert reported == [error]


def test_an_observer_whose_methods_cannot_be_looked_up_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(unraisable.exc_value))
    tell(Observer(), "strange")
    assert [type(error) for error in reported] == [RuntimeError]


def test_a_hook_that_fails_itself_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "unraisablehook", lambda _unraisable: 1 / 0)
    tell(Observer(), "fails", ValueError())


def test_ctrl_c_gets_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        tell(Observer(), "fails", KeyboardInterrupt())


# --- what is asked once --------------------------------------------------------------------------------------------


class Half(ServerObserver):
    """Wants to hear of the end of calls, and of nothing else."""

    def __init__(self) -> None:
        self.ended: list[CallRecord] = []

    def call_ended(self, record: CallRecord) -> None:
        self.ended.append(record)


class Full(Half):
    def call_ended(self, record: CallRecord) -> None:
        raise OSError("the disk is full")


RECORD = CallRecord(method="/a.B/C", peer="127.0.0.1:1")


def test_a_method_that_is_only_inherited_is_not_heard() -> None:
    assert hearing(Half(), "call_begun") is None
    assert hearing(Half(), "call_ended") is not None
    assert hearing(Half(), "unheard_of") is None
    assert hearing(None, "call_ended") is None


def test_what_is_heard_is_told_as_by_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(unraisable.exc_value))
    hear = hearing(Full(), "call_ended")
    assert hear is not None
    hear(RECORD)
    assert [type(error) for error in reported] == [OSError]
    assert hearing(Observer(), "strange") is None
    assert [type(error) for error in reported] == [OSError, RuntimeError]


def test_several_observers_hear_each_what_it_wants_and_one_that_fails_keeps_nothing_from_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(unraisable.exc_value))
    first, last = Half(), Half()
    several = Observers(first, Full(), None, last)
    several.call_ended(RECORD)
    assert first.ended == last.ended == [RECORD]
    assert [type(error) for error in reported] == [OSError]
    assert hearing(several, "call_begun") is None


def test_each_of_several_observers_is_told_once_and_named_in_the_report_of_what_it_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(unraisable.object))
    one = Half()
    for several in (Observers(None, one, Observer()), Observers(Observers(one), Full())):
        hear = hearing(several, "call_ended")
        assert hear is not None
        hear(RECORD)
    assert one.ended == [RECORD, RECORD]
    assert reported == [Full]
    tell(Observers(Full()), "call_ended", RECORD)
    assert reported == [Full, Full]


class Together(ServerObserver):
    """Wants to hear of the ends of calls together."""

    def __init__(self) -> None:
        self.ended: list[Sequence[CallRecord]] = []

    def call_ended(self, record: CallRecord) -> None:
        raise AssertionError("it is told of calls together")

    def calls_ended(self, records: Sequence[CallRecord]) -> None:
        self.ended.append(records)


def test_the_ends_of_calls_are_told_together_or_one_by_one_as_an_observer_likes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(unraisable.object))
    together, alone = Together(), Half()
    other = attrs.evolve(RECORD, method="/a.B/D")
    for observer in (together, alone, Observers(together, Full(), alone)):
        hear = hearing(observer, "calls_ended")
        assert hear is not None
        hear((RECORD, other))
    assert together.ended == [(RECORD, other)] * 2
    assert alone.ended == [RECORD, other] * 2
    # One that raises misses nothing of what is told one by one.
    assert reported == [Full, Full]
    assert hearing(Observer(), "calls_ended") is None
    assert hearing(ServerObserver(), "calls_ended") is None


class Choosy(Together):
    """A subclass that has its own idea of the end of one call, and knows nothing of calls that end together."""

    def call_ended(self, record: CallRecord) -> None:
        self.calls_ended([record])


def test_who_writes_the_end_of_one_call_anew_is_told_of_each() -> None:
    subclass, instance = Choosy(), Together()
    instance.call_ended = lambda record: instance.ended.append([record])  # type: ignore[method-assign]
    for observer in (subclass, instance, Observers(subclass), Observers(None, instance, Observer())):
        hear = hearing(observer, "calls_ended")
        assert hear is not None
        hear((RECORD, RECORD))
    assert subclass.ended == instance.ended == [[RECORD]] * 4


def test_every_event_has_a_name_and_says_what_it_tells() -> None:
    assert {"call_ended", "connection_closed", "limit_reached", "upstream_failed"} <= set(EVENTS)
    for event in EVENTS:
        for base in (ServerObserver, PoolObserver):
            assert event not in vars(base) or vars(base)[event].__doc__
