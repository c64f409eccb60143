"""Backend of the faults, in grpcio's threads: messages are bytes, and every call says which backend has answered.

    python -m interop.faults.backend [--port N] [--host A] [--name NAME] [--grace S]

`Echo` answers with the request, `Slow` after so many seconds as it says, `Stream` with what payload.py's `Stream` asks
for, `Upload` with the SHA-256 of all that it is sent, and `Hold` with one message, and then nothing until it is
cancelled, of which a line tells: `cancelled ID TIME`, on the monotonic clock. The backend's name is in the initial
metadata, under `backend`. SIGUSR1 has `Echo` fail half of its calls, by chance, SIGUSR2 every second one, and the same
signal once more none; a call that fails does so with UNAVAILABLE.

On SIGTERM it stops gracefully: GOAWAY, and its calls have the grace to finish. (grpcio's asyncio server cancels its
calls instead, whatever grace it is given, so this is none.)
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc

from interop.faults.payload import Stream, content

SERVICE = "faults.Bytes"
#: A call that is held takes one.
THREADS = 300


class Backend:
    def __init__(self, name: str) -> None:
        self._metadata = (("backend", name),)
        self._fails: Callable[[], object] | None = None
        """Asked at each call of `Echo`, if it may fail."""
        self._told: int | None = None

    def told_to_fail(self, number: int) -> None:
        """The signal that says how its calls fail, or that they do so no more."""
        self._told = None if self._told == number else number
        by_chance, in_turn = random.Random(1), itertools.count()
        ways: dict[int | None, Callable[[], object]] = {
            signal.SIGUSR1: lambda: by_chance.random() < 0.5,  # half of them
            signal.SIGUSR2: lambda: next(in_turn) % 2,
        }
        self._fails = ways.get(self._told)

    def echo(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        context.send_initial_metadata(self._metadata)
        fails = self._fails
        if fails is not None and fails():
            context.abort(grpc.StatusCode.UNAVAILABLE, "told to fail")
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
    signals = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
    # Taken by `sigwait` below, before any thread is there that could get them.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    server = grpc.server(
        futures.ThreadPoolExecutor(THREADS),
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)],
    )
    backend = Backend(given.name)
    server.add_generic_rpc_handlers((backend.handler(),))
    port = server.add_insecure_port(f"{given.host}:{given.port}")
    server.start()
    print(f"listening on {given.host}:{port}", flush=True)
    while (number := signal.sigwait(signals)) != signal.SIGTERM:
        backend.told_to_fail(number)
    server.stop(given.grace).wait()


if __name__ == "__main__":
    main()
