"""A call that faults concern: its two lanes, and what is done to it."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.http2.frames import frame_header, rst_stream
from rawgrpc_proxy.lab.faults.actions import (
    OF_MESSAGES,
    OF_TRAILERS,
    Action,
    AnswerHttp,
    AnswerStatus,
    Bandwidth,
    CutMessage,
    Delay,
    DoubleMessage,
    End,
    FlipBits,
    Latency,
    PadFrame,
    Reset,
    SplitFrame,
    Stall,
    SwapMessages,
    TrailersBeforeData,
    UnknownFrame,
)
from rawgrpc_proxy.lab.faults.answers import START, http_response, trailers
from rawgrpc_proxy.lab.faults.fault import Blow, Strike
from rawgrpc_proxy.lab.faults.lane import Lane
from rawgrpc_proxy.lab.faults.outflow import DATA, FIELDS, TRAILERS
from rawgrpc_proxy.lab.faults.places import (
    AfterMessage,
    AfterTime,
    AtConnect,
    AtTrailers,
    BeforeHeaders,
    OnFrame,
    Part,
)
from rawgrpc_proxy.lab.faults.shaping import Agenda, Appointment, Pace
from rawgrpc_proxy.lab.faults.way import Way

_ENDS = (AnswerStatus, AnswerHttp, Reset)


class Links(Protocol):
    """The middle, as a call sees it."""

    request: Way
    response: Way
    agenda: Agenda
    now: float

    @property
    def over(self) -> bool:
        """Whether nothing passes any more."""

    def forget(self, call: "StruckCall") -> None:
        """The call is over."""

    def do_to_link(self, action: Action, blow: Blow, call: "StruckCall") -> None:
        """Do this to the connection, at a place of the call."""

    def told(self, stream_id: int) -> Callable[[Strike], None]:
        """Whom to tell that a strike was done to this stream."""


class StruckCall:
    """From its request's headers to its end."""

    def __init__(self, links: Links, stream_id: int, strikes: Sequence[Strike]) -> None:
        self._links = links
        self.stream_id = stream_id
        self._has_ended = False
        self.request = Lane(self, links.request)
        self.response = Lane(self, links.response)
        self._appointments: list[Appointment] = []
        self._wakes: dict[Lane, tuple[float, Appointment]] = {}
        self._answered = False
        for strike in strikes:
            self._arm(Blow(strike, links.told(stream_id)))

    @property
    def over(self) -> bool:
        """Whether nothing of it passes any more: it has ended, or its connection has."""
        return self._has_ended or self._links.over

    def lane(self, part: Part) -> Lane:
        """The lane of this direction."""
        return self.request if part is Part.REQUEST else self.response

    @property
    def server_knows(self) -> bool:
        """Whether its server has seen the call."""
        return self.request.out.headers_out

    # ---------------------------------------------------------------- before

    def _arm(self, blow: Blow) -> None:
        where = blow.strike.fault.where
        assert not isinstance(where, AtConnect)
        lane = self.lane(where.of)
        if isinstance(where, AfterMessage):
            # Done to this very message: it has to be known where that begins.
            for action in blow.left:
                if isinstance(action, OF_MESSAGES):
                    lane.messages.by_number.setdefault(where.number, []).append((blow, action))
            blow.left = tuple(each for each in blow.left if not isinstance(each, OF_MESSAGES))
        if isinstance(where, AtTrailers) and any(isinstance(each, TrailersBeforeData) for each in blow.left):
            # What is before them has to be held back.
            lane.out.trailers_first = blow
            blow.left = tuple(each for each in blow.left if not isinstance(each, TrailersBeforeData))
        if where.of is Part.REQUEST and isinstance(where, BeforeHeaders | OnFrame):
            first_wait = _index(blow.left, (Delay, Latency))
            blow.behind_request_headers = first_wait < len(blow.left) and not any(
                isinstance(each, _ENDS) for each in blow.left
            )
        if isinstance(where, AfterTime):
            self._at(self._links.now + where.seconds, lambda: self.do(blow, lane))
        elif blow.left:
            lane.places.append(blow)

    def _at(self, at: float, call: Callable[[], None]) -> Appointment:
        appointment = self._links.agenda.add(at, call)
        self._appointments.append(appointment)
        return appointment

    # ------------------------------------------------------------- doing it

    def do(self, blow: Blow, lane: Lane) -> None:
        """Do what is left of it."""
        while blow.left and not self.over:
            action, blow.left = blow.left[0], blow.left[1:]
            match action:
                case Delay(seconds=seconds, jitter=jitter):
                    blow.tell()
                    until = self._links.now + seconds + jitter * blow.rng.random()
                    lane.out.hold_until = max(lane.out.hold_until, until)
                    if blow.left:
                        self._at(until, lambda: self.do(blow, lane))
                    break
                case AnswerStatus():
                    if not self.response.out.ended:
                        blow.tell()
                        fields = trailers(action)
                        begun = self.response.out.headers_out
                        self._answer([(TRAILERS, fields if begun else START + fields)])
                case AnswerHttp():
                    if not self.response.out.headers_out:
                        blow.tell()
                        headers, body = http_response(action)
                        self._answer([(FIELDS, headers), (DATA, body)] if body else [(FIELDS, headers)])
                case Reset(code=code, towards=towards):
                    blow.tell()
                    self._reset(code, towards)
                case _ if self._do_in_lane(action, blow, lane):
                    pass
                case _:
                    self._links.do_to_link(action, blow, self)
        if not self.over:
            lane.run()

    def _do_in_lane(self, action: Action, blow: Blow, lane: Lane) -> bool:
        response = self.response
        match action:
            case Latency(seconds=seconds, jitter=jitter):
                lane.latency = lambda: seconds + jitter * blow.rng.random()
                lane.out.hold_until = max(lane.out.hold_until, self._links.now + lane.latency())
            case Bandwidth(bytes_per_s=bytes_per_s):
                lane.out.pace = Pace(bytes_per_s)
            case Stall(seconds=seconds):
                lane.account.stalled = True
                if seconds is not None:
                    self._at(self._links.now + seconds, lambda: self._go_on(lane))
            case SplitFrame(at=at, frame="DATA"):
                lane.out.split_at, lane.out.splits_all = at, action.all
            case SplitFrame(at=at):
                lane.out.split_headers_at, lane.out.splits_all_headers = at, action.all
            case PadFrame(bytes=padding):
                lane.out.padding, lane.out.pads_all = padding, action.all
            case UnknownFrame(type=frame_type, payload=payload):
                frame = frame_header(frame_type, 0, self.stream_id, len(payload)) + payload
                lane.way.deliver(frame)
            case CutMessage() | DoubleMessage() | SwapMessages() | FlipBits():
                lane.messages.for_next.append((blow, action))
                return True  # told when it is done
            case TrailersBeforeData():
                response.out.trailers_first = blow
                return True
            case _ if isinstance(action, OF_TRAILERS):
                response.out.trailer_faults.append((blow, action))
                return True
            case _:
                return False
        blow.tell()
        return True

    def _go_on(self, lane: Lane) -> None:
        lane.account.stalled = False
        lane.settle()
        lane.run()

    def _answer(self, items: list[tuple[int, Any]]) -> None:
        if self._answered:
            return
        self._answered = True
        self._cancel_at_server()
        self.request.close()
        self.response.close()
        for number, (kind, content) in enumerate(items, 1):
            self.response.out.add(kind, content, end=number == len(items))
        self.response.out.hold_until = self._links.now
        self.response.run()

    def _cancel_at_server(self, code: int = ErrorCode.CANCEL) -> None:
        if self.server_knows and not (self.request.out.ended and self.response.ended_in):
            self.request.way.deliver(rst_stream(self.stream_id, code))

    def _reset(self, code: int, towards: End) -> None:
        to_client, to_server = (code, ErrorCode.CANCEL) if towards is End.CLIENT else (ErrorCode.CANCEL, code)
        if towards is End.SERVER and self.server_knows:
            self.request.way.deliver(rst_stream(self.stream_id, to_server))
        elif towards is End.CLIENT:
            self._cancel_at_server()
        self.response.way.deliver(rst_stream(self.stream_id, to_client))
        self.end()

    # ---------------------------------------------------------------- its end

    def reset_by_client(self, code: int) -> None:
        """The client's RST_STREAM: it waits for nothing."""
        if self.server_knows and not self.request.shut:
            self.request.way.deliver(rst_stream(self.stream_id, code))
        self.end()

    def reset_by_server(self, code: int) -> None:
        """The server's: it waits for what the server has sent before."""
        self.request.close()
        self.response.reset(code)

    def flooded(self) -> None:
        """Too much of it waits."""
        self._reset(ErrorCode.ENHANCE_YOUR_CALM, End.CLIENT)

    def ended(self) -> None:
        """A direction is complete, for its receiver."""
        request, response = self.request, self.response
        if self.over or not response.is_done:
            return
        if request.shut:
            if not request.ended_in:
                # RFC 9113 §8.1: the rest of the request is not wanted.
                response.way.deliver(rst_stream(self.stream_id, ErrorCode.NO_ERROR))
            self.end()
        elif request.is_done:
            self.end()

    def disown(self) -> None:
        """The client was told that it is not processed; its server hears that it is over."""
        self._cancel_at_server()
        self.end()

    def end(self) -> None:
        """Nothing of it passes any more."""
        if not self._has_ended:
            self._has_ended = True
            for appointment in self._appointments:
                appointment.cancel()
            for _, appointment in self._wakes.values():
                appointment.cancel()
            self.request.close()
            self.response.close()
            self._links.forget(self)

    def wake(self, at: float, lane: Lane) -> None:
        """Have the lane go on then."""
        known = self._wakes.get(lane)
        if known is not None:
            if known[0] <= at and known[1].call is not None:
                return
            known[1].cancel()
        self._wakes[lane] = (at, self._links.agenda.add(at, lane.run))


def _index(actions: Sequence[Action], kinds: tuple[type, ...]) -> int:
    return next((index for index, each in enumerate(actions) if isinstance(each, kinds)), len(actions))
