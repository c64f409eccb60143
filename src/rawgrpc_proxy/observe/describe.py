"""What users' code has made or raised, in words for the log: total, whatever `__str__`, `__repr__` and the like do.

The invariant: nothing here raises but Ctrl-C, and no text is longer than a few thousand characters for each exception.
"""

import traceback
from collections.abc import Callable

from rawgrpc_proxy.observe.words import beginning

_MOST = 1000
"""Characters of a text that are shown; a log is for people."""


def describe(error: BaseException) -> str:
    """The exception's type and text: `KeyError: 'x'`."""
    name = type(error).__name__
    text = _text(str, error)
    return f"{name}: {text}" if text else name


def shown(value: object) -> str:
    """`repr(value)`, or its type if that fails."""
    return _text(repr, value)


def traceback_of(error: BaseException) -> str:
    """The exception with its traceback and its causes, as Python prints it; as much of it as can be had."""
    try:
        return "".join(traceback.format_exception(error))
    except KeyboardInterrupt:
        raise
    except BaseException as failure:  # noqa: BLE001  # a SyntaxError with odd attributes, an odd __notes__, …
        where = "".join(traceback.format_tb(error.__traceback__))
        return f"{where}{describe(error)}\n(its traceback cannot be formatted: {describe(failure)})\n"


def _text(make: Callable[[object], str], value: object) -> str:
    try:
        text = make(value)
    except KeyboardInterrupt:
        raise
    except BaseException as failure:  # noqa: BLE001  # any code of a user's
        return f"<{type(value).__name__} whose {make.__name__}() raises {type(failure).__name__}>"
    # Of a subclass, which may have methods of its own, the characters. PyPy's str.__str__ asks those methods.
    text = str.encode(text, "utf-8", "surrogatepass").decode("utf-8", "surrogatepass")
    return beginning(text, _MOST)
