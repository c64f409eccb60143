"""How far an end of a connection has come, counted by what the other end has to wait for. Pure.

Two of them compared say whether a peer that is played to has done what the recorded one had done at this point:
`lacks`. Bytes cannot be compared for that, since a peer may frame them otherwise.
"""

import struct
from collections import defaultdict

from rawgrpc_proxy.http2 import frames as h2
from rawgrpc_proxy.http2.frames import Data

_DEFAULT_WINDOW = 65535
_INITIAL_WINDOW_SIZE = 4
_SETTING = struct.Struct(">HL")
_ID_MASK = 0x7FFFFFFF


class Progress:
    """Of one end: feed it its frames."""

    def __init__(self) -> None:
        self.settings = self.settings_acks = self.pings = self.ping_acks = 0
        self.lists: defaultdict[int, int] = defaultdict(int)
        """Header lists, by stream."""
        self.data_bytes: defaultdict[int, int] = defaultdict(int)
        """Padding included, by stream, and of the connection at 0."""
        self.ended: set[int] = set()
        """Streams that it sends nothing more on."""
        self.reset: set[int] = set()
        self.gave: defaultdict[int, int] = defaultdict(int)
        """By WINDOW_UPDATE, by stream, and of the connection at 0."""
        self.initial_window = _DEFAULT_WINDOW

    def feed(self, kind: int, flags: int, stream_id: int, payload: Data) -> None:
        """The next frame. One of a wrong length counts for nothing."""
        match kind:
            case h2.HEADERS | h2.CONTINUATION:
                self.lists[stream_id] += bool(flags & h2.END_HEADERS)
                if kind == h2.HEADERS and flags & h2.END_STREAM:
                    self.ended.add(stream_id)
            case h2.DATA:
                self.data_bytes[stream_id] += len(payload)
                self.data_bytes[0] += len(payload)
                if flags & h2.END_STREAM:
                    self.ended.add(stream_id)
            case h2.RST_STREAM:
                self.reset.add(stream_id)
            case h2.SETTINGS if flags & h2.ACK:
                self.settings_acks += 1
            case h2.SETTINGS:
                self.settings += 1
                if len(payload) % _SETTING.size == 0:
                    for setting, value in _SETTING.iter_unpack(payload):
                        if setting == _INITIAL_WINDOW_SIZE:
                            self.initial_window = value
            case h2.PING if flags & h2.ACK:
                self.ping_acks += 1
            case h2.PING:
                self.pings += 1
            case h2.WINDOW_UPDATE if len(payload) == 4:  # noqa: PLR2004  # RFC 9113 §6.9
                self.gave[stream_id] += h2.read_u32(payload) & _ID_MASK

    def is_done(self, stream_id: int) -> bool:
        """Whether it sends nothing more on this stream."""
        return stream_id in self.ended or stream_id in self.reset

    def room_for(self, stream_id: int, sent: "Progress") -> int:
        """How many bytes of DATA this end takes of the other one, which has sent so much, on this stream."""
        stream = self.initial_window + self.gave[stream_id] - sent.data_bytes[stream_id]
        return min(stream, _DEFAULT_WINDOW + self.gave[0] - sent.data_bytes[0])


def lacks(now: Progress, then: Progress, kind: int, flags: int, stream_id: int) -> bool:
    """Whether the end has still to do what it did with this frame, behind which it had come as far as `then`.

    False for frames that depend on the moment, or on how an end is made: WINDOW_UPDATE, PING, GOAWAY and the like, and
    SETTINGS behind the first ones, in which libraries change their windows by what they have measured.
    """
    match kind:
        case h2.HEADERS | h2.CONTINUATION | h2.DATA:
            if now.is_done(stream_id):
                return False
            return (
                stream_id in then.ended
                or now.lists[stream_id] < then.lists[stream_id]
                or now.data_bytes[stream_id] < then.data_bytes[stream_id]
            )
        case h2.RST_STREAM:
            return not now.is_done(stream_id)
        case h2.SETTINGS if flags & h2.ACK:
            return now.settings_acks < then.settings_acks
        case h2.SETTINGS:
            return not now.settings
        case h2.PING if flags & h2.ACK:
            return now.ping_acks < then.ping_acks
    return False
