"""Which calls of a connection end while too much waits in this process: the longest stalled, and as many as it takes.

What it does not do: say when, and which connection comes first (`memory_guard.py`), or count (`http2/buffered.py`).
"""

from collections.abc import Mapping
from typing import Protocol

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.errors import ConnectionFailed, PeerAbuse, Side
from rawgrpc_proxy.net.failures import reset_error
from rawgrpc_proxy.net.stream import Carrier, Stream


class Stalling(Carrier, Protocol):
    """A connection whose calls may have stalled."""

    @property
    def streams(self) -> Mapping[int, Stream]:
        """Those that are open, by their ids."""

    def close(self, error: ConnectionFailed) -> None:
        """End the connection now."""


def end_stalled(connection: Stalling, before: float) -> None:
    """End streams on which bytes wait, and none has moved since `Buffered.passed` was `before`: the longest first.

    Until the process is short of memory no more. If it still is then, and the socket has not taken what was written
    before `before`, the connection ends: what of answers is on its way to a socket goes only with it.
    """
    session, account = connection.session, connection.account
    buffered, states = account.buffered, session.streams
    stalled: list[tuple[int, int]] = []
    for stream in connection.streams.values():
        stalled += [
            (held.moved_at, stream.id)
            for held in (states.get(stream.id), stream.inbox)
            if held is not None and held.waiting_bytes and held.moved_at < before
        ]
    number, bytes_before = 0, buffered.bytes
    for _, stream_id in sorted(stalled):
        if not buffered.is_short:
            break
        number += _end_one(connection, stream_id)
    if number:
        connection.tell_limit(
            "max_buffered_bytes",
            f"{bytes_before} bytes wait in this process for peers that do not take them: {number} calls that had "
            "stalled on this connection were ended",
        )
    if (
        buffered.is_short
        and connection.socket_is_full
        and session.output.waits_since < before
        and account.its_peer_takes_too_little
    ):
        error = PeerAbuse(
            f"{account.to_peer} bytes wait for the peer, which does not take them, while too much waits in "
            "the proxy (max_buffered_bytes)",
            limit="max_buffered_bytes",
        )
        session.fail(error)
        connection.close(error)


def _end_one(connection: Stalling, stream_id: int) -> bool:
    """Answers whether the stream was there still."""
    session, stream = connection.session, connection.streams[stream_id]
    code = ErrorCode.CANCEL if session.client_side else ErrorCode.ENHANCE_YOUR_CALM
    try:
        if not session.reset_stalled(stream_id, code):
            return False
    except PeerAbuse as error:
        connection.close(error)
    reason = "the call had stalled while too much waited in the proxy (max_buffered_bytes)"
    cause = "max_buffered_bytes"
    stream.sink.failed(reset_error(ErrorCode.ENHANCE_YOUR_CALM, Side.LOCAL, reason, cause))
    connection.touch()
    return True
