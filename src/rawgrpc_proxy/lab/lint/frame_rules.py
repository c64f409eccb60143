"""Rules for single frames and for the connection: lengths, streams, windows, SETTINGS, PING, GOAWAY.

Two ends talk past each other for as long as a frame travels. So where a frame may have crossed another one nothing is
found: a sender is held to what it has said itself, and to the most lenient of what it may know of the other.
"""

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.config import DEFAULT_WINDOW
from rawgrpc_proxy.http2 import frames as h2
from rawgrpc_proxy.http2.frames import Setting
from rawgrpc_proxy.lab.events import FrameCut, FrameSeen, Sender
from rawgrpc_proxy.lab.frame_details import (
    GoAway,
    Malformed,
    Ping,
    Priority,
    PushPromise,
    RstStream,
    Settings,
    WindowUpdate,
    details,
    frame_name,
)
from rawgrpc_proxy.lab.lint.state import LinkState, Pending, SentPing

SETTINGS_ACK_S = 10.0
PING_ACK_S = 20.0
KEEPALIVE_S = 9.0
"""gRFC A8 has 10 s as the least; a second is for the way."""
KEEPALIVE_DEFAULT_S = 290.0
"""Servers allow a PING in 5 min, unless they are told otherwise."""
MAX_STRIKES = 2
"""As gRPC's servers count."""

_MAX_WINDOW = 2**31 - 1
_OF_CONNECTION = (h2.SETTINGS, h2.PING, h2.GOAWAY)
_OF_STREAM = (h2.DATA, h2.HEADERS, h2.PRIORITY, h2.RST_STREAM, h2.PUSH_PROMISE, h2.CONTINUATION)
_PADDED = (h2.DATA, h2.HEADERS, h2.PUSH_PROMISE)
_WITH_BLOCK = (h2.HEADERS, h2.PUSH_PROMISE, h2.CONTINUATION)
_ERROR_NAMES = {code.value: code.name for code in ErrorCode}
_RANGES: dict[int, tuple[int, int]] = {
    Setting.ENABLE_PUSH: (0, 1),
    Setting.INITIAL_WINDOW_SIZE: (0, _MAX_WINDOW),
    Setting.MAX_FRAME_SIZE: (2**14, 2**24 - 1),
}


