"""What a contender is: something that forwards calls, as the benchmark starts it and names it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Site:
    """Where one start of a contender happens."""

    listen: int
    upstream: int
    folder: Path
    """Its own, for configuration files."""
    certificate: Path
    """With its key, for those whose callers speak TLS."""
    many_calls: bool
    """Ten thousand calls will be open at a time."""


@dataclass(frozen=True)
class Contender:
    """One column of the benchmark."""

    name: str
    title: str
    group: str
    command: Callable[[Site], list[str]] | None
    """None: the load goes to the backend itself."""
    version: Callable[[], str]
    """Also looks whether it can run here: raises `Trouble` if not."""
    workers: int = 1
    in_comparison_of_workers: bool = False
    tls: bool = False
    """Callers speak TLS to it; it speaks plaintext to the backend."""
    only_calls: bool = False
    """Of the stories only the one of calls is told."""
    warms_up: bool = False
    """Compiles itself while it runs, so it gets more time before it is measured."""

    @property
    def is_proxy(self) -> bool:
        """Whether it is a process whose CPU time and memory count."""
        return self.command is not None
