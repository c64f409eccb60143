"""What tests of transports share."""

from rawgrpc_proxy.net.transport import Transport


async def one_read(transport: Transport) -> bytes:
    """What one read brings; empty at the end of the file."""
    reads: list[bytes] = []

    def take(data: bytes) -> bool:
        reads.append(data)
        return False

    await transport.receive_each(take)
    (read,) = reads
    return read
