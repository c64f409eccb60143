"""Telling observers, which are code of a user's: whatever they do, the calls of the proxy go on.

An observer is any object with the methods of a protocol (`ServerObserver`, `PoolObserver`); it may leave out those
that it does not want to hear.
"""

import contextlib
import sys
from types import SimpleNamespace
from typing import cast


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
        _report(error, observer)


def _report(error: BaseException, observer: object) -> None:
    unraisable = SimpleNamespace(
        exc_type=type(error),
        exc_value=error,
        exc_traceback=error.__traceback__,
        err_msg="Exception ignored in an observer of the proxy",
        object=type(observer),
    )
    with contextlib.suppress(Exception):  # the hook is a user's, too, and there is nobody left to tell
        sys.unraisablehook(cast("sys.UnraisableHookArgs", unraisable))
