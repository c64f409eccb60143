"""Memory that is free but still the process's: back to the system.

malloc gives back what is free at the end of its heap alone. Behind a burst of DATA that has waited in thousands of
pieces, a few small objects at the end keep all of it, for as long as they live. glibc can be asked to look through the
rest (`malloc_trim(3)`); musl has nothing like it, and PyPy's own heap is not malloc's. It is what Envoy's overload
manager calls to shrink the heap.
"""

import ctypes
import sys
from collections.abc import Callable


def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


_trim = _malloc_trim()


def shrink_heap() -> None:
    """Give the system what is free. Takes some 200 µs for each megabyte of it, so: in a thread. Raises nothing.

    Where the C library cannot do it nothing happens.
    """
    if _trim is not None:
        _trim(0)
