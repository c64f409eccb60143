"""Between a connection and its peer: what both send passes here, and faults are done to it. Pure: time is an argument.

    peer ◄──► its transport ◄──► Middle ◄──► what the connection has for a transport, not aware of it

    middle = Middle(link, striker, now)
    middle.from_peer(data, now); middle.from_connection(data, now)      # what has come
    middle.advance(now)                                                 # at `middle.next_at`
    middle.to_peer(now), middle.to_connection(now)                      # what is to be written
    middle.end                                                          # what becomes of the link itself

As long as no fault may strike a call all bytes pass as they are; frames are looked at only for what has to be known
later. From the first moment that one may, header blocks are encoded anew (`header_blocks.py`). Calls that no fault
concerns pass frame by frame; the others are in `struck_call.py`. Frames of a stream that has ended here are swallowed.

The invariants: of the two ends, only that which a fault is for gets what is against the rules of HTTP/2; neither sends
more than the other allows, nor is left without credit for what was taken out of its way (`flow_control.py`).
"""

import math
from collections.abc import Callable, Sequence

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.errors import ProtocolViolation, Side
from rawgrpc_proxy.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_STREAM,
    GOAWAY,
    HEADER,
    HEADER_BYTES,
    HEADERS,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Data,
    Setting,
    goaway,
    read_u32,
    rst_stream,
    window_update,
    without_padding,
)
from rawgrpc_proxy.lab.faults.actions import Action
from rawgrpc_proxy.lab.faults.fault import Blow, Strike, Striker
from rawgrpc_proxy.lab.faults.header_blocks import (
    Block,
    UnreadableBlockError,
    push_promise_frames,
)
from rawgrpc_proxy.lab.faults.link_faults import FLOOD, LinkEnd, LinkFaults
from rawgrpc_proxy.lab.faults.places import Part
from rawgrpc_proxy.lab.faults.settings_frames import changed, entries_of
from rawgrpc_proxy.lab.faults.shaping import Agenda
from rawgrpc_proxy.lab.faults.struck_call import StruckCall
from rawgrpc_proxy.lab.faults.way import Way
from rawgrpc_proxy.net.tapped import Link
from rawgrpc_proxy.observe.tell import report

_ID_MASK = 0x7FFFFFFF
_REQUEST_ENDED, _RESPONSE_ENDED = 1, 2
_BOTH_ENDED = _REQUEST_ENDED | _RESPONSE_ENDED
_U32_BYTES, _GOAWAY_BYTES = 4, 8


