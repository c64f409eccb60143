"""What tests of transports share."""

from rawgrpc_proxy.net.poller import Then
from rawgrpc_proxy.net.transport import Transport


async def one_read(transport: Transport) -> bytes:
    """What one read brings; empty at the end of the file."""
    reads: list[bytes] = []

    def take(data: bytes | None) -> Then:
        assert data is not None
        reads.append(data)
        return Then.STOP

    await transport.receive_each(take)
    (read,) = reads
    return read
