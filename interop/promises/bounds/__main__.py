"""Measures the bounds that the README promises, on the real command line in a process of its own.

    .venv/bin/python -m interop.promises.bounds [--engine h2|relay] [--gib 4]

- slow reader: one server stream of so many GiB to a client that reads in small sips; the proxy's memory stays bounded;
- no reader: a client that never reads its stream; memory stays bounded, and another call on its connection works;
- streams: 1000 calls at once with --ms 20 make 50 upstream connections with 20 streams each, never more.

The client speaks frames over a plain socket; it has to be able to misbehave. Exit code 1 if a bound does not hold.
"""

import argparse
import contextlib
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import hpack
import trio

from interop.shared import proc
from rawgrpc_proxy import ServedCall, Server, codec_with_parent, identity_codec, unary_stream, unary_unary
from rawgrpc_proxy.call import Call
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.grpc.messages import encode_message
from rawgrpc_proxy.http2 import frames

MESSAGE = bytes(65_536 - 5)
MEMORY_LIMIT_MB = 100
CALLS, MS = 1000, 20


class Backend(Server):
    """Serves an endless stream, a plain answer, and calls that are held until all are there."""

    def __init__(self) -> None:
        super().__init__(codec=codec_with_parent(identity_codec()))
        self.held: Counter[int] = Counter()
        self.most_on_one = 0
        self.all_there = trio.Event()
        self.add_method("/bounds.Bounds/Stream", unary_stream(self._stream, bytes))
        self.add_method("/bounds.Bounds/Hello", unary_unary(self._hello, bytes))
        self.add_handler("/bounds.Bounds/Hold", self._hold)

    async def _stream(self, request: bytes, _call: ServedCall) -> AsyncIterator[bytes]:
        for _ in range(int(request)):
            yield MESSAGE

    async def _hello(self, request: bytes, _call: ServedCall) -> bytes:
        return request

    async def _hold(self, call: Call) -> None:
        connection = id(call.stream.connection)
        self.held[connection] += 1
        self.most_on_one = max(self.most_on_one, self.held[connection])
        if self.held.total() == CALLS:
            self.all_there.set()
        await self.all_there.wait()
        call.end(Status.OK)


@contextlib.contextmanager
def proxy_process(upstream: str, engine: str) -> Iterator[tuple[str, int]]:
    """Run the command line in front of `upstream`; yields the proxy's address and process id."""
    command = [
        sys.executable,
        "-m",
        "rawgrpc_proxy",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--upstream",
        upstream,
    ]
    command += ["--ms", str(MS), "--engine", engine, "--grace", "1", "--log-format", "none"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1], process.pid
        finally:
            process.terminate()


