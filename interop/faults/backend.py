"""Backend of the faults, in grpcio's threads: messages are bytes, and every call says which backend has answered.

    python -m interop.faults.backend [--port N] [--host A] [--name NAME] [--grace S]

`Echo` answers with the request, `Slow` after so many seconds as it says, `Stream` with what payload.py's `Stream` asks
for, `Upload` with the SHA-256 of all that it is sent, and `Hold` with one message, and then nothing until it is
cancelled, of which a line tells: `cancelled ID TIME`, on the monotonic clock. The backend's name is in the initial
metadata, under `backend`. On SIGTERM it stops gracefully: GOAWAY, and its calls have the grace to finish. (grpcio's
asyncio server cancels its calls instead, whatever grace it is given, so this is none.)
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import threading
import time
from collections.abc import Iterator
from concurrent import futures

import grpc

from interop.faults.payload import Stream, content

SERVICE = "faults.Bytes"
#: A call that is held takes one.
THREADS = 300


class Backend:
    def __init__(self, name: str) -> None:
        self._metadata = (("backend", name),)

    def echo(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        context.send_initial_metadata(self._metadata)
        return request

    def slow(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        context.send_initial_metadata(self._metadata)
        over = threading.Event()
        context.add_callback(over.set)
        over.wait(float(request))
        return request

    def upload(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        context.send_initial_metadata(self._metadata)
        total = hashlib.sha256()
        for request in requests:
            total.update(request)
        return total.hexdigest().encode()

    def stream(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.send_initial_metadata(self._metadata)
        asked = Stream.decode(request)
        for number in range(asked.count):
            yield content(number, asked.size)
            if asked.pause_s:
                time.sleep(asked.pause_s)

    def hold(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        over = threading.Event()

        def ended() -> None:
            print(f"cancelled {request.decode()} {time.monotonic()}", flush=True)
            over.set()

        if not context.add_callback(ended):
            ended()
        yield request
        over.wait()

    def handler(self) -> grpc.GenericRpcHandler:
        """All methods."""
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Echo": unary(self.echo),
            "Slow": unary(self.slow),
            "Upload": grpc.stream_unary_rpc_method_handler(self.upload),
            "Stream": stream(self.stream),
            "Hold": stream(self.hold),
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--name", default="backend")
    parser.add_argument("--grace", type=float, default=10.0)
    given = parser.parse_args()
    # Taken by `sigwait` below, before any thread is there that could get it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    server = grpc.server(
        futures.ThreadPoolExecutor(THREADS),
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)],
    )
    server.add_generic_rpc_handlers((Backend(given.name).handler(),))
    port = server.add_insecure_port(f"{given.host}:{given.port}")
    server.start()
    print(f"listening on {given.host}:{port}", flush=True)
    signal.sigwait({signal.SIGTERM})
    server.stop(given.grace).wait()


if __name__ == "__main__":
    main()
