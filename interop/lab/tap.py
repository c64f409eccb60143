"""Measures `rawgrpc-proxy tap`: how soon a message is shown, and how much memory a long stream takes.

A backend and a caller run here, the tap in a process of its own. Judged are: each message of a bidi stream of 20 a
second is shown within 50 ms, before the stream ends; and so many GiB through one stream keep the tap below 100 MB. A
machine that is busy with other things shows messages later: the waits are told in full.
"""

import math
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from interop.lab.programs import command_line
from interop.lab.row import Row, Say
from rawgrpc_proxy.client.client import Client
from rawgrpc_proxy.command.demo import ECHO_SERVICE, backend
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.grpc.codec import identity_codec
from rawgrpc_proxy.observe.call_log import CallLog
from rawgrpc_proxy.server.server import Server
from rawgrpc_proxy.services.methods import ServedCall, stream_unary

PART = "tap"
A_SECOND, SECONDS = 20, 5
MAX_LATENCY_S = 0.05
MAX_BYTES = 100_000_000
MESSAGE_BYTES = 1 << 20
SINK = "/lab.Sink/Take"


async def _take(requests: AsyncIterator[bytes], _call: ServedCall) -> bytes:
    total = 0
    async for request in requests:
        total += len(request)
    return str(total).encode()


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[str]:
    """Its address."""
    async with trio.open_nursery() as nursery:
        yield await nursery.start(partial(server.serve, "127.0.0.1:0"))
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def tap(upstream: str, *options: str, stdout: int) -> AsyncIterator[tuple[trio.Process, str]]:
    """A tap before this upstream, and its address, which it writes on standard error."""
    command = command_line("tap", "--upstream", upstream, "-o", "-", *options)
    process = await trio.lowlevel.open_process(command, stdout=stdout, stderr=subprocess.PIPE)
    try:
        said = b""
        while b"\n" not in said:
            said += await process.stderr.receive_some()
        yield process, re.match(r"listening on (\S+)", said.decode())[1]
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def tapped(say: Say, gib: float) -> list[Row]:
    """How soon, and how much memory."""
    say("tap: a stream of 20 messages a second")
    rows = [await _latency()]
    for mode in ("--messages --decode", "--frames"):
        say(f"tap {mode}: {gib:g} GiB")
        rows.append(await _memory(mode, gib))
    return rows


async def _latency() -> Row:
    """Whether each message is shown in time."""
    quiet = CallLog()
    quiet.level = "none"
    shown: dict[int, float] = {}
    sent: dict[int, float] = {}

    async def read(stream: trio.abc.ReceiveStream) -> None:
        # The tap writes whole lines at once, far fewer bytes than a pipe cuts.
        async for data in stream:
            for text in re.findall(rb'"from":"caller"[^\n]*?"index":(\d+)', data):
                shown.setdefault(int(text), time.monotonic())

    async with (
        serving(backend(Http2Settings(), quiet)) as upstream,
        trio.open_nursery() as nursery,
        tap(upstream, "--decode", stdout=subprocess.PIPE) as (process, address),
    ):
        nursery.start_soon(read, process.stdout)
        async with Client(address) as client, client.stream_stream(f"/{ECHO_SERVICE}/Bidi") as call:
            for number in range(A_SECOND * SECONDS):
                sent[number] = time.monotonic()
                await call.send(b"\x08\x01")
                await call.receive()
                await trio.sleep(1 / A_SECOND)
            seen_before_the_end = len(shown)
            await call.done_sending()
            await call.receive()
    waits = sorted(shown.get(number, math.inf) - at for number, at in sent.items())
    half, nine, most = waits[len(waits) // 2], waits[len(waits) * 9 // 10], waits[-1]
    told = (
        f"{seen_before_the_end} of {len(sent)} before the stream ends; after {half * 1e3:.1f} ms (median), "
        f"{nine * 1e3:.1f} ms (nine of ten), {most * 1e3:.1f} ms at most"
    )
    good = seen_before_the_end == len(sent) and most < MAX_LATENCY_S
    return Row(
        PART, f"{A_SECOND} messages a second are shown within {MAX_LATENCY_S * 1e3:.0f} ms", good, told
    )


async def _memory(mode: str, gib: float) -> Row:
    """Whether the tap stays small."""
    sink = Server(codec=identity_codec())
    sink.add_method(SINK, stream_unary(_take, bytes))
    number = int(gib * 2**30 / MESSAGE_BYTES)
    payload = os.urandom(MESSAGE_BYTES)
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "rows").open("wb") as rows:
        async with (
            serving(sink) as upstream,
            tap(upstream, *mode.split(), stdout=rows.fileno()) as (process, address),
        ):
            before = _high_water(process.pid)
            started = time.monotonic()
            async with Client(address) as client, client.stream_stream(SINK) as call:
                for _ in range(number):
                    await call.send(payload)
                await call.done_sending()
                taken = int(await call.receive())
            took = time.monotonic() - started
            most = _high_water(process.pid)
            size = os.fstat(rows.fileno()).st_size
    told = (
        f"at most {most / 1e6:.1f} MB (before: {before / 1e6:.1f}); {taken / 2**30:.2f} GiB in {took:.1f} s "
        f"({taken / took / 1e6:.0f} MB/s), {size / 1e6:.1f} MB of rows"
    )
    good = taken == number * MESSAGE_BYTES and most < MAX_BYTES
    return Row(PART, f"{gib:g} GiB in a stream take less than {MAX_BYTES / 1e6:.0f} MB, {mode}", good, told)


def _high_water(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
