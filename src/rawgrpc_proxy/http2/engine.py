"""What an engine does: the windows and states of one connection, and the writing of its frames.

    _accept_…   something of the peer's is in order, and takes effect     _write_…   a frame goes into the output
    _window     how much DATA may go out now

`Session` is what engines share, and `Engine` what it asks of them. Both see the state that is kept here: the settings
of either side, the streams, the output. What an engine does not do: decide. Which frame is in order, what goes out and
when, is said by the layers between (`session.py`).
"""

from abc import ABC, abstractmethod

from rawgrpc_proxy.config import DEFAULT_WINDOW, MIN_FRAME_SIZE, Http2Settings
from rawgrpc_proxy.http2.frames import UNLIMITED, Data, Setting
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.http2.output import Output
from rawgrpc_proxy.http2.position import Table
from rawgrpc_proxy.http2.stream_state import StreamState


class Engine(ABC):
    """The contract of an engine, and what it finds there."""

    __slots__ = (
        "_peer_stream_window",
        "_settings",
        "client_side",
        "output",
        "peer_max_concurrent_streams",
        "peer_max_frame_bytes",
        "peer_max_header_list_bytes",
        "peer_settings_seen",
        "streams",
    )

    def __init__(self, settings: Http2Settings, *, client_side: bool) -> None:
        self._settings = settings
        self.client_side = client_side
        self.streams: dict[int, StreamState] = {}
        self.output = Output()
        self.peer_settings_seen = False
        self.peer_max_concurrent_streams = UNLIMITED
        self.peer_max_header_list_bytes = UNLIMITED
        self.peer_max_frame_bytes = MIN_FRAME_SIZE
        self._peer_stream_window = DEFAULT_WINDOW

    @abstractmethod
    def _set_up(self) -> None:
        """Make what the engine keeps; all that `Session` keeps is there."""

    def _start(self) -> None:  # noqa: B027  # an engine may have nothing to do
        """Called once the first SETTINGS are queued."""

    @abstractmethod
    def _own_table(self) -> Table:
        """A copy of the encoder's dynamic table."""

    @abstractmethod
    def _accept_headers(self, state: StreamState, headers: Headers, end_stream: bool) -> None:
        """A header list has passed every check and takes effect."""

    @abstractmethod
    def _accept_data(self, state: StreamState, data: Data, size: int, end_stream: bool) -> None:
        """Count `size` bytes against the receive windows; raise `ProtocolViolation` where they do not fit."""

    @abstractmethod
    def _accept_reset(self, state: StreamState, error_code: int) -> None:
        """The peer has reset the stream."""

    @abstractmethod
    def _accept_settings(self, values: dict[Setting, int]) -> None:
        """Put the peer's settings in force, but for the table's size. Their acknowledgement is written elsewhere."""

    @abstractmethod
    def _accept_table_size(self, size: int) -> None:
        """The peer allows our encoder a dynamic table of so many bytes from now on."""

    @abstractmethod
    def _accept_window_update(self, state: StreamState | None, increment: int) -> bool:
        """Open a send window (None: the connection's). False if a stream's would pass 2^31-1."""

    @abstractmethod
    def _window(self, state: StreamState) -> int:
        """How many bytes of DATA may go out on the stream now: may be negative (RFC 9113 §6.9.2)."""

    @abstractmethod
    def _connection_window(self) -> int:
        """The connection's send window."""

    @abstractmethod
    def _write_headers(self, state: StreamState, headers: Headers, end_stream: bool) -> None:
        """Encode the list and put HEADERS (and CONTINUATION) into the output.

        `TypeError` for fields that are no pairs of bytes; nothing has changed then.
        """

    @abstractmethod
    def _write_data(self, state: StreamState, data: Data, end_stream: bool) -> None:
        """Put one DATA frame into the output. It fits into the windows and the peer's frame size."""

    @abstractmethod
    def _write_reset(self, state: StreamState, error_code: int) -> None:
        """Put RST_STREAM into the output."""

    @abstractmethod
    def _write_window_update(self, state: StreamState | None, increment: int) -> None:
        """Open a receive window (None: the connection's) and tell the peer."""
