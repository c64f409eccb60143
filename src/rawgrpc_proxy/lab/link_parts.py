"""What a `LinkView` keeps of one link: of each direction what is not complete, and of each open stream its messages."""

from collections.abc import Sequence

import attrs

from rawgrpc_proxy.http2.frames import FrameSplitter
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.http2.hpack import HeaderDecoder
from rawgrpc_proxy.http2.position import Table
from rawgrpc_proxy.lab.events import Sender, Stream
from rawgrpc_proxy.lab.partial_message import PartialMessage

MAX_FRAME_BYTES = 2**24 - 1
MAX_BLOCK_BYTES = 1 << 20
"""Of a header block, compressed, and of its list."""
MAX_TABLE_BYTES = 1 << 20
_MAX_FIELDS = 1 << 15


@attrs.define(eq=False)
class OpenStream:
    """A stream that lives."""

    stream: Stream
    client: PartialMessage = attrs.field(factory=PartialMessage)
    server: PartialMessage = attrs.field(factory=PartialMessage)
    answered: int | None = None
    """The frame with the server's END_STREAM."""

    def message(self, sender: Sender) -> PartialMessage:
        """The one that this end is sending."""
        return self.client if sender is Sender.CLIENT else self.server


@attrs.frozen
class FoundStream:
    """One that was open when its view began."""

    open_stream: OpenStream
    headers: Headers
    """Of the request."""
    lost: Sequence[Sender]
    """Whose messages it is not known where they begin."""


class Direction:
    """What one end of the link has said, as far as it is not complete."""

    __slots__ = ("block", "block_flags", "block_stream", "decoder", "promised", "sender", "splitter")

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.splitter: FrameSplitter | None = FrameSplitter(
            MAX_FRAME_BYTES, expect_preface=sender is Sender.CLIENT
        )
        """None once it cannot be read any more."""
        # Not hpack's decoder: its time is quadratic in the length of a block, which is a peer's.
        self.decoder: HeaderDecoder | None = HeaderDecoder(
            MAX_BLOCK_BYTES,
            _MAX_FIELDS,
            of_requests=sender is Sender.CLIENT,
            max_table_bytes=MAX_TABLE_BYTES,
        )
        """None once its header lists cannot be read any more."""
        self.block: bytearray | None = None
        self.block_stream = self.block_flags = 0
        self.promised: int | None = None

    def go_on(self, table: Table) -> None:
        """What comes next is a frame, and the next header block is read with this table."""
        assert self.decoder is not None
        self.splitter = FrameSplitter(MAX_FRAME_BYTES, expect_preface=False, goes_on=True)
        self.decoder.go_on(table)
