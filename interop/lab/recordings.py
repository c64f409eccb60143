"""What `record` writes, held against the bytes on the wire; and what `replay` and `serve-recording` make of it.

The bytes are kept by relays (`wire.py`) on both sides of whoever is looked at, and recordings are read here by the page
that describes them (docs/recording.md), not by the code that wrote them.
"""

from __future__ import annotations

import base64
import json
import subprocess
import tempfile
from collections import Counter, deque
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import trio

from interop.lab.programs import command, in_thread, run, tail
from interop.lab.row import Row, Say
from interop.lab.wire import Frame, Kept, frames_of, wire_before
from interop.matrix import etcd_cases
from interop.peers.catalogue import left_out, peer_command
from interop.shared.etcd import EtcdPorts, etcd_server
from interop.shared.frames import ACK, PING, SETTINGS, WINDOW_UPDATE
from interop.shared.ports import free_port
from interop.shared.processes import Listener, Trouble
from interop.shared.programs import find

PART = "recordings of {}"
CASES = (
    "empty_unary", "large_unary", "client_compressed_unary", "client_streaming", "server_streaming", "ping_pong",
    "empty_stream", "custom_metadata", "status_code_and_message", "special_status_message",
    "cancel_after_first_response", "headers_63k",
)  # fmt: skip
ETCD_CASES = ("put", "get", "watch", "txn")
BY_TIME = ("RecordService", "etcdserverpb.Watch")
"""What these answer, and in how many messages, depends on how far calls on other connections have come."""
_SECONDS = 120.0
_SETTLE_S = 0.5
"""What is still on its way when a client has ended gets so long."""
Play = Callable[[str], Any]
"""Have the client make its calls to this target; answers what it saw."""
Serve = Callable[[], AbstractContextManager[str]]
"""A fresh server, and its target."""
Links = list[tuple[bytes, bytes]]
"""Of each connection, what its client and its server have sent."""


@dataclass(frozen=True)
class Pair:
    """A client and a server."""

    name: str
    serve: Serve
    play: Play
    waits: tuple[str, ...] = ()
    """Cases in which one call waits for what comes of another one.

    A server that is played call by call knows nothing of that: it gives each call its answer at once.
    """

    @property
    def part(self) -> str:
        return PART.format(self.name)


def pairs() -> list[Pair]:
    """All of them."""
    ports = EtcdPorts()
    return [
        Pair("grpcio -> grpcio", partial(_peer, "grpcio"), partial(_play_peer, "grpcio")),
        Pair("grpc-js -> grpcio", partial(_peer, "grpcio"), partial(_play_peer, "grpc-js")),
        Pair("etcdctl -> etcd", partial(etcd_server, ports), _play_etcd, waits=("watch",)),
    ]


def missing(pair: Pair) -> str | None:
    """Why it cannot be looked at here."""
    if pair.name.startswith("etcdctl"):
        try:
            find("etcd"), find("etcdctl")
        except Trouble as trouble:
            return str(trouble)
        return None
    return left_out(pair.name.split()[0])


async def recordings(say: Say) -> list[Row]:
    """Each pair, recorded and played again."""
    rows = []
    for pair in pairs():
        if (reason := missing(pair)) is not None:
            rows.append(Row(pair.part, "all of it", None, reason))
            continue
        try:
            rows += await _of_pair(pair, say)
        except Trouble as trouble:
            rows.append(Row(pair.part, "all of it", False, str(trouble)))
    return rows


async def _of_pair(pair: Pair, say: Say) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "calls.jsonl"
        # The same port everywhere: clients name it in :authority.
        port = free_port()
        say(f"{pair.name}: recorded")
        rows, seen = await _record(pair, file, port)
        for side in ("downstream", "upstream"):
            recorded = links_of(file, side)
            say(f"{pair.name}: {side} connections played")
            rows.append(await _replayed(pair, file, side, recorded))
            rows.append(await _both_played(pair, file, side, recorded))
        say(f"{pair.name}: the server played to the real client")
        rows.append(await _matched(pair, file, port, seen))
        rows.append(await _exact(pair, file, port, seen))
        return rows


