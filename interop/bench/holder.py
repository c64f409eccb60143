"""Connections and calls that are held open by a process of their own, which is told when to open and to end them."""

from __future__ import annotations

import json
import sys
from typing import Self

from interop.bench.backend import SERVICE, UNARY, Files
from interop.bench.child import Child, Cpus
from interop.shared.processes import Trouble

ANSWER_SECONDS = 120.0
#: What to think of when a proxy was slow.
PATIENCE = "; the backend waits 60 s for the next frame of a request"


class Holder:
    """Holds connections and calls open: see holder_client.py."""

    def __init__(self, port: int, files: Files, cpus: Cpus) -> None:
        command = [sys.executable, "-m", "interop.bench.holder_client", str(port), f"/{SERVICE}/{UNARY}"]
        self._child = Child("the holder", [*command, str(files.size(UNARY))], cpus, talks=True)

    def __enter__(self) -> Self:
        self._child.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._child.__exit__(None, None, None)

    def connect(self, count: int) -> None:
        """Open connections more."""
        self._ask("connect", count)

    def open(self, count: int) -> None:
        """Open calls more, of which only the headers are sent."""
        self._ask("open", count)
        self.check()

    def check(self) -> None:
        """Raise unless all calls are still open."""
        if lost := self._ask("open", 0)["lost"]:
            raise Trouble(f"{lost} of the calls held open ended by themselves{PATIENCE}")

    def finish(self) -> None:
        """End the requests of all calls held, and wait for their answers."""
        answer = self._ask("finish", 0)
        if lost := answer["lost"]:
            raise Trouble(
                f"of {lost + answer['answered']} calls held open {lost} ended by themselves or were answered wrong"
                f"{PATIENCE}"
            )

    def _ask(self, verb: str, count: int) -> dict[str, int]:
        answer = json.loads(self._child.ask(json.dumps({verb: count}), ANSWER_SECONDS))
        if "error" in answer:
            raise Trouble(f"`{verb} {count}` by the holder: {answer['error']}")
        return {name: int(value) for name, value in answer.items()}
