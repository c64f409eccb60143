"""Sending DATA that is made here, no faster than the peer takes it."""

import trio

from rawgrpc_proxy.net.stream import Stream

_SEND_AHEAD_BYTES = 64 * 1024


class LocalSender:
    """Sends DATA that is made here, and waits while the peer does not take it."""

    __slots__ = ("_event", "_stream", "_waiting_bytes")

    account = None
    """What it sends has come from no connection."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._waiting_bytes = 0
        self._event: trio.Event | None = None
        stream.inbox.sender = self

    def credit(self, size: int) -> None:
        """So many bytes are with the socket (called by the connection)."""
        self._waiting_bytes -= size
        if self._waiting_bytes <= _SEND_AHEAD_BYTES:
            self.wake()

    def wake(self) -> None:
        """Let `send` look again."""
        if self._event is not None:
            self._event.set()

    async def send(self, data: bytes, *, end_stream: bool = False) -> None:
        """Queue `data` at once, then wait until no more than 64 KiB of this stream are waiting.

        Cancellation does not take the bytes back. Raises the `RpcError` that ended the stream.
        """
        self._waiting_bytes += len(data)
        self._stream.send_data(data, end_stream=end_stream, source=self, credit=len(data))
        await trio.lowlevel.checkpoint()
        while self._waiting_bytes > _SEND_AHEAD_BYTES:
            self.check()
            self._event = trio.Event()
            await self._event.wait()
            self._event = None

    def check(self) -> None:
        """Raise if nobody will take what is sent any more."""
        error = self._stream.inbox.error
        if error is not None:
            raise error
