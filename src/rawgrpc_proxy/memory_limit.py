"""Memory: how much of it this process may use, and which share of that may wait for peers that take nothing.

What it does not do: count what waits (`http2/buffered.py`), or act on it (`net/memory_guard.py`).
"""

import os
import resource
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_SHARE = 4
_MOST = 512 * 1024 * 1024
_LEAST = 32 * 1024 * 1024
"""With less than that a few bulk streams would hinder each other."""
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


@cache
def default_max_buffered_bytes(processes: int = 1) -> int:
    """A quarter of the memory that the process may use, at most 512 MiB, shared by so many; at least 32 MiB for each.

    Half a gibibyte is 512 calls whose whole window waits; more than that is rarely worth its memory. Asked of the
    system once.
    """
    return max(_LEAST, min(memory_limit() // _SHARE, _MOST) // processes)


def memory_limit(cgroups: Path = _CGROUPS, own_cgroups: Path = _OWN_CGROUPS) -> int:
    """How many bytes this process may use: the machine's memory, RLIMIT_AS, or a limit of its control groups.

    `cgroups` is where control groups are mounted, and `own_cgroups` the file that names those of this process
    (cgroups(7)); where there are none, as on systems other than Linux, they do not count.
    """
    limits = [_machine_bytes(), *_cgroup_limits(cgroups, own_cgroups)]
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        limits.append(address_space)
    return min(limits)


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroup_limits(cgroups: Path, own_cgroups: Path) -> Iterator[int]:
    """The limits of each group that the process is in, from its own up to the root: each of them holds."""
    try:
        lines = own_cgroups.read_text().splitlines()
    except OSError:
        return
    files: tuple[str, ...]
    for line in lines:
        _, _, names_and_path = line.partition(":")
        names, _, path = names_and_path.partition(":")
        if not names:
            root, files = cgroups, ("memory.max", "memory.high")
        elif "memory" in names.split(","):
            root, files = cgroups / "memory", ("memory.limit_in_bytes",)
        else:
            continue
        # In a container the path may be the host's, of which only the root is to be seen here.
        group = root / path.lstrip("/")
        for directory in (group, *group.parents):
            for file in files:
                yield from _limit_in(directory / file)
            if directory == root:
                break


def _limit_in(file: Path) -> Iterator[int]:
    try:
        yield int(file.read_text())  # "max" is no number, and no limit
    except (OSError, ValueError):
        return
