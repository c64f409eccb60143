"""The probe: a client in a process of its own (probe_client.py), and what it has told of its calls so far."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from interop.faults.world import until
from interop.shared.processes import Lines, Trouble

READY_SECONDS = 20.0


@dataclass
class Call:
    """One call of the probe; times are on the monotonic clock."""

    kind: str
    started: float
    ended: float | None = None
    status: str = "still open"
    details: str = ""


class Probe:
    """The probe client, and what it has told so far."""

    def __init__(self, target: str, **options: float) -> None:
        self.calls: dict[int, Call] = {}
        self.ready = False
        command = [sys.executable, "-m", "interop.faults.probe_client", f"--target={target}"]
        command += [f"--{name}={value}" for name, value in options.items()]
        self._noise: list[str] = []
        self._process = Lines(command, on_line=self._read)

    def _read(self, line: str) -> None:
        if not line.startswith("{"):
            self._noise.append(line)
            return
        told = json.loads(line)
        if "ready" in told:
            self.ready = True
        elif "started" in told:
            self.calls[told["call"]] = Call(told["kind"], told["started"])
        else:
            call = self.calls[told["call"]]
            call.status, call.details, call.ended = told["status"], told["details"], told["ended"]

    def probes(self) -> list[Call]:
        """The calls at the steady rate, oldest first."""
        return [call for call in list(self.calls.values()) if call.kind == "probe"]

    def held(self) -> list[Call]:
        """The calls that were to be held open."""
        return [call for call in list(self.calls.values()) if call.kind != "probe"]

    async def wait_until_ready(self) -> None:
        """Wait until what is to be in flight is."""
        if not await until(lambda: self.ready, READY_SECONDS):
            tail = " / ".join(self._noise[-3:])
            raise Trouble(f"the calls to be held were not open after {READY_SECONDS:.0f} s: {tail}")

    def stop(self) -> None:
        """End the process."""
        self._process.stop()


@asynccontextmanager
async def probing(target: str, **options: float) -> AsyncIterator[Probe]:
    """The probe client."""
    probe = Probe(target, **options)
    try:
        yield probe
    finally:
        probe.stop()
