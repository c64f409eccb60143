"""The engine on h2: the reference that the lean engine is held against.

h2 keeps the stream states, the windows, the settings and the HPACK encoder. `Session` stands in front of it and
hands over only what has passed its checks, because h2 answers many errors of one stream with the end of the
connection. Each way around a behaviour of h2 names it, and tests/contracts pins it:

- header blocks are decoded before h2 sees them; it gets a ready list through `_ReadyHeaders`, without content-length
  (a wrong one is fatal to the connection in h2);
- GOAWAY never reaches it, in either direction: h2 would drop its output and refuse DATA on open streams;
- PING, PRIORITY, 1xx responses and frames of closed streams never reach it either;
- SETTINGS reach it without unknown entries, which it would keep for ever.

Only this module imports h2.
"""

from collections.abc import Iterable
from typing import Any

import h2.config
import h2.connection
import h2.exceptions
import h2.settings
import hpack

from rawgrpc_proxy.errors import ProtocolViolation
from rawgrpc_proxy.http2 import frames
from rawgrpc_proxy.http2.frames import UNLIMITED, Data, Setting
from rawgrpc_proxy.http2.headers import Headers, check_fields
from rawgrpc_proxy.http2.hpack import without_index
from rawgrpc_proxy.http2.position import Table
from rawgrpc_proxy.http2.session import Session
from rawgrpc_proxy.http2.stream_state import StreamState


class H2Session(Session):
    """`Session` on `h2.connection.H2Connection`."""

    __slots__ = ("_h2", "_ready_headers")

    def _set_up(self) -> None:
        self._h2 = _Connection(
            h2.config.H2Configuration(
                client_side=self.client_side,
                header_encoding=None,
                validate_inbound_headers=False,
                validate_outbound_headers=False,
                normalize_inbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self._ready_headers = _ReadyHeaders()
        self._h2.decoder = self._ready_headers
        self._h2.encoder = _PlainEncoder()

    def _own_table(self) -> Table:
        table = self._h2.encoder.header_table
        return Table(tuple(reversed(table.dynamic_entries)), table.maxsize)

    def _start(self) -> None:
        settings = self._settings
        # Our SETTINGS are written by Session. h2 learns of the same windows, and of no limit on streams: at its own
        # limit it would send GOAWAY where REFUSED_STREAM is due.
        self._h2.local_settings = h2.settings.Settings(
            client=self.client_side,
            initial_values={
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: settings.stream_window_bytes,
                h2.settings.SettingCodes.MAX_FRAME_SIZE: settings.max_frame_bytes,
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: UNLIMITED,
            },
        )
        self._h2.max_inbound_frame_size = settings.max_frame_bytes
        self._h2.initiate_connection()
        self._h2.clear_outbound_data_buffer()
        if not self.client_side:
            self._h2.receive_data(frames.PREFACE)

    def _feed(self, frame_type: int, flags: int, stream_id: int, payload: Data) -> None:
        """Hand one checked frame to h2. Its events say nothing that Session does not know."""
        frame = frames.frame_header(frame_type, flags, stream_id, len(payload)) + bytes(payload)
        try:
            self._h2.receive_data(frame)
        except h2.exceptions.ProtocolError as error:
            # h2 has put a GOAWAY of its own into its buffer; ours says more.
            self._h2.clear_outbound_data_buffer()
            raise ProtocolViolation(int(error.error_code), str(error)) from error

    def _flush(self) -> None:
        self.output.write(self._h2.data_to_send())

    def _accept_headers(self, state: StreamState, headers: Headers, end_stream: bool) -> None:
        self._ready_headers.headers = [field for field in headers if field[0] != b"content-length"]
        flags = frames.END_HEADERS | frames.END_STREAM if end_stream else frames.END_HEADERS
        self._feed(frames.HEADERS, flags, state.id, b"")

    def _accept_data(self, state: StreamState, data: Data, size: int, end_stream: bool) -> None:
        # Padding counts for the windows. h2 gets it as payload, so that it counts the same.
        padded = data if len(data) == size else bytes(size)
        self._feed(frames.DATA, frames.END_STREAM if end_stream else 0, state.id, padded)

    def _accept_reset(self, state: StreamState, error_code: int) -> None:
        self._feed(frames.RST_STREAM, 0, state.id, error_code.to_bytes(4, "big"))

    def _accept_settings(self, values: dict[Setting, int]) -> None:
        # A new initial window moves every stream h2 still has, closed ones too, and one of those at the maximum would
        # end the connection. Asking how many are open makes it drop the others.
        _ = self._h2.open_inbound_streams, self._h2.open_outbound_streams
        frame = frames.settings(values)
        self._feed(frames.SETTINGS, 0, 0, frame[frames.HEADER_BYTES :])
        self._h2.clear_outbound_data_buffer()  # its acknowledgement: Session writes one for each frame

    def _accept_table_size(self, size: int) -> None:
        self._h2.encoder.header_table_size = size

    def _accept_window_update(self, state: StreamState | None, increment: int) -> bool:
        if (
            state is not None
            and self._h2.streams[state.id].outbound_flow_control_window + increment > UNLIMITED
        ):
            return False
        stream_id = 0 if state is None else state.id
        self._feed(frames.WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4, "big"))
        return True

    def _window(self, state: StreamState) -> int:
        return self._h2.local_flow_control_window(state.id)

    def _connection_window(self) -> int:
        return self._h2.outbound_flow_control_window

    def _write_headers(self, state: StreamState, headers: Headers, end_stream: bool) -> None:
        check_fields(headers)  # h2 would notice when the stream, and part of its table, have changed
        self._h2.send_headers(state.id, headers, end_stream=end_stream)
        self._flush()

    def _write_data(self, state: StreamState, data: Data, end_stream: bool) -> None:
        self._h2.send_data(state.id, bytes(data), end_stream=end_stream)
        frame = self._h2.data_to_send()
        self.output.chunks.append(frame)
        self.output.data_bytes += len(frame)

    def _write_reset(self, state: StreamState, error_code: int) -> None:
        try:
            self._h2.reset_stream(state.id, error_code)
        except (h2.exceptions.StreamClosedError, h2.exceptions.NoSuchStreamError):
            self.output.write(frames.rst_stream(state.id, error_code))
        else:
            self._flush()

    def _write_window_update(self, state: StreamState | None, increment: int) -> None:
        self._h2.increment_flow_control_window(increment, None if state is None else state.id)
        self._flush()


class _Connection(h2.connection.H2Connection):
    # Session keeps frames of closed streams away, so there is no need to remember 65,536 of them, 7 MB.
    MAX_CLOSED_STREAMS = 0


class _ReadyHeaders(hpack.Decoder):
    """Stands where h2 expects a decoder, and answers with the list that Session has decoded and checked."""

    def __init__(self) -> None:
        super().__init__()
        self.headers: Headers = []

    def decode(self, data: bytes, raw: bool = False) -> Any:
        return self.headers


class _PlainEncoder(hpack.Encoder):
    """Never Huffman: hpack's coder takes time quadratic in the length of a value. No credentials in the table.

    Of the table's sizes between two blocks the smallest is announced, and the last (RFC 7541 §4.2). hpack announces all
    of them, and a decoder fails at one that is more than it allows by now.
    """

    def encode(self, headers: Iterable[Any], huffman: bool = False) -> bytes:
        sizes = self.table_size_changes
        if len(sizes) > 1:
            smallest, last = min(sizes), sizes[-1]
            self.table_size_changes = [last] if smallest == last else [smallest, last]
        return super().encode(without_index(headers), huffman=False)
