"""Each preset of `rawgrpc-proxy faults` against clients of other libraries: what their callers see.

Calls go from a caller (`interop/peers`) over a relay that keeps all bytes to the command, and on to a server of grpcio.
What has to come of them is in `preset_cases.py`.
"""

from __future__ import annotations

import fnmatch
import json
from collections import Counter
from collections.abc import Sequence

import trio

from interop.lab.preset_cases import CASES, Case, Ended, Seen
from interop.lab.programs import command, tail
from interop.lab.row import Row, Say
from interop.lab.wire import wire_before
from interop.peers.catalogue import left_out, peer_command
from interop.shared.processes import Listener, Trouble
from interop.shared.running import running
from rawgrpc_proxy.lab.faults.presets import PRESETS

CALLERS = ("grpcio", "grpcio-aio", "grpclib", "grpc-js", "grpc-go", "rawgrpc-proxy")
SERVER = "grpcio"
_SECONDS = 90.0
_GRPCLIB_GOAWAY = (
    "grpclib", "StreamTerminatedError (Connection lost)",
    "grpclib closes its connection when a GOAWAY comes, with the call that the GOAWAY lets finish (RFC 9113 §6.8)",
)  # fmt: skip
KNOWN = {
    "goaway": [_GRPCLIB_GOAWAY],
    "deploy": [_GRPCLIB_GOAWAY],
    "data_frame_padding": [
        (
            "grpcio*", "unsupported data flags",
            "the C core takes no padded DATA; gRPC's own run of this case leaves it out for all languages on it",
        )
    ],
}  # fmt: skip
"""What fails by a fault of a library: of which client, with which words in the outcome, and why."""
SAME_FOR_ALL = "flaky-backend"
"""Which calls a fault strikes is decided by the seed and their order, so it is the same for every client."""


async def presets(
    say: Say, *, only: Sequence[str] = ("*",), clients: Sequence[str] = ("*",), seed: int = 7
) -> list[Row]:
    """A row for each preset and client."""
    rows = [
        Row(f"faults: {name}", "all clients", False, "it is not known here what comes of it: preset_cases.py")
        for name in PRESETS
        if name not in CASES and _wanted(name, only)
    ]
    async with running(Listener(f"{SERVER} server", peer_command(SERVER, "server"))) as server:
        for preset, case in CASES.items():
            if not _wanted(preset, only):
                continue
            kinds: dict[str, list[str]] = {}
            for client in CALLERS:
                if _wanted(client, clients):
                    say(f"faults: {preset}, {client}")
                    rows.append(await _row(preset, case, client, server.target, seed, kinds))
            if preset == SAME_FOR_ALL and kinds:
                rows.append(_all_alike(preset, kinds))
    return rows


def _wanted(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


async def _row(
    preset: str, case: Case, client: str, server: str, seed: int, kinds: dict[str, list[str]]
) -> Row:
    part = f"faults: {preset}: {case.says}"
    if client != "rawgrpc-proxy" and (reason := left_out(client)) is not None:
        return Row(part, client, None, reason)
    try:
        seen = await _seen(preset, case, client, server, seed)
    except Trouble as trouble:
        return Row(part, client, False, str(trouble))
    kinds[client] = [call.status if call.status in ("OK", "UNAVAILABLE") else "reset" for call in seen.calls]
    wrong = list(case.wrong(seen))
    return Row(
        part,
        client,
        not wrong,
        "; ".join([_outcome(seen.calls), *wrong]),
        known=_known(preset, client, wrong),
    )


def _known(preset: str, client: str, wrong: Sequence[str]) -> str:
    for whose, words, why in KNOWN.get(preset, ()):
        if fnmatch.fnmatchcase(client, whose) and all(words in each for each in wrong):
            return why
    return ""


async def _seen(preset: str, case: Case, client: str, server: str, seed: int) -> Seen:
    options = f"--upstream={server}", f"--preset={preset}", f"--seed={seed}"
    async with (
        command("faults", "--listen=127.0.0.1:0", *options) as proxy,
        wire_before(proxy) as (wire, target),
    ):
        call = [*peer_command(client, "caller"), "--target", target, "--deadline", str(case.deadline_s)]
        with trio.move_on_after(_SECONDS):
            done = await trio.run_process(
                [*call, "--plan", json.dumps(case.plan)],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
            steps = [
                [Ended(**call) for call in json.loads(line)["calls"]]
                for line in done.stdout.decode().splitlines()
            ]
            wanted = [step["calls"] for step in case.plan if "calls" in step]
            if [len(step) for step in steps] != wanted:
                said = tail(done.stderr.decode(errors="replace"))
                raise Trouble(f"the caller ended with exit code {done.returncode}: {said}")
            return Seen(steps, wire.kept, case.deadline_s)
        raise Trouble(f"the caller does not end within {_SECONDS:.0f} s")


def _outcome(calls: Sequence[Ended]) -> str:
    """In words: of a few, in order, of many, how often."""
    if len(calls) == 1:
        [call] = calls
        return f"{call.status}: {call.message[:150]}" if call.message else call.status
    if len(calls) <= 3:
        return ", ".join(call.status for call in calls)
    return ", ".join(
        f"{count} {status}" for status, count in Counter(call.status for call in calls).most_common()
    )


def _all_alike(preset: str, kinds: dict[str, list[str]]) -> Row:
    ways = {tuple(each) for each in kinds.values()}
    words = (
        "the same calls are struck"
        if len(ways) == 1
        else "; ".join(f"{client}: {each}" for client, each in kinds.items())
    )
    return Row(f"faults: {preset}: {CASES[preset].says}", "all clients", len(ways) == 1, words)
