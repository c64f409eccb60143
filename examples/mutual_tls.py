"""A proxy that knows its callers by their certificates, tells upstreams who they are, and keeps some methods for a few.

    rawgrpc-proxy certs certs                      # throw-away certificates, to try it with
    python examples/mutual_tls.py 127.0.0.1:8443 127.0.0.1:50051 certs spiffe://shop.example/ns/ops/sa/admin

Callers need a certificate of `certs/ca.pem`. Upstreams find its name in `x-client-identity`, in which callers
themselves can say nothing. Methods below `/com.example.Admin/` are for those who are named behind the folder: by a URI,
a DNS name or the subject of their certificate (`CN=admin,O=Shop`).
"""

import signal
import ssl
import sys
from pathlib import Path

import trio

from rawgrpc_proxy import (
    CallContext,
    CallLog,
    Pool,
    RpcError,
    Server,
    Status,
    Target,
    tell_identity,
    transparent_handler,
)


def context_of(folder: Path) -> ssl.SSLContext:
    """TLS for callers, who must have a certificate. gRPC wants HTTP/2, agreed on by ALPN."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    return context


async def main(listen: str, upstream: str, folder: Path, admins: set[str]) -> None:
    """Serve until SIGTERM or SIGINT; running calls have half a minute then."""
    log = CallLog()
    async with Pool(observer=log) as pool:
        target = pool.target(upstream)

        def director(context: CallContext, method: str) -> tuple[CallContext, Target]:
            identity = context.peer_identity
            assert identity is not None  # CERT_REQUIRED
            names = {identity.subject, *identity.dns_names, *identity.uris}
            if method.startswith("/com.example.Admin/") and names.isdisjoint(admins):
                raise RpcError(Status.PERMISSION_DENIED, "your certificate is none of an administrator")
            return context, target

        handler = transparent_handler(tell_identity(director))
        server = Server(unknown_service_handler=handler, observer=log)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:

                async def serve(task_status: trio.TaskStatus[str]) -> None:
                    await server.serve(listen, ssl_context=context_of(folder), task_status=task_status)

                print("listening on", await nursery.start(serve), flush=True)
                await anext(signals)
                server.stop(grace_s=30)


if __name__ == "__main__":
    if len(sys.argv) <= 3:
        sys.exit(__doc__)
    trio.run(main, sys.argv[1], sys.argv[2], Path(sys.argv[3]), set(sys.argv[4:]))
