"""Telling observers, which are code of a user's: whatever they do, the calls of the proxy go on.

An observer is any object with methods of `ServerObserver` or `PoolObserver`; it may leave out those that it does not
want to hear. What happens seldom is told by `tell`. What happens in every call is told through what
`hearing` answers, which is asked once, at the start: None means that there is nobody to tell, and so nothing to do.
"""

import contextlib
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import cast

from rawgrpc_proxy.observe.observer import PoolObserver, ServerObserver, wanted_by
from rawgrpc_proxy.observe.record import CallRecord


def tell(observer: object | None, event: str, *facts: object) -> None:
    """Call the observer's method `event`. What it raises goes to `sys.unraisablehook`; only Ctrl-C gets through."""
    if observer is None:
        return
    try:
        hear = getattr(observer, event, None)
        if hear is not None:
            hear(*facts)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  # any code of a user's
        report(error, observer)


def hearing(observer: object | None, event: str) -> Callable[..., None] | None:
    """What tells the observer of this event, as `tell` does it; None if it has no such method, or left it as it was.

    A method that is only inherited from `ServerObserver` or `PoolObserver` does nothing, and is not called.
    """
    if type(observer) is Observers:  # what it has for an event never raises
        told: Callable[..., None] | None = vars(observer).get(event)
        return told
    method = _method(observer, event)
    return None if method is None else _telling(event, [(observer, method)])


def _method(observer: object | None, event: str) -> Callable[..., None] | None:
    """The observer's method of this event, if there is one that does something."""
    if event == "calls_ended" and _speaks_of_one(observer):
        each = _own_method(observer, "call_ended")
        return None if each is None else _one_by_one(observer, each)
    return _own_method(observer, event)


def _speaks_of_one(observer: object | None) -> bool:
    """Whether `call_ended` is the observer's last word on calls that end, as where a subclass wrote it anew."""
    own = getattr(observer, "__dict__", {})
    for names in (own, *map(vars, type(observer).__mro__)):
        if "calls_ended" in names:
            return False
        if "call_ended" in names:
            return True
    return _own_method(observer, "calls_ended") is None


def _own_method(observer: object | None, event: str) -> Callable[..., None] | None:
    try:
        method: Callable[..., None] | None = getattr(observer, event, None)
        return None if method is None or _is_left_out(method, event) else method
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  # as in `tell`
        report(error, observer)
        return None


def _telling(event: str, methods: list[tuple[object, Callable[..., None]]]) -> Callable[..., None]:
    """What calls these methods of observers, one after the other, as `tell` does it."""
    if event in _OF_EVERY_CALL:
        told = None
        for observer, method in reversed(methods):
            told = _telling_one_fact(observer, method, told)
        assert told is not None
        return told

    def all_told(*facts: object) -> None:
        for observer, method in methods:
            try:
                method(*facts)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001  # as in `tell`
                report(error, observer)

    return all_told


def _telling_one_fact(
    observer: object, method: Callable[..., None], then: Callable[[object], None] | None = None
) -> Callable[[object], None]:
    """The same for events with one fact, which happen in every call: half the time."""

    def told(fact: object) -> None:
        try:
            method(fact)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  # as in `tell`
            report(error, observer)
        if then is not None:
            then(fact)

    return told


def _one_by_one(observer: object, method: Callable[..., None]) -> Callable[[Sequence[CallRecord]], None]:
    """What tells an observer of calls one by one that would be told together: whatever it does, of all of them."""
    told = _telling_one_fact(observer, method)

    def all_told(records: Sequence[CallRecord]) -> None:
        for record in records:
            told(record)

    return all_told


def _is_left_out(hear: object, event: str) -> bool:
    function = getattr(hear, "__func__", None)
    return function is not None and any(
        function is vars(base).get(event) for base in (ServerObserver, PoolObserver)
    )


_OF_EVERY_CALL = frozenset({"call_begun", "response_begun", "call_ended", "calls_ended", "call_placed"})


class Observers(ServerObserver, PoolObserver):
    """Several observers as one: each event goes to all that want to hear of it, in this order. None stands for nobody.

    What one of them raises is reported, and keeps nothing from the others. An event that a single one of them hears
    costs no more than without this. It has to be made when their methods are as they shall be.
    """

    def __init__(self, *observers: object | None) -> None:
        self.wants = frozenset().union(*map(wanted_by, observers))
        for event in EVENTS:
            methods = [(each, _method(each, event)) for each in observers]
            listening = [(each, method) for each, method in methods if method is not None]
            if listening:
                setattr(self, event, _telling(event, listening))


EVENTS: tuple[str, ...] = tuple(
    dict.fromkeys(
        name
        for base in (ServerObserver, PoolObserver)
        for name, value in vars(base).items()
        if not name.startswith("_") and callable(value)
    )
)
"""All that can be told, by the names of the methods."""


def report(error: BaseException, observer: object) -> None:
    """Code of a user's has raised, and nobody else is to suffer: have `sys.unraisablehook` show it."""
    unraisable = SimpleNamespace(
        exc_type=type(error),
        exc_value=error,
        exc_traceback=error.__traceback__,
        err_msg="Exception ignored in an observer of the proxy",
        object=type(observer),
    )
    with contextlib.suppress(Exception):  # the hook is a user's, too, and there is nobody left to tell
        sys.unraisablehook(cast("sys.UnraisableHookArgs", unraisable))
