"""Where a session stands, between two frames of its peer and two of its own: for those who begin to look on there.

What it does not do: change with the session. It is a copy of one moment.
"""

import attrs

from rawgrpc_proxy.http2.headers import RawHeader


@attrs.frozen
class Table:
    """An HPACK dynamic table (RFC 7541 §2.3.2)."""

    fields: tuple[RawHeader, ...]
    """The oldest first."""
    max_bytes: int


@attrs.frozen(kw_only=True)
class StreamPosition:
    """An open stream."""

    id: int
    peer_began: bool
    """Its headers are here."""
    peer_ended: bool
    we_began: bool
    we_ended: bool
    waiting_bytes: int
    """DATA that is not in the output yet."""


@attrs.frozen(kw_only=True)
class Position:
    """A session that has not ended."""

    peer_began: bool
    """The peer has said enough to be known for one that speaks HTTP/2."""
    we_began: bool
    unread: bytes
    """What has come, and was not acted on: whole frames, or the beginning of one."""
    block: tuple[int, bool, bytes] | None
    """Of a header block that has not ended: its stream, whether it ends that, and what has come of it."""
    peer_table: Table
    """With which the peer's next header block is read."""
    own_table: Table
    """With which our next one is."""
    untaken_chunks: int
    """Of the output: what is here was said by a session that stood elsewhere."""
    last_stream_id: int
    """The highest that the client has opened."""
    streams: tuple[StreamPosition, ...]
