"""Plants the faults of `plants.py`, on real connections through `rawgrpc-proxy lint`, and reads what it tells of them.

Each is played by a caller and an upstream in raw frames, before a linter of its own: that fault has to be found, at the
end that made it, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from interop.lab.plants import GOOD_CALL, GOOD_RESPONSE, PLANTS, Plant, Script
from interop.lab.programs import command
from interop.lab.row import Row, Say
from interop.shared.frames import (
    ACK,
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    acknowledgement,
    settings,
    take_frames,
)
from interop.shared.processes import Trouble

PART = "the linter, with planted faults"
AT_LEAST = 40
_AT_A_TIME = 4
_PATIENCE_S = 5.0
_READ_BYTES = 65_536
Found = set[tuple[str, str]]
"""Rules, and whose fault."""


async def planted(say: Say) -> list[Row]:
    """All of them, some at a time."""
    places = trio.CapacityLimiter(_AT_A_TIME)
    told: dict[int, str | None] = {}

    async def one(number: int, plant: Plant) -> None:
        async with places:
            told[number] = await _missed(plant)
            say(f"planted faults: {len(told)} of {len(PLANTS)}")

    async with trio.open_nursery() as nursery:
        for number, plant in enumerate(PLANTS):
            nursery.start_soon(one, number, plant)
    missed = [
        Row(PART, f"{plant.rule}, of the {plant.whose}", False, problem)
        for number, plant in enumerate(PLANTS)
        if (problem := told[number]) is not None
    ]
    found, rules = len(PLANTS) - len(missed), len({plant.rule for plant in PLANTS})
    good = not missed and found >= AT_LEAST
    words = (
        f"{found} of {len(PLANTS)} are found, each at the end that made it, and nothing else; {rules} rules"
    )
    return [Row(PART, "in raw frames of a caller, or of an upstream", good, words), *missed]


async def _missed(plant: Plant) -> str | None:
    """What else was found than this fault alone; None if it was that."""
    try:
        found = await _found(plant)
    except Trouble as trouble:
        return str(trouble)
    if found == {(plant.rule, plant.whose)}:
        return None
    return "found: " + (", ".join(f"{rule} of the {whose}" for rule, whose in sorted(found)) or "nothing")


async def _found(plant: Plant) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "findings.json"
        async with (
            _upstream(plant) as upstream,
            command("lint", f"--upstream={upstream}", f"--json={file}", "--fail-on=never") as address,
        ):
            await _call(address, plant.caller or GOOD_CALL)
        findings = json.loads(file.read_text())["findings"]
    return {(finding["rule"], finding["who"]) for finding in findings}


class _End:
    """One end of a connection: it acknowledges SETTINGS and PING, and knows which streams the other has ended."""

    def __init__(self, stream: trio.SocketStream, *, is_server: bool) -> None:
        self._stream = stream
        self._left = len(PREFACE) if is_server else 0
        self._buffer = bytearray()
        self.ended: list[int] = []
        """Streams, in this order; 0: the whole connection."""

    async def send(self, script: Script) -> None:
        for each in script:
            if isinstance(each, bytes):
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._stream.send_all(each)
            else:
                with trio.move_on_after(each):
                    await self.hear(until=0)

    async def hear(self, *, until: int = -1) -> None:
        """Read until another stream is ended, or this one."""
        known = len(self.ended)
        while 0 not in self.ended and (until >= 0 or len(self.ended) == known):
            try:
                data = await self._stream.receive_some(_READ_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                self.ended.append(0)
            self._buffer += data
            await self.send(self._answers())

    def _answers(self) -> list[bytes]:
        if len(self._buffer) < self._left:
            return []
        del self._buffer[: self._left]
        self._left = 0
        answers = []
        for kind, flags, stream_id, payload in take_frames(self._buffer):
            if kind in (SETTINGS, PING) and not flags & ACK:
                answers.append(acknowledgement(kind, payload))
            elif kind == RST_STREAM or (kind in (HEADERS, DATA) and flags & END_STREAM):
                self.ended.append(stream_id)
            elif kind == GOAWAY and int.from_bytes(payload[4:8]):
                self.ended.append(0)
        return answers


async def _call(address: str, script: Script) -> None:
    """Say what the script says, until it is answered, or nobody is there any more."""
    host, port = address.rsplit(":", 1)
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        end = _End(stream, is_server=False)
        await end.send([PREFACE + settings({}), 0.1, *script])
        with trio.move_on_after(_PATIENCE_S):
            if not end.ended:
                await end.hear()
        # What the upstream says behind its answer is to be on its way as well.
        with trio.move_on_after(0.2):
            await end.hear(until=0)


@asynccontextmanager
async def _upstream(plant: Plant) -> AsyncIterator[str]:
    """A server that answers the first request of each connection with the script; its address."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            if plant.raw:
                await stream.receive_some(_READ_BYTES)
                await stream.send_all(plant.raw)
                await stream.receive_some(_READ_BYTES)
                return
            end = _End(stream, is_server=True)
            await end.send([settings({})])
            await end.hear()
            if 0 not in end.ended:
                await end.send(plant.upstream or GOOD_RESPONSE)
                await end.hear(until=0)

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()
