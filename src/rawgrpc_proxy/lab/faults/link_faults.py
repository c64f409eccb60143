"""What is done to a connection, whether at its beginning or at a place in a call."""

import enum
import random
from collections.abc import Callable, Sequence
from typing import Protocol

from rawgrpc_proxy.http2.frames import Setting, goaway, ping
from rawgrpc_proxy.http2.frames import settings as settings_frame
from rawgrpc_proxy.lab.faults.actions import (
    Action,
    Bandwidth,
    ChangeSettings,
    Cut,
    Delay,
    End,
    Goaway,
    HalfClose,
    Latency,
    PingFlood,
    Silence,
    Stall,
)
from rawgrpc_proxy.lab.faults.fault import Blow, Strike
from rawgrpc_proxy.lab.faults.places import AfterTime
from rawgrpc_proxy.lab.faults.shaping import Agenda, Pace, Shaper
from rawgrpc_proxy.lab.faults.way import Way

FLOOD = b"flood"
"""What a PING of a flood begins with; a number follows."""


class LinkEnd(enum.Enum):
    """How the connection to the peer ends, when all that was for it before is written."""

    FIN = enum.auto()
    RESET = enum.auto()


class Ends(Protocol):
    """The middle, as it is seen from here."""

    request: Way
    response: Way
    agenda: Agenda
    now: float
    engaged: bool
    last_id: int
    end: LinkEnd | None
    silent: bool

    @property
    def over(self) -> bool:
        """Whether nothing passes any more."""

    @property
    def to_peer_way(self) -> Way:
        """The one whose receiver is the peer."""

    def told(self, stream_id: int) -> Callable[[Strike], None]:
        """Whom to tell that a strike was done to this stream."""

    def set_window(self, way: Way, real: int, told: int | None) -> None:
        """The windows of this way's streams are `real`, and its sender was told so, or `told`."""

    def disown(self, last_id: int) -> None:
        """The client was told that streams above this are not processed."""


class LinkFaults:
    """Does it."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends

    def open(self, strikes: Sequence[Strike]) -> None:
        """The connection is there."""
        for strike in strikes:
            blow = Blow(strike, self._ends.told(0))
            where = strike.fault.where
            if isinstance(where, AfterTime):
                self._later(self._ends.now + where.seconds, blow)
            else:
                self._do(blow)

    def _later(self, at: float, blow: Blow) -> None:
        self._ends.agenda.add(at, lambda: self._do(blow))

    def _do(self, blow: Blow) -> None:
        ends = self._ends
        ways = (ends.request, ends.response)
        while blow.left and not ends.over:
            action, blow.left = blow.left[0], blow.left[1:]
            match action:
                case Delay(seconds=seconds, jitter=jitter):
                    blow.tell()
                    until = ends.now + seconds + jitter * blow.rng.random()
                    for way in ways:
                        _shaper(way, blow).hold(until)
                    if blow.left:
                        self._later(until, blow)
                    return
                case Latency(seconds=seconds, jitter=jitter):
                    for way in ways:
                        shaper = _shaper(way, blow)
                        shaper.latency, shaper.jitter = seconds, jitter
                case Bandwidth(bytes_per_s=bytes_per_s):
                    for way in ways:
                        _shaper(way, blow).pace = Pace(bytes_per_s)
                case Stall(seconds=for_s):
                    for way in ways:
                        way.account.stalled = True
                    if for_s is not None:
                        ends.agenda.add(ends.now + for_s, self._go_on)
                case _:
                    self.do(action, blow, ends.last_id)
            blow.tell()

    def _go_on(self) -> None:
        for way in (self._ends.request, self._ends.response):
            way.account.stalled = False
            way.settle()

    def do(self, action: Action, blow: Blow, stream_id: int) -> None:
        """Do one that is done to the connection as a whole; `stream_id` is the call's, or that of the last one."""
        ends = self._ends
        blow.tell()
        match action:
            case Goaway(code=code, below=below, debug=debug, towards=End.CLIENT):
                last = max(0, stream_id - 2 * below)
                ends.response.emit(goaway(last, code, debug.encode()))
                ends.disown(last)
            case Goaway(code=code, debug=debug):
                ends.request.emit(goaway(0, code, debug.encode()))
            case Cut(reset=reset):
                ends.end = LinkEnd.RESET if reset else LinkEnd.FIN
            case Silence():
                ends.silent = True
            case HalfClose():
                ends.to_peer_way.closed = True
            case ChangeSettings():
                self._change_settings(action)
            case PingFlood(count=count, towards=towards):
                way = ends.response if towards is End.CLIENT else ends.request
                way.pings_out += count
                for number in range(count):
                    way.emit(ping(FLOOD + number.to_bytes(3, "big")))
            case _:
                raise AssertionError(action)  # `StruckCall.do` does all others

    def _change_settings(self, action: ChangeSettings) -> None:
        ends = self._ends
        way = ends.response if action.towards is End.CLIENT else ends.request
        ends.engaged = True
        way.overrides.update(action.settings)
        if not way.settings_passed:
            return  # with the first ones
        values = dict(action.settings)
        window = values.get(Setting.INITIAL_WINDOW_SIZE)
        if window is not None:
            values[Setting.INITIAL_WINDOW_SIZE] = min(window, way.back.initial)
        way.emit(settings_frame(values))
        way.settings_out.append(True)
        if window is not None:
            ends.set_window(way.back, way.back.initial, window)


def _shaper(way: Way, blow: Blow) -> Shaper:
    if way.shaper is None:
        way.shaper = Shaper(random.Random(blow.rng.getrandbits(64)))  # noqa: S311  # to be the same again
    return way.shaper
