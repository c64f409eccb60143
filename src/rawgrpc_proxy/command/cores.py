"""How many processors there are for this process: what `workers = "auto"` means."""

import os
from collections.abc import Callable


def cores() -> int:
    """How many processors this process may use."""
    count: Callable[[], int | None] | None = getattr(os, "process_cpu_count", None)  # since Python 3.13
    if count is not None:
        return count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
