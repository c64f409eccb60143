"""How one direction of a struck call goes out: frames as faults have them, as fast as windows and bandwidth allow."""

import math
from collections import deque
from typing import Any

from rawgrpc_proxy.http2.frames import Data, rst_stream
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.lab.faults.fault import Blow
from rawgrpc_proxy.lab.faults.flow_control import Account
from rawgrpc_proxy.lab.faults.shaping import Pace
from rawgrpc_proxy.lab.faults.trailer_faults import TrailerAction, changed
from rawgrpc_proxy.lab.faults.way import Way

FIELDS, TRAILERS, DATA, RST, STRIKE = range(5)
"""What waits to go out: a header list as it is, trailers of a response, DATA, RST_STREAM; a strike to be done then."""


class Outflow:
    """`ready` goes out in order, through `emit`."""

    def __init__(self, stream_id: int, way: Way, account: Account) -> None:
        self._stream_id = stream_id
        self._way = way
        self._account = account
        self.ready: deque[tuple[int, Any, bool]] = deque()
        """Each with whether the stream ends with it."""
        self.headers_out = self.ended = self.was_reset = False
        self.hold_until = -math.inf
        self.pace: Pace | None = None
        self.padding: int | None = None
        self.split_at: int | None = None
        self.split_headers_at: int | None = None
        self.pads_all = self.splits_all = self.splits_all_headers = False
        self.trailer_faults: list[tuple[Blow, TrailerAction]] = []
        self.trailers_first: Blow | None = None
        """DATA that nothing has come behind is kept back: it may be the last, and go behind the trailers."""
        self.kept_back_bytes = 0

    @property
    def free_at(self) -> float:
        """When something may go out, as far as time has a say in it."""
        free_at = self.hold_until
        if self.pace is not None and self.ready and self.ready[0][0] == DATA and len(self.ready[0][1]):
            free_at = max(free_at, self.pace.free_at)
        return free_at

    def append(self, kind: int, content: Any, *, end: bool = False) -> None:
        """To go out behind all that is ready."""
        self.ready.append((kind, content, end))

    def append_end(self) -> None:
        """Nothing follows."""
        if self.ready and self.ready[-1][0] == DATA:
            self.ready[-1] = (DATA, self.ready[-1][1], True)
        else:
            self.ready.append((DATA, b"", True))

    def add(self, kind: int, content: Any, *, end: bool) -> None:
        """As `append`, for what its sender has not sent."""
        if kind == DATA:
            self._added(len(content))
        self.append(kind, content, end=end)

    def emit(self) -> bool:
        """Send the first that is ready, or so much of it as there is room for. False: it has to wait."""
        kind, content, end = self.ready[0]
        if kind == DATA:
            if self.trailers_first is None or end:
                return self._emit_data(content, end)
            return self._emit_before_trailers(content)
        self.ready.popleft()
        if kind == FIELDS:
            self._emit_fields(content, end)
        elif kind == TRAILERS:
            self.ready.extendleft(reversed(self._changed(content, end)))
        else:
            self._way.deliver(rst_stream(self._stream_id, content))
            self.was_reset = True
        return True

    def _emit_fields(self, fields: Headers, end: bool) -> None:
        self.headers_out = True
        self._way.deliver_headers(self._stream_id, fields, end_stream=end, first_bytes=self.split_headers_at)
        if not self.splits_all_headers:
            self.split_headers_at = None
        self.ended = self.ended or end

    def _changed(self, fields: Headers, end: bool) -> list[tuple[int, Any, bool]]:
        lists = changed(self.trailer_faults, fields, trailers_only=not self.headers_out)
        items = [(DATA, b"", False) if each is None else (FIELDS, each, False) for each in lists]
        items[-1] = (*items[-1][:2], end)
        return items

    # ------------------------------------------------------------------ DATA

    def _emit_before_trailers(self, data: Data) -> bool:
        ready = self.ready
        if len(ready) == 1 and data:
            self._keep_back(len(data))
            return False
        self._keep_back(0)
        if ready[1][0] != TRAILERS:
            return self._emit_data(data, end=False)
        blow, self.trailers_first = self.trailers_first, None
        assert blow is not None
        blow.tell()
        ready.popleft()
        _, fields, end = ready.popleft()
        ready.extendleft(reversed([*self._changed(fields, end=False), (DATA, data, end)]))
        return True

    def _keep_back(self, size: int) -> None:
        more = size - self.kept_back_bytes
        self.kept_back_bytes = size
        self._account.extra += more
        self._way.account.extra += more

    def _emit_data(self, data: Data, end: bool) -> bool:
        way, size = self._way, len(data)
        padding = self.padding
        overhead = 0 if padding is None else padding + 1
        most = way.max_frame - overhead
        if size or overhead:
            room = min(self._account.room, way.room) - overhead
            if room < min(size, 1):
                if padding is None or way.initial > overhead:
                    return False
                self.padding = None  # there will never be room for it
                return True
            most = min(most, room)
        if self.pace is not None and size:
            most = min(most, self.pace.piece_bytes)
            self.pace.took(min(size, most), way.now)
        piece, rest = (data, b"") if size <= most else (data[:most], data[most:])
        ends, at = end and not rest, self.split_at
        if at is not None and at < len(piece) and padding is None:
            self._deliver(piece[:at], ends=False)
            self._deliver(piece[at:], ends=ends)
            if not self.splits_all:
                self.split_at = None
        else:
            self._deliver(piece, ends=ends, padding=padding)
        if overhead:
            self._added(overhead)
            if not self.pads_all:
                self.padding = None
        if rest:
            self.ready[0] = (DATA, rest, end)
        else:
            self.ready.popleft()
            self.ended = self.ended or end
        return True

    def _deliver(self, piece: Data, *, ends: bool, padding: int | None = None) -> None:
        self._account.delivered += self._way.deliver_data(
            self._stream_id, piece, end_stream=ends, padding=padding
        )

    def _added(self, size: int) -> None:
        self._account.removed -= size
        self._way.account.removed -= size

    def close(self) -> int:
        """Nothing of it goes out. Answers how much DATA that is."""
        size = sum(len(content) for kind, content, _ in self.ready if kind == DATA)
        self.ready.clear()
        self._keep_back(0)
        return size
