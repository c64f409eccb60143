"""What is said of users' exceptions and objects, whatever they do when they are asked."""

from typing import Any

import pytest

from rawgrpc_proxy.observe.describe import describe, shown, traceback_of


class Mute(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError

    __repr__ = __str__


class Exits(Exception):
    def __str__(self) -> str:
        raise SystemExit


class NoText(Exception):
    def __str__(self) -> Any:
        return self.args[0]


class Text(str):
    __slots__ = ()

    def __len__(self) -> int:
        raise ZeroDivisionError


class AnotherText(Exception):
    def __str__(self) -> str:
        return Text("said")


class Interrupted(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("x"), "KeyError: 'x'"),
        (ValueError(), "ValueError"),
        (Mute(), "Mute: <Mute whose str() raises ZeroDivisionError>"),
        (Exits(), "Exits: <Exits whose str() raises SystemExit>"),
        (NoText(5), "NoText: <NoText whose str() raises TypeError>"),
        (AnotherText(), "AnotherText: said"),
        (ValueError("x" * 10_000), f"ValueError: {'x' * 1000}…"),
    ],
)
def test_an_exception_is_described_by_its_type_and_its_text(error: Exception, said: str) -> None:
    assert describe(error) == said


def test_an_object_is_shown_as_far_as_it_lets_itself_be() -> None:
    assert shown([1]) == "[1]"
    assert shown(Mute()) == "<Mute whose repr() raises ZeroDivisionError>"
    assert len(shown("x" * 10_000)) == 1001


@pytest.mark.parametrize("notes", [["note"], 5, Mute()])
def test_a_traceback_is_told_as_far_as_it_can_be(notes: Any) -> None:
    error = SyntaxError("odd")
    error.text, error.lineno, error.filename = 5, 1, "f"  # type: ignore[assignment]
    error.__notes__ = notes
    try:
        raise error
    except SyntaxError as raised:
        told = traceback_of(raised)
    assert "SyntaxError: odd" in told
    assert "raise error" in told


def test_ctrl_c_gets_through() -> None:
    for tell in (describe, shown):
        with pytest.raises(KeyboardInterrupt):
            tell(Interrupted())