async def _record(pair: Pair, file: Path, port: int) -> tuple[list[Row], Any]:
    async with (
        in_thread(pair.serve()) as server,
        wire_before(server) as (behind, target),
        command("record", "-o", str(file), "--listen=127.0.0.1:0", f"--upstream={target}") as proxy,
        wire_before(proxy, port) as (before, address),
    ):
        seen = await trio.to_thread.run_sync(pair.play, address)
        await trio.sleep(_SETTLE_S)
    rows = []
    for side, wire in (("downstream", before), ("upstream", behind)):
        recorded, passed = links_of(file, side), [_bytes(kept) for kept in wire.kept]
        good = bool(passed) and Counter(recorded) == Counter(passed)
        rows.append(Row(pair.part, f"{side}: recorded", good, _told(recorded, passed, good=good)))
    return rows, seen


async def _replayed(pair: Pair, file: Path, side: str, recorded: Links) -> Row:
    """The client's part, to a fresh server of the same kind."""
    junit = file.with_suffix(f".{side}.xml")
    async with in_thread(pair.serve()) as server, wire_before(server) as (wire, target):
        _, output = await run("replay", str(file), f"--side={side}", f"--to={target}", f"--junit={junit}")
    frames = [frames_of(client, client=True) for client, _ in recorded]
    again = [frames_of(kept.client, client=True) for kept in wire.kept]
    beside = [_beside(*each) for each in zip(frames, again, strict=False)]
    differ, by_time = _answers(junit)
    what = f"{side}: played as client to a server"
    if differ or None in beside or len(frames) != len(again):
        others = [number for number, each in enumerate(beside) if each is None]
        told = f"other frames on the connections {others} of {len(again)}, other answers in {differ}; {tail(output)}"
        return Row(pair.part, what, False, told)
    told = (
        f"{sum(map(len, frames))} frames on {len(frames)} connections, each byte the same, and answered alike"
    )
    if extra := sum(each or 0 for each in beside):
        told += f"; beside them {extra} that this server's own PINGs, SETTINGS and DATA ask for"
    if by_time:
        told += f"; {by_time} calls ask how far others have come, and got another answer"
    return Row(pair.part, what, True, told)


def _answers(junit: Path) -> tuple[list[str], int]:
    """The calls that were answered otherwise; and how many more of those whose answers depend on the time."""
    differ = [
        f"{case.get('classname')} {case.get('name')}"
        for case in ET.parse(junit).iter("testcase")  # noqa: S314  # it is ours
        if len(case)
    ]
    wrong = [name for name in differ if not any(each in name for each in BY_TIME)]
    return wrong, len(differ) - len(wrong)


async def _both_played(pair: Pair, file: Path, side: str, recorded: Links) -> Row:
    """Both parts, with nobody else: nothing can ask for more, so all bytes are the same."""
    async with (
        command("serve-recording", str(file), f"--side={side}", "--exact", "--listen=127.0.0.1:0") as server,
        wire_before(server) as (wire, target),
    ):
        code, output = await run("replay", str(file), f"--side={side}", f"--to={target}", "--concurrency=1")
    passed = [_bytes(kept) for kept in wire.kept]
    good = code == 0 and recorded == passed
    told = _told(recorded, passed, good=good) + ("" if good else f"; {tail(output)}")
    return Row(pair.part, f"{side}: played as client and as server", good, told)


async def _matched(pair: Pair, file: Path, port: int, seen: Any) -> Row:
    """The server's part, to the real client, call by call."""
    return await _told_client(pair, port, seen, "call by call", "serve-recording", str(file))


async def _exact(pair: Pair, file: Path, port: int, seen: Any) -> Row:
    return await _told_client(pair, port, seen, "byte for byte", "serve-recording", str(file), "--exact")


async def _told_client(pair: Pair, port: int, seen: Any, how: str, *played: str) -> Row:
    async with (
        command(*played, "--listen=127.0.0.1:0") as server,
        wire_before(server, port) as (wire, address),
    ):
        again = await trio.to_thread.run_sync(pair.play, address)
    what = f"played as server to the real client, {how}"
    told = "the client sees what it saw"
    if "--exact" in played:
        recorded = [frames_of(server, client=False) for _, server in links_of(Path(played[1]), "downstream")]
        passed = [frames_of(kept.server, client=False) for kept in wire.kept]
        # The last frames of a server answer the client's end; this client may be gone by then.
        beside = [_beside(*each, whole=False) for each in zip(recorded, passed, strict=False)]
        good = again == seen and None not in beside and len(passed) == len(recorded)
        told += f", in {sum(map(len, passed))} of the {sum(map(len, recorded))} recorded frames, each byte the same"
        if extra := sum(each or 0 for each in beside):
            told += f"; beside them {extra} that its PINGs, SETTINGS and DATA ask for"
    else:
        again, seen = (
            {case: told for case, told in each.items() if case not in pair.waits} for each in (again, seen)
        )
        good = again == seen
        if pair.waits:
            told += f"; without {', '.join(pair.waits)}, where calls wait for each other"
    return Row(pair.part, what, good, told if good else f"the client saw {_difference(seen, again)}")


