"""What a run was made with and on: figures mean nothing without it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from interop.shared.processes import Trouble
from interop.shared.programs import version_of


def describe() -> dict[str, str]:
    """The machine and the programs that make the load, by name."""
    facts = {
        "CPU": f"{_field('/proc/cpuinfo', 'model name')}, {os.cpu_count()} CPUs",
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 1024**2:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
    }
    for program in ("nghttpd", "h2load"):
        facts[program] = version_of(program, "--version")
    return facts


class Disturbance:
    """How much else the machine had to do since this was made."""

    def __init__(self) -> None:
        self._load_before = os.getloadavg()[0]
        self._ticks_before = _ticks()

    def describe(self) -> dict[str, str]:
        """In words."""
        total, stolen = (now - then for now, then in zip(_ticks(), self._ticks_before, strict=True))
        return {
            "load average before the run": f"{self._load_before:.2f}",
            "CPU time stolen by the host": f"{stolen / max(total, 1):.1%}",
        }


def missing_program() -> str | None:
    """Why nothing can be measured here, if so."""
    try:
        for program, option in (("nghttpd", "--version"), ("h2load", "--version"), ("taskset", "--version")):
            version_of(program, option)
    except Trouble as trouble:
        return str(trouble)
    return None


def _field(file: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.+)$", Path(file).read_text(), re.MULTILINE)
    return found[1].strip() if found else "unknown"


def _ticks() -> tuple[int, int]:
    """Of all CPUs: all so far, and those that the host of a virtual machine took."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks), ticks[7]
