"""What calls have in common that shall go to the same endpoint: the value of a header, or else the caller's address."""

from collections.abc import Callable

from rawgrpc_proxy.call import CallContext


def affinity(header: str | None) -> Callable[[CallContext], bytes | None]:
    """Whose answer is a call's key: the first value of `header`; without that, the host that the caller is on.

    None, and so no key, for a caller on a Unix socket: all of those have the same.
    """
    name = None if header is None else header.encode()

    def key(context: CallContext) -> bytes | None:
        if name is not None:
            for field, value in context.metadata.raw:
                if field == name:
                    return value
        host, _, _ = context.peer.rpartition(":")
        return host.encode() if host and host != "unix" else None

    return key
