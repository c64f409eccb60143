"""What there is to know of a connection, for those who ask. Nothing is kept for it."""

import trio

from rawgrpc_proxy.net.connection import Connection, ConnectionState
from rawgrpc_proxy.observe.report import OpenConnection


def connection_fact(side: str, peer: str, connection: Connection) -> OpenConnection:
    """What there is to know of a connection. The address of an upstream is its `peer`."""
    transport = connection.transport
    received, acknowledged = transport.wire_bytes() or (None, None)
    return {
        "side": side,
        "peer": peer,
        "age_s": round(trio.current_time() - connection.opened_at, 3),
        "calls": len(connection.streams),
        "bytes_in": received,
        "bytes_out": acknowledged,
        "tls": transport.tls_version,
        "draining": connection.state is not ConnectionState.OPEN,
    }
