"""A link as events: both directions of a connection, told frame by frame and message by message.

    view = LinkView(link, tell)                         # a LinkTap: give it what passes, it calls `tell(event)`
    server = Server(..., tap=Views(tell))               # one for each connection
    pool = Pool(tap=Views(tell))
    view.feed(Sender.CLIENT, data, at)                  # or by hand: from a file, with the times that are in it

Events are those of `events.py`, in this order: `FrameSeen`, then what the frame means: `StreamBegun`, `HeadersSeen`,
`MessageBegun`, `MessageSeen`, `HalfClosed`, `StreamEnded`. What the other frames say (SETTINGS, PING, …) is read by
`frame_details.details(frame)`. What `tell` raises goes through, which detaches a tap.

It never raises by itself, whatever the bytes, but tells `Unreadable`. Time is an argument, or that of the clock it is
given. The invariant: nothing is buffered but a frame that is not whole yet, a header block (`MAX_BLOCK_BYTES`), and of
each open stream five bytes and as much of a message as was asked for (`payload_bytes`). So memory is bounded by the
number of streams, of which it knows `MAX_STREAMS` at the most.
"""

import time
from collections.abc import Callable
from itertools import islice
from typing import Any, ClassVar

from rawgrpc_proxy.errors import ProtocolViolation, ProxyError, Side
from rawgrpc_proxy.http2.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PRIORITY_FLAG,
    PUSH_PROMISE,
    RST_STREAM,
    Data,
    read_u32,
    without_padding,
)
from rawgrpc_proxy.http2.headers import RawHeader
from rawgrpc_proxy.http2.position import Position
from rawgrpc_proxy.lab.events import (
    Event,
    FrameCut,
    FrameSeen,
    HalfClosed,
    HeadersKind,
    HeadersSeen,
    LinkClosed,
    LinkOpened,
    Sender,
    Stream,
    StreamBegun,
    StreamEnded,
    Unreadable,
)
from rawgrpc_proxy.lab.header_facts import MAX_METHOD, kind_of, learn, text_of
from rawgrpc_proxy.lab.link_parts import MAX_BLOCK_BYTES, Direction, FoundStream, OpenStream
from rawgrpc_proxy.lab.partial_message import Told
from rawgrpc_proxy.net.tapped import Link

Tell = Callable[[Event], None]
Clock = Callable[[], float]
CallOf = Callable[[int], str]
"""Of a stream that begins: which call it carries, `Stream.call`."""
Find = Callable[[float], FoundStream]
"""What there is to tell, at this time, of a stream that was open when the view began."""

MAX_STREAMS = 16384
"""Open ones, of a link. Beyond it the oldest is forgotten."""

_STREAMS_A_STEP = 32
"""Of those that were open before: telling of so many takes some two milliseconds."""
_WHY_LOST = "the call was open before, and it is not known where its messages begin"
_PRIORITY_BYTES = 5
_STREAM_ID_BYTES = 4
_ID_MASK = 0x7FFFFFFF
_RST_BYTES = 4
_GOAWAY_BYTES = 8