class Middle:
    """See above. `end` says how the link to the peer is to end, once what is for it has been written."""

    def __init__(self, link: Link, striker: Striker, now: float) -> None:
        self._link = link
        self._striker = striker
        self.now = now
        self.agenda = Agenda()
        self.request, self.response = Way(Part.REQUEST), Way(Part.RESPONSE)
        self.request.back, self.response.back = self.response, self.request
        downstream = link.side is Side.DOWNSTREAM
        self.to_peer_way = self.response if downstream else self.request
        self._from_peer_way = self.to_peer_way.back
        self.engaged = False
        """Whether header blocks are encoded anew, and all streams are known."""
        self.end: LinkEnd | None = None
        self.silent = False
        """Nothing passes any more; what comes is thrown away."""
        self.last_id = 0
        """Of the streams that the client has begun."""
        self._live: dict[int, int] = {}
        """Streams that have begun here and not ended, and which of their directions have."""
        self._calls: dict[int, StruckCall] = {}
        self._wider: list[Way] = []
        """Whose windows have changed: their calls go on when all that has come is read, not for each frame."""
        self._gone_above: int | None = None
        """The client was told that streams above this are not processed."""
        self._link_faults = LinkFaults(self)
        for way in (self.request, self.response):
            way.now = now
        self._link_faults.open(self._ask(lambda: striker.link_opened(link)))

    # ------------------------------------------------------------- in and out

    def from_peer(self, data: Data, now: float) -> None:
        """The peer has sent this."""
        self._feed(self._from_peer_way, data, now)

    def peer_ended(self, now: float) -> None:
        """The peer sends no more: what it has sent of a frame tells the connection whom it has to do with."""
        self._set_now(now)
        self._from_peer_way.raw = not self.over
        self._from_peer_way.emit_rest_if_raw()

    def from_connection(self, data: Data, now: float) -> None:
        """The connection has sent this."""
        self._feed(self.to_peer_way, data, now)

    def to_peer(self, now: float) -> list[Data]:
        """What the peer is to get now, behind what it was to get before."""
        return self.to_peer_way.take_out(now)

    def to_connection(self, now: float) -> list[Data]:
        """What the connection is to get now."""
        return self._from_peer_way.take_out(now)

    @property
    def next_at(self) -> float:
        """When `advance` is to be called; infinity: not before something comes."""
        if self.over:
            return math.inf
        return min(self.agenda.next_at, self.request.next_at, self.response.next_at)

    def advance(self, now: float) -> None:
        """It is so late."""
        self._set_now(now)
        if not self.over:
            self.agenda.call_due(now)
            self._let_calls_go_on()

    @property
    def over(self) -> bool:
        """Whether nothing passes any more."""
        return self.silent or self.end is not None

    @property
    def half_closed(self) -> bool:
        """Whether the peer gets nothing more, FIN excepted."""
        return self.to_peer_way.closed

    def held_for(self, *, peer: bool) -> int:
        """So many bytes are on their way to the peer, or to the connection, and wait for their time."""
        return (self.to_peer_way if peer else self._from_peer_way).held_bytes

    def unsent_to(self, *, peer: bool) -> int:
        """The same, and what waits for a window: nothing more is to be taken for that end where it is too much."""
        return (self.to_peer_way if peer else self._from_peer_way).unsent_bytes

    def _set_now(self, now: float) -> None:
        self.now = self.request.now = self.response.now = now

    def _feed(self, way: Way, data: Data, now: float) -> None:
        self._set_now(now)
        if self.silent or self.end is not None:
            return
        if way.raw:
            way.emit(data)
            return
        for is_frame, piece in way.cutter.cut(data):
            if is_frame and not way.raw:
                self._frame(way, piece)
            else:
                way.emit(piece)
            if self.over:  # since then
                return
        way.emit_rest_if_raw()
        self._let_calls_go_on()

    def _let_calls_go_on(self) -> None:
        while self._wider:
            way = self._wider.pop(0)
            for call in list(self._calls.values()):
                call.lane(way.part).run()

    # ----------------------------------------------------------------- frames

    def _frame(self, way: Way, frame: bytes) -> None:
        length_and_type, flags, stream_id = HEADER.unpack_from(frame)
        frame_type = length_and_type & 0xFF
        stream_id &= _ID_MASK
        if frame_type == DATA:
            self._data(way, frame, flags, stream_id)
        elif frame_type in (HEADERS, CONTINUATION, PUSH_PROMISE):
            self._block_frame(way, frame, frame_type, flags, stream_id)
        elif frame_type == WINDOW_UPDATE and len(frame) == HEADER_BYTES + _U32_BYTES:
            self._window_update(way, frame, stream_id)
        elif frame_type == SETTINGS:
            self._settings(way, frame, flags)
        elif frame_type == RST_STREAM and len(frame) == HEADER_BYTES + _U32_BYTES:
            self._rst_stream(way, frame, stream_id)
        elif frame_type == PING:
            if flags & ACK and way.back.pings_out and frame[HEADER_BYTES:].startswith(FLOOD):
                way.back.pings_out -= 1
            else:
                way.emit(frame)
        elif frame_type == GOAWAY and way is self.response and len(frame) >= HEADER_BYTES + _GOAWAY_BYTES:
            self._goaway(frame)
        elif not (self.engaged and (frame_type == PRIORITY or (stream_id and stream_id not in self._live))):
            way.emit(frame)

    def _data(self, way: Way, frame: bytes, flags: int, stream_id: int) -> None:
        size = len(frame) - HEADER_BYTES
        way.account.received += size
        if way.account.received > way.account.granted:
            # It would wait for windows here, where nobody ends the connection for it, and without bound.
            self._lose(way, frame)
            return
        call = self._calls.get(stream_id)
        if call is not None:
            try:
                content = without_padding(flags, memoryview(frame)[HEADER_BYTES:])
            except ProtocolViolation:
                self._lose(way, frame)
                return
            call.lane(way.part).data(content, size, bool(flags & END_STREAM))
        elif stream_id in self._live or not self.engaged:
            way.deliver(frame, size)
            if flags & END_STREAM:
                self._half_ended(way, stream_id)
        else:
            way.drop(size)

    def _half_ended(self, way: Way, stream_id: int) -> None:
        ended = self._live.get(stream_id)
        if ended is not None:
            ended |= _REQUEST_ENDED if way is self.request else _RESPONSE_ENDED
            if ended == _BOTH_ENDED:
                del self._live[stream_id]
            else:
                self._live[stream_id] = ended

    def _window_update(self, way: Way, frame: bytes, stream_id: int) -> None:
        increment = read_u32(frame, HEADER_BYTES) & _ID_MASK
        data_way = way.back
        if not stream_id:
            data_way.account.allowed += increment
            due = data_way.account.due()
            if due or not increment:
                way.emit(frame if due == increment else window_update(0, due))
            data_way.go_on()
            self._wider_now(data_way)
        elif stream_id in self._calls:
            self._calls[stream_id].lane(data_way.part).allow(increment)
        elif stream_id in self._live or not self.engaged:
            way.emit(frame)

    def _rst_stream(self, way: Way, frame: bytes, stream_id: int) -> None:
        call = self._calls.get(stream_id)
        if call is not None:
            code = read_u32(frame, HEADER_BYTES)
            if way is self.request:
                call.reset_by_client(code)
            else:
                call.reset_by_server(code)
        elif self._live.pop(stream_id, None) is not None or not self.engaged:
            way.deliver(frame)

    def _goaway(self, frame: bytes) -> None:
        last = read_u32(frame, HEADER_BYTES) & _ID_MASK
        if self._gone_above is not None and last > self._gone_above:
            code, debug = read_u32(frame, HEADER_BYTES + _U32_BYTES), frame[HEADER_BYTES + _GOAWAY_BYTES :]
            frame = goaway(self._gone_above, code, debug)
        self.response.emit(frame)
        for stream_id in [each for each in self._live if each > last]:
            call = self._calls.get(stream_id)
            if call is not None:
                call.end()
            self._live.pop(stream_id, None)

    # --------------------------------------------------------------- settings

    def _settings(self, way: Way, frame: bytes, flags: int) -> None:
        if flags & ACK:
            if not (way.back.settings_out and way.back.settings_out.popleft()):
                way.emit(frame)
            return
        payload = memoryview(frame)[HEADER_BYTES:]
        way.settings_passed = True
        way.settings_out.append(False)
        way.emit(changed(payload, way.overrides, way.back.initial) if way.overrides else frame)
        values = dict(entries_of(payload))
        way.back.max_frame = values.get(Setting.MAX_FRAME_SIZE, way.back.max_frame)
        told = way.overrides.get(Setting.INITIAL_WINDOW_SIZE)
        real = values.get(Setting.INITIAL_WINDOW_SIZE, way.back.initial)
        if told is not None or real != way.back.initial:
            self.set_window(way.back, real, told)

    def set_window(self, way: Way, real: int, told: int | None) -> None:
        """The window of this way's streams is `real`; its sender was told so, or that it is `told`, if that is less."""
        cap = None if told is None else min(told, real)
        more_allowed = real - way.initial
        more_granted = (real if cap is None else cap) - (way.initial if way.cap is None else way.cap)
        way.initial, way.cap = real, cap
        for stream_id in self._live:
            call = self._calls.get(stream_id)
            if call is not None:
                account = call.lane(way.part).account
                account.cap = cap
                account.allowed += more_allowed
                account.granted += more_granted
            elif more_allowed > more_granted:
                # Nobody keeps an account of it: it has what it had.
                way.back.emit(window_update(stream_id, more_allowed - more_granted))
        self._wider_now(way)

    def _wider_now(self, way: Way) -> None:
        if self._calls and way not in self._wider:
            self._wider.append(way)

    # ---------------------------------------------------------------- headers

    def _block_frame(self, way: Way, frame: bytes, frame_type: int, flags: int, stream_id: int) -> None:
        if way is self.request and not self.engaged and self._striker.active:
            self.engaged = True
        reader = way.reader
        try:
            block = reader.add(frame, frame_type, flags, stream_id, untouched=not self.engaged)
        except UnreadableBlockError:
            self._lose(way, *reader.unread(frame))
            return
        if reader.block is not None:
            if reader.block.untouched:
                way.deliver(frame)
        elif block is not None:
            if block.untouched:
                way.deliver(frame)
            self._headers(way, block)

    def _lose(self, way: Way, *frames: bytes) -> None:
        """It cannot be read from here on: whom it is for gets it as it is, and may say so."""
        way.raw = True
        for frame in frames:
            way.emit(frame)

    def _headers(self, way: Way, block: Block) -> None:
        headers, stream_id, end_stream = block.headers, block.stream_id, bool(block.flags & END_STREAM)
        if block.frame_type == PUSH_PROMISE:
            if not block.untouched:
                encoded = way.encode(headers)
                way.deliver(push_promise_frames(stream_id, block.promised, encoded, way.max_frame))
        elif way is self.request and stream_id > self.last_id:
            self._begin(block, end_stream)
        elif block.untouched:
            if end_stream:
                self._half_ended(way, stream_id)
        elif stream_id in self._calls:
            self._calls[stream_id].lane(way.part).headers(headers, end_stream)
        elif stream_id in self._live:
            way.deliver_headers(stream_id, headers, end_stream=end_stream)
            if end_stream:
                self._half_ended(way, stream_id)

    def _begin(self, block: Block, end_stream: bool) -> None:
        headers, stream_id = block.headers, block.stream_id
        self.last_id = stream_id
        if self._gone_above is not None and stream_id > self._gone_above:
            return
        self._live[stream_id] = 0
        if not block.untouched:
            strikes: Sequence[Strike] = ()
            if self._striker.active:
                method = next((value for name, value in headers if name == b":path"), b"").decode("latin-1")
                strikes = self._ask(lambda: self._striker.call_begun(self._link, method, headers))
            if strikes or self.request.cap is not None or self.response.cap is not None:
                call = self._calls[stream_id] = StruckCall(self, stream_id, strikes)
                call.request.headers(headers, end_stream)
                return
            self.request.deliver_headers(stream_id, headers, end_stream=end_stream)
        if end_stream:
            self._half_ended(self.request, stream_id)

    # ------------------------------------------------------------------ faults

    def _ask(self, ask: Callable[[], Sequence[Strike]]) -> Sequence[Strike]:
        try:
            return ask()
        except Exception as error:  # noqa: BLE001  # any code of a user's
            report(error, self._striker)
            return ()

    def told(self, stream_id: int) -> Callable[[Strike], None]:
        """Whom to tell that a strike was done to this stream."""

        def tell(strike: Strike) -> None:
            try:
                self._striker.struck(strike, self._link, stream_id)
            except Exception as error:  # noqa: BLE001  # any code of a user's
                report(error, self._striker)

        return tell

    def do_to_link(self, action: Action, blow: Blow, call: StruckCall) -> None:
        """Do this at a place of the call."""
        self._link_faults.do(action, blow, call.stream_id)

    def disown(self, last_id: int) -> None:
        """The client was told that streams above this are not processed."""
        above = self._gone_above
        self._gone_above = last_id if above is None else min(above, last_id)
        for stream_id in [each for each in self._live if each > last_id]:
            call = self._calls.get(stream_id)
            if call is not None:
                call.disown()
            else:
                del self._live[stream_id]
                self.request.deliver(rst_stream(stream_id, ErrorCode.CANCEL))

    def forget(self, call: StruckCall) -> None:
        """The call is over."""
        self._calls.pop(call.stream_id, None)
        self._live.pop(call.stream_id, None)