# --------------------------------------------------------------------------- what was recorded, and what passed


def links_of(file: Path, side: str) -> Links:
    """A recording, as docs/recording.md says that it is to be read."""
    sides: dict[int, str] = {}
    sent: dict[tuple[int, str], bytearray] = {}
    with file.open(encoding="ascii") as lines:
        for line in lines:
            record = json.loads(line)
            if record["kind"] == "open":
                sides[record["link"]] = record["side"]
            if "raw" in record:
                sent.setdefault((record["link"], record["from"]), bytearray()).extend(
                    base64.b64decode(record["raw"])
                )
    return [
        (bytes(sent.get((link, "client"), b"")), bytes(sent.get((link, "server"), b"")))
        for link, whose in sides.items()
        if whose == side
    ]


def _bytes(kept: Kept) -> tuple[bytes, bytes]:
    return bytes(kept.client), bytes(kept.server)


def _beside(recorded: list[Frame], again: list[Frame], *, whole: bool = True) -> int | None:
    """How many frames were sent beside the recorded ones; None if one of these has other bytes, or is missing.

    The answer to a PING has the bytes of that PING, which the peer has chosen. Without `whole` the last ones may be
    missing.
    """
    wanted = deque(frame for frame in recorded if not _is_answer(frame))
    extra = 0
    for frame in again:
        if wanted and frame == wanted[0]:
            wanted.popleft()
        elif frame[0] == WINDOW_UPDATE:
            extra += 1
        elif not _is_answer(frame):
            return None
    more = sum(map(_is_answer, again)) - sum(map(_is_answer, recorded))
    return None if wanted and whole else extra + max(more, 0)


def _is_answer(frame: Frame) -> bool:
    return frame[0] in (PING, SETTINGS) and bool(frame[1] & ACK)


def _told(recorded: Links, passed: Links, *, good: bool) -> str:
    if good:
        size = sum(len(client) + len(server) for client, server in passed)
        return f"all {size:,} bytes of {len(passed)} connections, each way"
    for number, (then, now) in enumerate(zip(recorded, passed, strict=False)):
        for who, one, other in zip(("client", "server"), then, now, strict=True):
            if one != other:
                return (
                    f"connection {number}: {len(one):,} bytes of the {who} were recorded, {len(other):,} have passed; "
                    f"the first {_alike(one, other):,} are the same"
                )
    return f"{len(recorded)} connections were recorded, {len(passed)} have passed"


def _alike(one: bytes, other: bytes) -> int:
    """How many bytes from the beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (this, that) in pairs if this != that), min(len(one), len(other)))


def _difference(seen: Any, again: Any) -> str:
    if isinstance(seen, dict) and isinstance(again, dict):
        cases = [case for case in seen if seen[case] != again.get(case)]
        return (
            f"something else in {', '.join(cases)}: {json.dumps(again.get(cases[0]))[:300]}"
            if cases
            else "more"
        )
    return "something else"


# --------------------------------------------------------------------------- programs


@contextmanager
def _peer(name: str) -> Any:
    with Listener(f"{name} server", peer_command(name, "server")) as server:
        yield server.target


def _play_peer(name: str, target: str) -> dict[str, Any]:
    command = [
        *peer_command(name, "client"),
        "--target",
        target,
        "--cases",
        ",".join(CASES),
        "--run-id",
        "lab",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise Trouble(f"the client {name} hangs") from None
    outcomes = {}
    for line in done.stdout.splitlines():
        outcome = json.loads(line)
        del outcome["seconds"]
        outcomes[outcome.pop("case")] = outcome
    if len(outcomes) != len(CASES):
        raise Trouble(f"the client {name} ended with {done.returncode}: {tail(done.stderr)}")
    return outcomes


def _play_etcd(target: str) -> dict[str, Any]:
    return {case: etcd_cases.play(case, target) for case in ETCD_CASES}
