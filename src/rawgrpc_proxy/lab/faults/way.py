"""One direction of a connection as the middle passes it on: what is read, its window, and what waits to go out."""

import math
from collections import deque

from rawgrpc_proxy.http2.frames import (
    DATA,
    END_STREAM,
    PADDED,
    Data,
    Setting,
    frame_header,
    window_update,
)
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.lab.faults.flow_control import DEFAULT_WINDOW, Account
from rawgrpc_proxy.lab.faults.header_blocks import BlockReader, header_frames, write_block
from rawgrpc_proxy.lab.faults.places import Part
from rawgrpc_proxy.lab.faults.shaping import Shaper
from rawgrpc_proxy.lab.frame_cutter import FrameCutter

_DEFAULT_FRAME = 2**14


class Way:
    """From the sender of this direction to its receiver. `out` is what the receiver's transport is to get."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.back: Way = self
        """The other direction."""
        self.now = 0.0
        self.cutter = FrameCutter(expect_preface=part is Part.REQUEST)
        self.reader = BlockReader(of_requests=part is Part.REQUEST)
        self.raw = False
        """What comes cannot be read (any more), and is passed on as it is."""
        self.out: list[Data] = []
        self.closed = False
        """The receiver gets nothing more."""
        self.shaper: Shaper | None = None
        self.account = Account(DEFAULT_WINDOW, DEFAULT_WINDOW)
        self.initial = DEFAULT_WINDOW
        """Of streams, as the receiver has set it."""
        self.cap: int | None = None
        """What the sender was told instead."""
        self.max_frame = _DEFAULT_FRAME
        """Of the receiver."""
        self.overrides: dict[Setting, int] = {}
        """For the next SETTINGS that go this way, and all behind them."""
        self.settings_passed = False
        """Whether any have gone this way."""
        self.settings_out: deque[bool] = deque()
        """SETTINGS that have gone this way and are not acknowledged: whether they are made up."""
        self.pings_out = 0
        """PINGs that were made up and are not answered."""
        self.waiting: deque[tuple[bytes, int]] = deque()
        """Frames of streams that wait for the connection's window, and how much of it each takes."""
        self._waiting_bytes = 0

    # ------------------------------------------------------------------ out

    def emit(self, data: Data) -> None:
        """To the receiver, behind all that was emitted before."""
        if self.closed:
            return
        if self.shaper is None:
            self.out.append(data)
        else:
            self.shaper.push(data, self.now)

    def emit_rest_if_raw(self) -> None:
        """If what comes cannot be read any more, what has come in part is passed on as well."""
        if self.raw:
            for _, piece in self.cutter.rest():
                self.emit(piece)

    def deliver(self, frame: bytes, flow: int = 0) -> None:
        """A frame of a stream, which takes `flow` bytes of the connection's window: it may have to wait for that."""
        if self.waiting or (flow and flow > self.account.room):
            self.waiting.append((frame, flow))
            self._waiting_bytes += len(frame)
        else:
            self.account.delivered += flow
            self.emit(frame)

    def go_on(self) -> None:
        """Deliver what had to wait, as far as there is room."""
        waiting, account = self.waiting, self.account
        while waiting and (not waiting[0][1] or waiting[0][1] <= account.room):
            frame, flow = waiting.popleft()
            self._waiting_bytes -= len(frame)
            account.delivered += flow
            self.emit(frame)

    @property
    def room(self) -> int:
        """So much DATA may be delivered at once."""
        return 0 if self.waiting else self.account.room

    def deliver_headers(
        self, stream_id: int, headers: Headers, *, end_stream: bool, first_bytes: int | None = None
    ) -> None:
        """A header list, encoded anew."""
        self.deliver(
            header_frames(
                stream_id,
                self.encode(headers),
                end_stream=end_stream,
                max_frame=self.max_frame,
                first_bytes=first_bytes,
            )
        )

    def encode(self, headers: Headers) -> bytes:
        """The block for this list, which has to be sent."""
        block = self.reader.size_update + write_block(headers)
        self.reader.size_update = b""
        return block

    def deliver_data(
        self, stream_id: int, data: Data, *, end_stream: bool, padding: int | None = None
    ) -> int:
        """A DATA frame. Answers how much it takes of windows."""
        flags = END_STREAM if end_stream else 0
        payload = bytes(data)
        if padding is not None:
            flags |= PADDED
            payload = bytes((padding,)) + payload + bytes(padding)
        self.deliver(frame_header(DATA, flags, stream_id, len(payload)) + payload, len(payload))
        return len(payload)

    # --------------------------------------------------------------- credit

    def settle(self) -> None:
        """Grant the sender what it is due of the connection's window."""
        due = self.account.due()
        if due:
            self.back.emit(window_update(0, due))

    def drop(self, size: int) -> None:
        """So many bytes of DATA have come that nobody gets."""
        if size:
            self.account.removed += size
            self.settle()

    # ----------------------------------------------------------------- time

    @property
    def next_at(self) -> float:
        """When there is more to go out."""
        return math.inf if self.shaper is None else self.shaper.next_at

    @property
    def held_bytes(self) -> int:
        """In the shaper."""
        return 0 if self.shaper is None else self.shaper.held_bytes

    @property
    def unsent_bytes(self) -> int:
        """The same, and what waits for the connection's window."""
        return self.held_bytes + self._waiting_bytes

    def take_out(self, now: float) -> list[Data]:
        """What is to be written now."""
        if self.shaper is not None:
            self.out += self.shaper.arrived(now)
        out, self.out = self.out, []
        return out