class _FrameJudge:
    """One frame of one link."""

    __slots__ = ("at", "end", "event", "id", "other", "sender", "state")

    def __init__(self, state: LinkState, event: FrameSeen) -> None:
        self.state, self.event = state, event
        self.sender, self.id, self.at = event.sender, event.stream_id, event.at
        self.end, self.other = state.end(event.sender), state.other(event.sender)

    def say(self, rule: str, seen: str, stream_id: int | None = None) -> None:
        self.state.frame_found = True
        self.state.say(rule, self.sender, self.at, self.id if stream_id is None else stream_id, seen)

    def judge(self) -> None:
        self._block()
        if self._form():
            self._state()
            self._meaning()

    # ------------------------------------------------------------------- form

    def _block(self) -> None:
        """Header blocks come in one piece (RFC 9113 §6.10)."""
        event, open_block = self.event, self.end.block_stream
        goes_on, self.end.may_be_in_block = self.end.may_be_in_block, False
        if open_block is not None and (event.type != h2.CONTINUATION or self.id != open_block):
            self.say(
                "continuation-interleaved",
                f"{frame_name(event.type)} of stream {self.id} is in the header block of stream {open_block}",
                open_block,
            )
            self.end.block_stream = None
        elif open_block is None and event.type == h2.CONTINUATION and not goes_on:
            self.say("continuation-unexpected", "CONTINUATION does not follow HEADERS without END_HEADERS")
            return
        if event.type in _WITH_BLOCK:
            self.end.block_stream = None if event.flags & h2.END_HEADERS else self.id

    def _form(self) -> bool:
        """Whether it is well-formed enough to mean something."""
        event = self.event
        name = frame_name(event.type)
        judge_length(self.state, event)
        if self.id and event.type in _OF_CONNECTION:
            self.say("frame-stream-id", f"{name} is on stream {self.id}")
            return False
        if not self.id and event.type in _OF_STREAM:
            self.say("frame-stream-id", f"{name} is on stream 0")
            return False
        if event.type in _PADDED and event.flags & h2.PADDED:
            if not event.length:
                self.say("frame-size", f"{name} is padded, and has no room for the pad length")
                return False
            if event.payload[0] >= event.length:
                self.say(
                    "padding-too-long", f"{name} of {event.length} bytes has {event.payload[0]} of padding"
                )
                return False
        return True

    # ------------------------------------------------------------------ state

    def _state(self) -> None:
        """Frames and the streams they are on (RFC 9113 §5.1). Of HEADERS, `call_rules.py` says more."""
        kind, stream_id = self.event.type, self.id
        name = frame_name(kind)
        answers = self.sender is Sender.SERVER and kind in (h2.DATA, h2.HEADERS)
        if answers:
            self.other.ping_at, self.other.strikes = None, 0
            if stream_id > self.end.goaway_last:
                self.say(
                    "goaway-stream-processed",
                    f"{name} on stream {stream_id} behind a GOAWAY with {self.end.goaway_last:.0f}",
                )
                return
        if kind not in (h2.DATA, h2.RST_STREAM, h2.WINDOW_UPDATE) or not stream_id:
            return
        state = self.state.streams.get(stream_id)
        if state is None:
            self._not_open(kind)
        elif kind == h2.DATA:
            if state.stream.half(self.sender).closed:
                self.say("frame-on-closed-stream", f"{name} behind END_STREAM")
            elif answers and not state.stream.response.headers and not state.server.mid_stream:
                self.say("data-before-headers", f"DATA of {self.event.length} bytes before HEADERS")
                state.server.mid_stream = True

    def _not_open(self, kind: int) -> None:
        name, state = frame_name(self.event.type), self.state
        if is_idle(state, self.id):
            self.say("frame-on-idle-stream", f"{name} on stream {self.id}, which is not open yet")
            return
        closed = state.closed.get(self.id)
        if closed is None:
            return
        _, ended_by, complete = closed
        if kind == h2.DATA and self.sender in ended_by:
            self.say("frame-on-closed-stream", f"{name} behind the end of the stream")
        elif kind == h2.RST_STREAM and self.sender is Sender.SERVER and complete and self.event.length == 4:
            code = h2.read_u32(self.event.payload)
            if code != ErrorCode.STREAM_CLOSED:  # that answers what the client has sent too late (§5.1)
                reset_after_response(state, self.at, self.id, code)

    # ---------------------------------------------------------------- meaning

    def _meaning(self) -> None:
        event = self.event
        if event.type == h2.DATA:
            self._data()
            return
        if event.type == h2.HEADERS:
            self._dependency_of_headers()
            return
        match details(event):
            case Malformed(reason):
                self.say("frame-size", reason)
            case Settings() as settings:
                self._settings(settings)
            case Ping() as ping:
                self._ping(ping)
            case GoAway() as goaway:
                self._goaway(goaway)
            case WindowUpdate(increment):
                self._window_update(increment)
            case Priority(depends_on=depends_on) if depends_on == self.id:
                self.say("priority-self-dependency", f"PRIORITY makes stream {self.id} depend on itself")
            case PushPromise(promised):
                self._push_promise(promised)
            case RstStream() | _:
                pass

    def _dependency_of_headers(self) -> None:
        event = self.event
        if not event.flags & h2.PRIORITY_FLAG:
            return
        start = 1 if event.flags & h2.PADDED else 0
        if event.length < start + 5:
            self.say("frame-size", f"HEADERS with PRIORITY has {event.length} bytes")
        elif h2.read_u32(event.payload, start) & _MAX_WINDOW == self.id:
            self.say("priority-self-dependency", f"HEADERS make stream {self.id} depend on itself")

    def _data(self) -> None:
        end, length, at = self.end, self.event.length, self.at
        end.used += length
        if end.used >= DEFAULT_WINDOW and end.shut_at is None:
            end.shut_at = at
        state = self.state.streams.get(self.id)
        if end.used > DEFAULT_WINDOW:
            self.say(
                "flow-control-overrun",
                f"DATA is {end.used - DEFAULT_WINDOW:.0f} bytes beyond the connection's window",
            )
        if state is None:
            return
        flow = state.flow(self.sender)
        flow.used += length
        if flow.used > (limit := self.other.most(Setting.INITIAL_WINDOW_SIZE)) and end.used <= DEFAULT_WINDOW:
            self.say(
                "flow-control-overrun", f"DATA is {flow.used - limit:.0f} bytes beyond the stream's window"
            )
        if flow.used < self.other.least(Setting.INITIAL_WINDOW_SIZE):
            flow.shut_at = None
        elif flow.shut_at is None:
            flow.shut_at = at

    def _window_update(self, increment: int) -> None:
        if not increment:
            self.say("window-update-zero", "WINDOW_UPDATE by 0")
            return
        if not self.id:
            self.other.used -= increment
            if self.other.used < DEFAULT_WINDOW:
                self.other.shut_at = None
            window: float = DEFAULT_WINDOW - self.other.used
        else:
            state = self.state.streams.get(self.id)
            if state is None:
                return
            flow = state.flow(self.other.sender)
            flow.used -= increment
            window = self.end.least(Setting.INITIAL_WINDOW_SIZE) - flow.used
            if window > 0:
                flow.shut_at = None
        if window > _MAX_WINDOW:
            self.say("window-overflow", f"WINDOW_UPDATE makes a window of {window:.0f} bytes")

    def _settings(self, settings: Settings) -> None:
        if settings.ack:
            if settings.entries:
                self.say("frame-size", f"a SETTINGS ACK has {self.event.length} bytes")
            elif self.other.pending:
                self.other.in_force.update(self.other.pending.popleft().values)
            elif self.other.forgotten:
                self.other.forgotten -= 1
            elif not self.state.joined:
                self.say("settings-ack-unexpected", "a SETTINGS ACK, and no SETTINGS that it is for")
            return
        for setting, value in settings.entries:
            low, high = _RANGES.get(setting, (0, 2**32 - 1))
            if setting == Setting.ENABLE_PUSH and self.sender is Sender.SERVER:
                high = 0
            if not low <= value <= high:
                self.say("settings-value", f"SETTINGS_{Setting(setting).name} is {value}")
        known: dict[int, int] = {}
        if not self.state.joined:  # else an ACK may be for other SETTINGS, of before
            known = {setting: value for setting, value in settings.entries if setting in self.end.in_force}
        if len(self.end.pending) == self.end.pending.maxlen:
            self.end.forgotten += 1
        else:
            self.end.pending.append(Pending(self.at, known))

    def _ping(self, ping: Ping) -> None:
        end, other = self.end, self.other
        if ping.ack:
            answered = next((each for each in other.pings if each.opaque == ping.opaque), None)
            if answered is not None:
                other.pings.remove(answered)
            elif len(other.pings) < (other.pings.maxlen or 0) and not self.state.joined:
                self.say("ping-ack-unexpected", f"PING ACK {ping.opaque.hex()}, and no PING with these bytes")
            return
        end.pings.append(SentPing(self.at, ping.opaque))
        if self.sender is not Sender.CLIENT:
            return
        last, end.ping_at = end.ping_at, self.at
        if last is None or self.at - last >= KEEPALIVE_DEFAULT_S:
            return
        end.strikes += 1
        if end.strikes > MAX_STRIKES:
            rule = "keepalive-too-frequent" if self.at - last < KEEPALIVE_S else "keepalive-below-default"
            self.say(rule, f"PING {self.at - last:.3g} s behind the last one, without data between")

    def _goaway(self, goaway: GoAway) -> None:
        last = goaway.last_stream_id
        if last > self.end.goaway_last:
            self.say("goaway-id-increased", f"GOAWAY with {last}, behind one with {self.end.goaway_last:.0f}")
        self.end.goaway_last = min(last, self.end.goaway_last)
        if self.end.goaway_at is None:
            self.end.goaway_at = self.at

    def _push_promise(self, promised: int) -> None:
        self.end.promised = max(promised, self.end.promised)
        if self.sender is Sender.CLIENT:
            self.say("push-promise", "a client sends PUSH_PROMISE")
        elif not self.other.in_force[Setting.ENABLE_PUSH]:
            self.say("push-promise", "PUSH_PROMISE, and the client has SETTINGS_ENABLE_PUSH 0")