class LinkView:
    """Tells of one link: see above. With `payload_bytes` each message comes with so many of its first bytes."""

    def __init__(
        self,
        link: Link,
        tell: Tell,
        *,
        clock: Clock = time.time,
        payload_bytes: int = 0,
        call_of: CallOf | None = None,
    ) -> None:
        self.link = link
        self._call_of = call_of
        self._tell = tell
        self._clock = clock
        self._payload_bytes = payload_bytes
        self._client, self._server = Direction(Sender.CLIENT), Direction(Sender.SERVER)
        downstream = link.side is Side.DOWNSTREAM
        self._heard, self._said = (
            (Sender.CLIENT, Sender.SERVER) if downstream else (Sender.SERVER, Sender.CLIENT)
        )
        self._streams: dict[int, OpenStream] = {}
        self._to_join: dict[int, Find] = {}
        """Those that were open when it began, and are not told yet."""
        self._last_stream = 0
        self._begun = False

    # ---------------------------------------------------------------- LinkTap

    def received(self, data: Data) -> None:
        """From the peer."""
        self.feed(self._heard, data, self._clock())

    def sent(self, data: Data) -> None:
        """To the peer."""
        self.feed(self._said, data, self._clock())

    def closed(self) -> None:
        """The link is over."""
        self.close(self._clock())

    # ---------------------------------------------------------------- by hand

    def open(self, at: float) -> None:
        """Tell that there is a link, if that was not told yet."""
        if not self._begun:
            self._begun = True
            self._tell(LinkOpened(self.link, at))

    def join(self, position: Position, streams: dict[int, Find], at: float) -> None:
        """Begin in the middle of a link, where its session stands, with these streams open: see `join_more`."""
        self._begun = True
        self._tell(LinkOpened(self.link, at, joined=True, last_stream=position.last_stream_id))
        heard, said = self._direction(self._heard), self._direction(self._said)
        if position.peer_began:
            heard.go_on(position.peer_table)
        if position.we_began:
            said.go_on(position.own_table)
        if position.block is not None:
            heard.block_stream, ends_stream, block = position.block
            heard.block, heard.block_flags = bytearray(block), END_STREAM if ends_stream else 0
        self._last_stream = position.last_stream_id
        self._to_join = streams
        self.join_more()
        self.feed(self._heard, position.unread, at)

    def join_more(self) -> bool:
        """Tell of some of the streams that were open before, until there are no more: whether there are.

        One that something comes of is told before that.
        """
        at = self._clock()
        for number in list(islice(self._to_join, _STREAMS_A_STEP)):
            self._join_stream(number, at)
        return bool(self._to_join)

    def _join_stream(self, number: int, at: float) -> None:
        found = self._to_join.pop(number)(at)
        stream = found.open_stream.stream
        self._streams[number] = found.open_stream
        for sender in found.lost:
            stream.half(sender).is_grpc = False
        self._tell(StreamBegun(self.link, at, Sender.CLIENT, stream))
        self._tell(
            HeadersSeen(
                self.link, at, Sender.CLIENT, number, stream, HeadersKind.REQUEST, found.headers, 0,
                stream.request.closed,
            )
        )  # fmt: skip
        for sender in found.lost:
            self._tell(Unreadable(self.link, at, sender, number, "messages", _WHY_LOST))

    def _direction(self, sender: Sender) -> Direction:
        return self._client if sender is Sender.CLIENT else self._server

    def feed(self, sender: Sender, data: Data, at: float) -> None:
        """Tell of what this end has sent next."""
        self.open(at)
        direction = self._direction(sender)
        if direction.splitter is None:
            return
        try:
            for frame_type, flags, stream_id, payload in direction.splitter.split(data):
                if self._to_join and stream_id in self._to_join:
                    self._join_stream(stream_id, at)
                self._tell(
                    FrameSeen(self.link, at, sender, frame_type, flags, stream_id, len(payload), payload)
                )
                self._frame(direction, at, frame_type, flags, stream_id, payload)
        except ProxyError as error:
            # What users' code raises in `tell` is none of these, unless they mean to.
            direction.splitter = direction.decoder = direction.block = None
            self._tell(Unreadable(self.link, at, sender, 0, "link", str(error)))

    def close(self, at: float) -> None:
        """Tell that the link is over, and with it its streams."""
        self.open(at)
        for each in (self._client, self._server):
            if each.splitter is not None and (begun := each.splitter.begun) is not None:
                self._tell(FrameCut(self.link, at, each.sender, *begun))
        for number in list(self._to_join):
            self._join_stream(number, at)
        for open_stream in list(self._streams.values()):
            self._end(open_stream, at, None, None, None)
        self._tell(LinkClosed(self.link, at))

    # ----------------------------------------------------------------- frames

    def _frame(
        self, direction: Direction, at: float, frame_type: int, flags: int, stream_id: int, payload: Data
    ) -> None:
        sender = direction.sender
        if direction.block is not None and (
            frame_type != CONTINUATION or stream_id != direction.block_stream
        ):
            self._lose_headers(direction, at, "a header block is not followed by its CONTINUATION")
        read = self._READ.get(frame_type)
        if read is None:
            return
        try:
            read(self, direction, at, flags, stream_id, payload)
        except (_WrongLength, ProtocolViolation) as error:
            reason = str(error) or "its payload has another length than its type says"
            self._tell(Unreadable(self.link, at, sender, stream_id, "frame", reason))
            if frame_type in (HEADERS, PUSH_PROMISE):
                self._lose_headers(direction, at, reason)

    def _read_data(self, direction: Direction, at: float, flags: int, stream_id: int, payload: Data) -> None:
        open_stream = self._streams.get(stream_id)
        if open_stream is not None:
            self._data(open_stream, direction.sender, without_padding(flags, payload), at)
            if flags & END_STREAM:
                self._half_closed(open_stream, direction.sender, DATA, at)

    def _read_headers(
        self, direction: Direction, at: float, flags: int, stream_id: int, payload: Data
    ) -> None:
        block = without_padding(flags, payload)
        direction.promised = None
        if flags & PRIORITY_FLAG:
            block = block[_PRIORITY_BYTES:]
        self._begin_block(direction, at, stream_id, flags, block)

    def _read_continuation(
        self, direction: Direction, at: float, flags: int, _stream_id: int, payload: Data
    ) -> None:
        if direction.block is not None:
            self._add_to_block(direction, at, flags, payload)

    def _read_push_promise(
        self, direction: Direction, at: float, flags: int, stream_id: int, payload: Data
    ) -> None:
        promise = without_padding(flags, payload)
        if len(promise) < _STREAM_ID_BYTES:
            raise _WrongLength
        direction.promised = read_u32(promise) & _ID_MASK
        self._begin_block(direction, at, stream_id, flags & ~END_STREAM, promise[_STREAM_ID_BYTES:])

    def _read_rst_stream(
        self, direction: Direction, at: float, _flags: int, stream_id: int, payload: Data
    ) -> None:
        if len(payload) != _RST_BYTES:
            raise _WrongLength
        open_stream = self._streams.get(stream_id)
        if open_stream is not None:
            self._end(open_stream, at, direction.sender, RST_STREAM, read_u32(payload))

    def _read_goaway(
        self, direction: Direction, at: float, _flags: int, _stream_id: int, payload: Data
    ) -> None:
        if len(payload) < _GOAWAY_BYTES:
            raise _WrongLength
        if direction.sender is Sender.SERVER:
            self._disown(read_u32(payload) & _ID_MASK, read_u32(payload, 4), at)

    def _disown(self, last: int, code: int, at: float) -> None:
        for number in [each for each in self._to_join if each > last]:
            self._join_stream(number, at)
        for open_stream in [each for number, each in self._streams.items() if number > last]:
            self._end(open_stream, at, Sender.SERVER, GOAWAY, code)

    # ---------------------------------------------------------------- headers

    def _begin_block(self, direction: Direction, at: float, stream_id: int, flags: int, block: Data) -> None:
        direction.block = bytearray()
        direction.block_stream, direction.block_flags = stream_id, flags
        self._add_to_block(direction, at, flags, block)

    def _add_to_block(self, direction: Direction, at: float, flags: int, more: Data) -> None:
        block = direction.block
        assert block is not None
        if len(block) + len(more) > MAX_BLOCK_BYTES:
            self._lose_headers(direction, at, f"a header block has more than {MAX_BLOCK_BYTES} bytes")
            direction.block = block = bytearray()
        elif direction.decoder is not None:
            block += more
        if not flags & END_HEADERS:
            return
        direction.block = None
        headers: list[RawHeader] | None = None
        if direction.decoder is not None:
            try:
                headers = [
                    (bytes(field[0]), bytes(field[1])) for field in direction.decoder.decode(bytes(block))
                ]
            except Exception as error:  # noqa: BLE001  # hpack's own, and what Python raises in it
                self._lose_headers(direction, at, f"a header block cannot be decoded: {error}")
        self._headers(direction, at, headers, len(block))

    def _lose_headers(self, direction: Direction, at: float, reason: str) -> None:
        direction.block = None
        if direction.decoder is not None:
            direction.decoder = None
            self._tell(Unreadable(self.link, at, direction.sender, direction.block_stream, "headers", reason))

    def _headers(
        self, direction: Direction, at: float, headers: list[RawHeader] | None, block_bytes: int
    ) -> None:
        sender, number = direction.sender, direction.block_stream
        end_stream = bool(direction.block_flags & END_STREAM)
        if direction.promised is not None:
            if headers is not None:
                self._tell(
                    HeadersSeen(
                        self.link, at, sender, direction.promised, None, HeadersKind.PUSHED, headers, block_bytes,
                        end_stream,
                    )
                )  # fmt: skip
            return
        open_stream = self._streams.get(number)
        if open_stream is None and sender is Sender.CLIENT and number > self._last_stream:
            open_stream = self._begin(number, headers, at)
        kind = HeadersKind.LATE
        if open_stream is not None:
            kind = kind_of(open_stream.stream.half(sender), sender, headers)
            learn(open_stream.stream, sender, kind, headers)
        if headers is not None:
            stream = None if open_stream is None else open_stream.stream
            self._tell(
                HeadersSeen(self.link, at, sender, number, stream, kind, headers, block_bytes, end_stream)
            )
        if end_stream and open_stream is not None:
            self._half_closed(open_stream, sender, HEADERS, at)

    def _begin(self, number: int, headers: list[RawHeader] | None, at: float) -> OpenStream:
        self._last_stream = number
        if len(self._streams) + len(self._to_join) >= MAX_STREAMS:
            known: dict[int, Any] = self._to_join or self._streams
            oldest = next(iter(known))
            del known[oldest]
            reason = f"more than {MAX_STREAMS} streams are open: the oldest is forgotten"
            self._tell(Unreadable(self.link, at, Sender.CLIENT, oldest, "stream", reason))
        method = text_of(headers, b":path", MAX_METHOD) or ""
        call = "" if self._call_of is None else self._call_of(number)
        open_stream = self._streams[number] = OpenStream(Stream(number, at, method, call=call))
        self._tell(StreamBegun(self.link, at, Sender.CLIENT, open_stream.stream))
        return open_stream

    # --------------------------------------------------------------- messages

    def _data(self, open_stream: OpenStream, sender: Sender, data: Data, at: float) -> None:
        half = open_stream.stream.half(sender)
        half.data_bytes += len(data)
        if half.is_grpc:
            told = Told(self.link, sender, open_stream.stream, self._tell)
            open_stream.message(sender).feed(data, at, told, self._payload_bytes)

    # -------------------------------------------------------------------- end

    def _half_closed(self, open_stream: OpenStream, sender: Sender, frame_type: int, at: float) -> None:
        stream = open_stream.stream
        half = stream.half(sender)
        if half.closed:
            return
        half.closed = True
        missing = open_stream.message(sender).missing_bytes
        if sender is Sender.SERVER:
            open_stream.answered = frame_type
        self._tell(HalfClosed(self.link, at, sender, stream, frame_type, missing))
        if stream.request.closed and stream.response.closed:
            self._end(open_stream, at, None, None, None)

    def _end(
        self,
        open_stream: OpenStream,
        at: float,
        sender: Sender | None,
        frame_type: int | None,
        code: int | None,
    ) -> None:
        """It is over, by this frame or, without one, by END_STREAM or the end of the link."""
        stream = open_stream.stream
        self._streams.pop(stream.id, None)
        reset_by, reset_code = (sender, code) if frame_type == RST_STREAM else (None, None)
        if open_stream.answered is not None:
            sender, frame_type, code = Sender.SERVER, open_stream.answered, None
        self._tell(StreamEnded(self.link, at, sender, stream, frame_type, code, reset_by, reset_code))

    _READ: ClassVar = {
        DATA: _read_data,
        HEADERS: _read_headers,
        CONTINUATION: _read_continuation,
        PUSH_PROMISE: _read_push_promise,
        RST_STREAM: _read_rst_stream,
        GOAWAY: _read_goaway,
    }


class _WrongLength(Exception):
    """A frame has not the length that its type has."""