class RawClient:
    """One connection whose windows only open when told to."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._splitter = frames.FrameSplitter(2**24 - 1, expect_preface=False)
        self._encoder = hpack.Encoder()
        self.body_bytes = dict[int, int]()
        self.ended = set[int]()

    @classmethod
    async def connect(cls, address: str) -> "RawClient":
        host, port = address.rsplit(":", 1)
        client = cls(await trio.open_tcp_stream(host, int(port)))
        window = {frames.Setting.INITIAL_WINDOW_SIZE: 1 << 20}
        await client._stream.send_all(
            frames.PREFACE + frames.settings(window) + frames.window_update(0, 2**31 - 65536)
        )
        return client

    async def call(self, stream_id: int, method: str, payload: bytes) -> None:
        block = self._encoder.encode(
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", b"/bounds.Bounds/" + method.encode()),
                (b":authority", b"bounds"),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
            ],
            huffman=False,
        )
        body = encode_message(payload)
        await self._stream.send_all(
            frames.frame_header(frames.HEADERS, frames.END_HEADERS, stream_id, len(block))
            + block
            + frames.frame_header(frames.DATA, frames.END_STREAM, stream_id, len(body))
            + body
        )

    async def read_some(self, *, credit: bool) -> None:
        """Read once from the socket; give the streams their windows back or not."""
        data = await self._stream.receive_some(262_144)
        if not data:
            raise ConnectionError("the proxy closed the connection")
        owed: Counter[int] = Counter()
        for frame_type, flags, stream_id, payload in self._splitter.split(data):
            if frame_type == frames.DATA:
                owed[stream_id] += len(payload)
                self.body_bytes[stream_id] = self.body_bytes.get(stream_id, 0) + len(payload)
            if frame_type in {frames.DATA, frames.HEADERS} and flags & frames.END_STREAM:
                self.ended.add(stream_id)
            if frame_type == frames.GOAWAY:
                raise ConnectionError(f"GOAWAY {struct.unpack('>LL', payload[:8])} {bytes(payload[8:])!r}")
        if credit and owed:
            updates = b"".join(frames.window_update(stream_id, size) for stream_id, size in owed.items())
            await self._stream.send_all(updates)
            if (total := owed.total()) > 0:
                await self._stream.send_all(frames.window_update(0, total))


async def slow_reader(address: str, pid: int, gib: float) -> tuple[str, bool]:
    client = await RawClient.connect(address)
    messages = int(gib * 2**30 / 65536)
    await client.call(1, "Stream", str(messages).encode())
    total, started, shown = messages * 65536, time.monotonic(), 0.0
    while 1 not in client.ended:
        await client.read_some(credit=True)
        await trio.sleep(0.0005)
        if time.monotonic() - shown > 1:
            shown = time.monotonic()
            done = client.body_bytes.get(1, 0) / total
            print(
                f"\r  slow reader {done:5.0%}  {proc.memory(pid).now_mib:.0f} MB",
                end="",
                file=sys.stderr,
                flush=True,
            )
    print(file=sys.stderr)
    seconds, peak, body = time.monotonic() - started, proc.memory(pid).peak_mib, client.body_bytes[1]
    text = f"{body / 2**30:.2f} GiB in {seconds:.0f} s, the proxy's peak {peak:.0f} MB"
    return text, body == total and peak < MEMORY_LIMIT_MB


async def no_reader(address: str, pid: int, gib: float) -> tuple[str, bool]:
    client = await RawClient.connect(address)
    await client.call(1, "Stream", str(int(gib * 2**30 / 65536)).encode())
    while client.body_bytes.get(1, 0) < 1 << 20:
        await client.read_some(credit=False)
    await client.call(3, "Hello", b"still there?")
    with trio.move_on_after(10):
        while 3 not in client.ended:
            await client.read_some(credit=False)
    peak = proc.memory(pid).peak_mib
    answered = "answered" if 3 in client.ended else "NOT answered"
    return (
        f"a second call is {answered}, the proxy's peak {peak:.0f} MB",
        3 in client.ended and peak < MEMORY_LIMIT_MB,
    )


async def streams(address: str, backend: Backend) -> tuple[str, bool]:
    client = await RawClient.connect(address)
    for index in range(CALLS):
        await client.call(2 * index + 1, "Hold", b"")
    with trio.move_on_after(60):
        while len(client.ended) < CALLS:
            await client.read_some(credit=True)
    connections = len(backend.held)
    text = f"{len(client.ended)} calls, {connections} upstream connections, up to {backend.most_on_one} streams on one"
    return text, (len(client.ended), connections, backend.most_on_one) == (CALLS, CALLS // MS, MS)


async def measure(engine: str, gib: float) -> bool:
    """Run everything for one engine and print a line for each bound."""
    backend, good = Backend(), True
    async with trio.open_nursery() as nursery:
        upstream = await nursery.start(backend.serve, "127.0.0.1:0")
        for name in ("slow reader", "no reader", "streams"):
            with proxy_process(upstream, engine) as (address, pid):
                match name:
                    case "slow reader":
                        text, held = await slow_reader(address, pid, gib)
                    case "no reader":
                        text, held = await no_reader(address, pid, gib)
                    case _:
                        text, held = await streams(address, backend)
            print(f"{engine:6} {name:12} {'ok' if held else 'FAILED':7} {text}", flush=True)
            good = good and held
        nursery.cancel_scope.cancel()
    return good


def main() -> int:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description="measure the proxy's bounds")
    parser.add_argument("--engine", action="append", choices=["h2", "relay"], help="default: both")
    parser.add_argument("--gib", type=float, default=4.0, help="length of the slow stream (default: 4)")
    arguments = parser.parse_args()
    held = [trio.run(measure, engine, arguments.gib) for engine in arguments.engine or ["h2", "relay"]]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