def judge_frame(state: LinkState, event: FrameSeen) -> None:
    """Hold one frame against the rules. To be called while its payload is valid."""
    state.frame_found = False
    judge_silence(state, event.sender, event.at)
    _FrameJudge(state, event).judge()


def judge_length(state: LinkState, event: FrameSeen | FrameCut) -> None:
    """Whether the other end takes a frame of this length: it need not read it to its end."""
    name, limit = frame_name(event.type), state.other(event.sender).most(Setting.MAX_FRAME_SIZE)
    if event.length > limit:
        state.frame_found = True
        seen = f"{name} has {event.length} bytes, the peer's limit is {limit:.0f}"
        state.say("frame-too-large", event.sender, event.at, event.stream_id, seen)


def judge_silence(state: LinkState, sender: Sender, at: float) -> None:
    """What this end should have answered by now."""
    other = state.other(sender)
    if other.pending and at - other.pending[0].at > SETTINGS_ACK_S and not other.pending[0].was_told:
        other.pending[0].was_told = True
        state.say(
            "settings-not-acknowledged",
            sender,
            at,
            0,
            f"no ACK for SETTINGS since {at - other.pending[0].at:.0f} s",
        )
    if other.pings and at - other.pings[0].at > PING_ACK_S and not other.pings[0].was_told:
        other.pings[0].was_told = True
        state.say(
            "ping-not-acknowledged", sender, at, 0, f"no ACK for a PING since {at - other.pings[0].at:.0f} s"
        )


def reset_after_response(state: LinkState, at: float, stream_id: int, code: int) -> None:
    """A server resets a stream whose response is complete: with NO_ERROR it may (RFC 9113 §8.1)."""
    if code != ErrorCode.NO_ERROR:
        name = _ERROR_NAMES.get(code, f"{code:#x}")
        state.say(
            "reset-after-response", Sender.SERVER, at, stream_id, f"RST_STREAM {name} behind END_STREAM"
        )


def is_idle(state: LinkState, stream_id: int) -> bool:
    """Whether nobody has opened this stream, nor a later one of its kind."""
    if stream_id <= state.last_stream:
        return False
    return stream_id % 2 == 1 or stream_id > state.server.promised
