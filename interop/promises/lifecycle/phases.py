"""The phases: what happens to the proxy in each, and whether the calls meanwhile ended as is promised."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from interop.promises.lifecycle.load import Call, Load
from interop.promises.lifecycle.proxy import Proxy

QUIET_SECONDS = 3.0
#: Between two kills: a worker that dies sooner is replaced ever more slowly, as it would be.
KILL_PAUSE_SECONDS = 1.2
#: After a connection has ended its caller, with others in its process, may still not have looked.
UNHEARD_SECONDS = 0.05
SHOWN_FAILURES = 5


@dataclass(frozen=True)
class Kill:
    """One worker that was killed."""

    callers: frozenset[str]
    """Who was connected to it."""
    at: float
    gone: float
    """When the last of its connections was."""

    def had(self, call: Call) -> bool:
        """Whether this call was open then, on a connection to that worker.

        Or was sent on it afterwards, by a caller who had not heard of its end yet.
        """
        until = self.gone + (0.0 if call.ok else UNHEARD_SECONDS)
        return call.caller in self.callers and call.started < until and call.ended > self.at


@dataclass(frozen=True)
class Phase:
    """What happened, and when."""

    name: str
    events: int
    began: float
    ended: float
    kills: Sequence[Kill] = ()


@dataclass(frozen=True)
class Outcome:
    """A line of the table."""

    phase: str
    events: int
    calls: int
    calls_per_s: float
    streams: int
    failed: int
    """Calls that are no streams."""
    cut: int
    """Streams."""
    in_flight: int
    """Calls and streams, on workers when they were killed."""
    broken: int
    """Calls and streams that ended otherwise than they have to, and were not among those."""
    longest_pause_s: float
    """Between two successes of one caller of unary calls, beyond the pause that it makes."""
    failures: Sequence[str]
    """What was told of those, the most frequent first."""

    @property
    def kept(self) -> bool:
        """Whether the promise was."""
        return not self.broken and self.calls > 0


class Story:
    """The phases of one proxy under one load, told one after the other."""

    def __init__(self, proxy: Proxy, load: Load, names: Sequence[str], suffix: str = "") -> None:
        self.phases: list[Phase] = []
        self._proxy, self._load, self._names, self._suffix = proxy, load, names, suffix

    def settle(self) -> None:
        """Wait until only workers that serve are there, and every caller is known to be connected to one of them."""
        self._proxy.wait_until_drained()
        self._proxy.until(self._all_connected, f"not all of {len(self._names)} callers were connected")

    def _all_connected(self) -> bool:
        self._load.check()
        ports = {port for pid in self._proxy.workers() for port in self._proxy.ports(pid)}
        return all(self._proxy.port_of.get(name) in ports for name in self._names)

    def quiet(self) -> None:
        """Nothing happens."""
        began = time.monotonic()
        time.sleep(QUIET_SECONDS)
        self._note("nothing", 0, began)

    def take_overs(self, number: signal.Signals, times: int) -> None:
        """Reloads or upgrades, each as soon as the one before has taken over."""
        began = time.monotonic()
        for _ in range(times):
            self._proxy.take_over(number)
        self.settle()
        self._note(number.name, times, began)

    def kills(self, times: int) -> None:
        """Workers are killed, each when all callers are connected again."""
        began, kills = time.monotonic(), []
        for _ in range(times):
            ports, at, gone = self._proxy.kill_worker()
            callers = frozenset(name for name, port in self._proxy.port_of.items() if port in ports)
            kills.append(Kill(callers, at, gone))
            time.sleep(KILL_PAUSE_SECONDS)
            self.settle()
        self._note("SIGKILL of a worker", times, began, kills)

    def _note(self, name: str, events: int, began: float, kills: Sequence[Kill] = ()) -> None:
        self.phases.append(Phase(name + self._suffix, events, began, time.monotonic(), kills))

    def outcomes(self, pause_s: float) -> list[Outcome]:
        """What came of the calls in each phase, when the load has finished."""
        return [_outcome(phase, self._load.calls, pause_s) for phase in self.phases]


def _outcome(phase: Phase, every: Sequence[Call], pause_s: float) -> Outcome:
    calls = [call for call in every if phase.began <= call.ended < phase.ended]
    unary = [call for call in calls if not call.is_stream]
    lost = [call for call in calls if not call.ok]
    broken = [call for call in lost if not any(kill.had(call) for kill in phase.kills)]
    told = Counter(
        f"{'stream' if call.is_stream else 'call'}: {call.status}: {call.details}" for call in lost
    ).most_common(SHOWN_FAILURES)
    return Outcome(
        phase=phase.name,
        events=phase.events,
        calls=len(unary),
        calls_per_s=len(unary) / (phase.ended - phase.began),
        streams=len(calls) - len(unary),
        failed=sum(not call.is_stream for call in lost),
        cut=sum(call.is_stream for call in lost),
        in_flight=sum(kill.had(call) for kill in phase.kills for call in every),
        broken=len(broken),
        longest_pause_s=_longest_pause_s(unary, phase.began, pause_s),
        failures=[
            *(f"{count} × {text}" for text, count in told),
            *(f"broken: {_when(call, phase)}" for call in broken[:SHOWN_FAILURES]),
        ],
    )


def _when(call: Call, phase: Phase) -> str:
    """The call, and when it was, for who looks for the cause."""
    began, ended = call.started - phase.began, call.ended - phase.began
    text = f"{call.caller} from {began:.4f} to {ended:.4f} s: {call.status}: {call.details}"
    for kill in phase.kills:
        if kill.at <= call.ended < kill.gone + KILL_PAUSE_SECONDS:
            whose = "its" if call.caller in kill.callers else "another's"
            text += f"; {whose} worker was killed from {kill.at - phase.began:.4f} to {kill.gone - phase.began:.4f} s"
    return text


def _longest_pause_s(unary: Sequence[Call], began: float, pause_s: float) -> float:
    last: dict[str, float] = {}
    longest = 0.0
    for call in unary:
        if call.ok:
            longest = max(longest, call.ended - last.get(call.caller, began) - pause_s)
            last[call.caller] = call.ended
    return longest
