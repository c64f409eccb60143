"""`ReceivedMessages`: the messages of one response, cut out of what has been taken from its inbox.

What it does not do: wait for more. The invariant: what is held here is counted with the inbox, as long as the stream is
open, so `max_buffered_bytes` knows of it.
"""

import trio

from rawgrpc_proxy.client.response import ResponseInbox
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.grpc.compression import inflated
from rawgrpc_proxy.grpc.messages import MessageReader

_MESSAGES_A_TURN = 256
_BYTES_A_TURN = 256 * 1024
"""Of messages that are here already: then everything else gets its turn."""


class ReceivedMessages:
    """Of one call."""

    __slots__ = ("_kept_bytes", "_max_message_bytes", "_reader", "_taken", "_taken_bytes")

    def __init__(self, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._reader = MessageReader(max_message_bytes=max_message_bytes)
        self._kept_bytes = 0
        """What the reader holds, as the inbox counts it."""
        self._taken = self._taken_bytes = 0

    @property
    def at_boundary(self) -> bool:
        """False in mid-message."""
        return self._reader.at_boundary

    async def give_way(self) -> None:
        """Let others have their turn, if much has been taken since they had one."""
        if self._taken >= _MESSAGES_A_TURN or self._taken_bytes >= _BYTES_A_TURN:
            self._taken = self._taken_bytes = 0
            await trio.lowlevel.checkpoint()

    def add(self, data: bytes, inbox: ResponseInbox) -> None:
        """Hold what has been taken from the inbox."""
        self._reader.add(data)
        if not inbox.is_closed:
            inbox.keep(len(data))
            self._kept_bytes += len(data)

    def take(self, inbox: ResponseInbox) -> bytes | None:
        """The next message, decompressed; None until more has come. Raises `RpcError` for one that is none."""
        try:
            message = self._reader.take()
        except RpcError as error:
            if error.status is Status.RESOURCE_EXHAUSTED:
                text = f"{error.message} (the client's max_message_bytes)"
                raise RpcError(error.status, text, origin="proxy") from None
            raise
        if message is None:
            return None
        compressed, payload = message
        if self._kept_bytes:
            gone = self._kept_bytes if self._reader.at_boundary else min(len(payload), self._kept_bytes)
            inbox.let_go(gone)
            self._kept_bytes -= gone
        if compressed:
            encoding = dict(inbox.headers or ()).get(b"grpc-encoding", b"identity")
            payload = inflated(payload, encoding, self._max_message_bytes, origin="proxy")
        self._taken += 1
        self._taken_bytes += len(payload)
        return payload
