import sys

import pytest

from rawgrpc_proxy.observe.tell import tell


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
