"""The programs of a run beside the servers: a client from its start to its end, and the proxy before a server."""

from __future__ import annotations

import json
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from interop.matrix.outcome import normalised
from interop.peers.catalogue import peer_command
from interop.shared.ports import free_port
from interop.shared.processes import Listener

#: A client program that takes longer than this hangs.
CLIENT_SECONDS = 900.0


@contextmanager
def proxy(
    command: str | None, engine: str | None, upstream: str, options: Sequence[str] = ()
) -> Iterator[Listener | None]:
    """The proxy in front of a server; None without a command, where the run compares the server with itself.

    The command is a template, see `--proxy-command`; `options` are added to it.
    Raises `Trouble` if the proxy does not start, or does not end.
    """
    if command is None:
        yield None
        return
    host, port = upstream.rsplit(":", 1)
    chosen = free_port() if "{port}" in command else None
    filled_in = command.format(
        python=shlex.quote(sys.executable),
        upstream=upstream,
        upstream_host=host,
        upstream_port=port,
        port=chosen,
    )
    if engine is not None:
        filled_in += f" --engine {shlex.quote(engine)}"
    with Listener("proxy", [*shlex.split(filled_in), *options], chosen) as listener:
        yield listener


def run_client(name: str, target: str, cases: list[str], options: Sequence[str] = ()) -> dict[str, Any]:
    """The outcomes of a client program. If it dies of a case, the rest is played by another one."""
    outcomes: dict[str, Any] = {}
    for _ in cases:
        waiting = [case for case in cases if case not in outcomes]
        if not waiting:
            break
        run_id = secrets.token_hex(8)
        command = [*peer_command(name, "client"), *options, "--target", target, "--cases", ",".join(waiting)]
        try:
            done = subprocess.run(
                [*command, "--run-id", run_id],
                capture_output=True,
                text=True,
                timeout=CLIENT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            outcomes.update((case, {"failure": "the client program hangs"}) for case in waiting)
            break
        for line in done.stdout.splitlines():
            outcome = json.loads(line.replace(target, "TARGET").replace(run_id, "RUN"))
            case = outcome.pop("case")
            outcomes[case] = normalised(case, outcome)
        missing = [case for case in waiting if case not in outcomes]
        if len(missing) == len(waiting):
            tail = " / ".join(done.stderr.splitlines()[-3:])
            outcomes[missing[0]] = {"failure": f"the client ended with exit code {done.returncode}: {tail}"}
    return outcomes
