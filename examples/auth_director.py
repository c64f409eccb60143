"""A proxy that knows its callers by a token, and tells the upstream who they are instead.

    python examples/auth_director.py 127.0.0.1:8080 127.0.0.1:50051 alice=wonderland bob=builder

A call needs `authorization: Bearer wonderland`, for example, and then goes on with `x-user: alice` and without the
token. Without one it is UNAUTHENTICATED, and nothing of it is sent upstream. Health checks need no token.
"""

import hmac
import signal
import sys

import trio

from rawgrpc_proxy import CallContext, CallLog, Pool, RpcError, Server, Status, Target, transparent_handler

OPEN_TO_ALL = {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"}


def user_of(authorization: object, tokens: dict[str, str]) -> str:
    """Whose token it is. Raises `RpcError`, which is what the caller gets."""
    if not isinstance(authorization, str) or not authorization.startswith("Bearer "):
        raise RpcError(Status.UNAUTHENTICATED, "no token: send authorization: Bearer TOKEN")
    given = authorization.removeprefix("Bearer ").encode()
    # Each is compared, and in the same time wherever it differs: how long it takes tells nothing about tokens.
    users = [user for user, token in tokens.items() if hmac.compare_digest(token.encode(), given)]
    if not users:
        raise RpcError(Status.UNAUTHENTICATED, "this token is nobody's")
    return users[0]


async def main(listen: str, upstream: str, tokens: dict[str, str]) -> None:
    """Serve until SIGTERM or SIGINT; running calls have half a minute then."""
    log = CallLog()
    async with Pool(observer=log) as pool:
        target = pool.target(upstream)

        def director(context: CallContext, method: str) -> tuple[CallContext, Target]:
            # What a caller says of itself under this name is not believed, whatever the method.
            metadata = context.metadata.without("x-user")
            if method not in OPEN_TO_ALL:
                user = user_of(metadata.get("authorization"), tokens)
                metadata = metadata.without("authorization").with_value("x-user", user)
            return context.with_metadata(metadata), target

        server = Server(unknown_service_handler=transparent_handler(director), observer=log)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                print("listening on", await nursery.start(server.serve, listen), flush=True)
                await anext(signals)
                server.stop(grace_s=30)


if __name__ == "__main__":
    if len(sys.argv) <= 3:
        sys.exit(__doc__)
    trio.run(main, sys.argv[1], sys.argv[2], dict(pair.split("=", 1) for pair in sys.argv[3:]))
