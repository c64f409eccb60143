"""What Linux tells of a process in /proc: memory, CPU time, open files, bytes read, descendants.

Nothing here works on other systems.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Memory:
    """Resident memory in KiB: now, and at its highest. Pages shared between processes count in each of them."""

    now_kib: int
    peak_kib: int

    @property
    def now_mib(self) -> float:
        """What there is now, in MiB."""
        return self.now_kib / 1024

    @property
    def peak_mib(self) -> float:
        """The most there has been, in MiB."""
        return self.peak_kib / 1024


def memory(*pids: int) -> Memory:
    """The memory of all of these processes; one that is gone has none."""
    now = peak = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            now += int(status.split("VmRSS:")[1].split()[0])
            peak += int(status.split("VmHWM:")[1].split()[0])
    return Memory(now, peak)


def forget_peak(pid: int) -> None:
    """Have the peak of its memory begin anew, at what there is now (proc_pid_clear_refs(5))."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time, of the user and of the system, of all of these processes so far; one that is gone has had none."""
    fields = (_stat(pid) for pid in pids)
    return sum(int(stat[11]) + int(stat[12]) for stat in fields if stat) / TICKS_PER_SECOND


def exact_cpu_seconds(pids: Iterable[int]) -> float:
    """The same of the threads that there are now, to the nanosecond (`sched-stats`); coarser where that is not kept."""
    pids = list(pids)
    total = 0
    try:
        for pid in pids:
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(ProcessLookupError):
                    total += int((thread / "schedstat").read_text().split()[0])
    except OSError:
        return cpu_seconds(pids)
    return total / 1e9


def bytes_read(pid: int) -> int:
    """What the process has read so far, from sockets and files."""
    return int(Path(f"/proc/{pid}/io").read_text().split("rchar:")[1].split()[0])


def open_files(pid: int) -> int:
    """How many files and sockets the process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def with_descendants(pid: int) -> list[int]:
    """The pid and those of all processes that come from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (stat := _stat(int(entry.name))):
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    pids = [pid]
    for parent in pids:
        pids.extend(children.get(parent, ()))
    return pids


def worker_of(pid: int) -> int:
    """The process that serves, of a proxy with one worker: its supervisor does nothing that is to be measured.

    A program that forks nobody is its own.
    """
    return with_descendants(pid)[-1]


def _stat(pid: int) -> list[str] | None:
    # The fields after the name, which may itself hold spaces and parentheses; None for a process that is gone.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
