"""A row played with one library: the proxy, its backends, the caller with the fault and somebody else's calls."""

from __future__ import annotations

import json
import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from interop.peers.catalogue import peer_command
from interop.shared.processes import LISTENING, START_SECONDS, Listener, Trouble
from interop.tls import without_alpn
from interop.tls.rows import PLAIN, Pem, Row

#: The call with the fault, and somebody else's; routes tell them apart by their methods.
FAULTY_CASE, FAULTY_METHOD = "empty_unary", "/grpc.testing.TestService/EmptyCall"
OTHER_CASE = "large_unary"
#: Libraries that raise what they meet, where others make a status of it.
RAISES = ("grpclib",)
#: A line of the log about a peer; the others are of calls, and of the proxy's own life.
OF_A_PEER = re.compile(r"- (upstream |127\.0\.0\.1:)")
#: What is told of again, a second later, where a client has tried for so long.
REPEATED = re.compile(r" \(\d+ more of these since the last line\)$")
#: A client program that takes longer than this hangs.
CLIENT_SECONDS = 60.0


@dataclass
class Cell:
    """What came of a row with one library."""

    caller: str
    """What it was told: status and details, or what its library has raised."""
    lines: list[str] = field(default_factory=list)
    """Those of the log that are about a peer, and no call's."""
    problems: list[str] = field(default_factory=list)
    """Which promises were broken; none: all is well."""


class Proxy(Listener):
    """The proxy, with all of its log; it has two listeners, of which `target` is the first."""

    def __init__(self, command: Sequence[str]) -> None:
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        super().__init__("proxy", command, on_line=self._lines.put)

    def second_target(self) -> str:
        """The other listener's, which is told last."""
        try:
            found = LISTENING.search(self._lines.get(timeout=START_SECONDS))
        except queue.Empty:
            found = None
        if found is None:
            raise Trouble(f"the proxy does not say where else it listens\n{self.tail()}")
        return found[1]

    def log(self) -> list[str]:
        """All lines so far; what is collected comes four times a second, and at the end."""
        return self._output_text().splitlines()


class Site:
    """What the cells of a run share: the files, and backends that are as they should be."""

    def __init__(self, folder: Path, engine: str | None) -> None:
        self.folder = folder
        self.engine = engine
        self._backends: dict[tuple[str, Pem | None], str] = {}
        self._stack = ExitStack()
        self._starting = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def backend(self, library: str, pem: Pem | None) -> str:
        """Where one listens; it is started when it is first asked for. Raises `Trouble`."""
        if (library, pem) not in self._backends:
            if pem is None:
                target = self._stack.enter_context(without_alpn.backend(self.folder))
            else:
                command = [*peer_command(library, "server"), *self.options(pem)]
                target = self._stack.enter_context(Listener(f"{library} server", command)).target
            self._backends[library, pem] = target
        return self._backends[library, pem]

    def options(self, pem: Pem) -> list[str]:
        """A program's, with paths that hold wherever it runs."""
        return [each if each.startswith("--") else str(self.folder / each) for each in pem.options()]

    def play(self, row: Row, library: str) -> Cell:
        """Play it; may be called in several threads. Raises `Trouble` if a program does not start, or does not end."""
        with self._starting:
            good, faulty = self.backend(library, PLAIN), self.backend(library, row.backend)
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write(self._config(row, good, faulty))
            file.flush()
            command = [sys.executable, "-m", "rawgrpc_proxy", "serve", f"--config={file.name}"]
            if self.engine is not None:
                command.append(f"--engine={self.engine}")
            with Proxy(command) as front:
                second = front.second_target()
                target = front.target
                other_target = second if row.beside is None else target
                other = _start(library, other_target, OTHER_CASE, self.options(row.beside or PLAIN))
                if row.caller is None:
                    call = {"status": "", "message": without_alpn.call(target, self.folder)}
                else:
                    call = _outcome(_start(library, target, FAULTY_CASE, self.options(row.caller)))
                beside = _outcome(other)
                front.check_tracebacks()
            return _judged(row, library, call, beside, front.log())

    def _config(self, row: Row, good: str, faulty: str) -> str:
        text = _config(row, good, faulty)
        # Paths in a file are those of where the proxy runs.
        return re.sub(r'"([\w-]+\.(?:pem|ca))"', rf'"{self.folder}/\1"', text)


def _judged(row: Row, library: str, call: dict[str, Any], beside: dict[str, Any], log: Sequence[str]) -> Cell:
    lines = dict.fromkeys(REPEATED.sub("", line.partition(" ")[2]) for line in log)
    cell = Cell(
        f"{call['status']}: {call['message']}".removeprefix(": ").strip(),
        [line for line in lines if OF_A_PEER.match(line)],
    )
    status = call["status"]
    if row.caller is None:
        if call["message"] != without_alpn.HUNG_UP:
            cell.problems.append("the proxy did not hang up")
    elif library not in RAISES or row.of_backend:
        if status != "UNAVAILABLE" or not call["message"]:
            cell.problems.append("the caller is not told UNAVAILABLE, and why")
    elif status == "OK":
        cell.problems.append("the call went through")
    if row.of_backend and not re.search(row.told, call["message"] or ""):
        cell.problems.append(f"the caller is not told {row.told}")
    if not 1 <= len(cell.lines) <= row.lines:
        cell.problems.append(f"the log has {len(cell.lines)} lines of it")
    cell.problems += [f"not {row.told}: {line}" for line in cell.lines if not re.search(row.told, line)]
    if beside["status"] != "OK":
        cell.problems.append(f"somebody else's call: {beside['status']}: {beside['message']}")
    return cell


def _config(row: Row, good: str, faulty: str) -> str:
    def tls(text: str) -> str:
        return f"tls = {{ {text} }}" if text else ""

    return f"""
[[listeners]]
address = "127.0.0.1:0"
{tls(row.listener)}
[[listeners]]
address = "127.0.0.1:0"
[clusters.good]
endpoints = ["{good}"]
[clusters.faulty]
endpoints = ["{faulty}"]
{tls(row.cluster)}
[[routes]]
match = "{FAULTY_METHOD}"
cluster = "faulty"
[[routes]]
cluster = "good"
"""


def _start(library: str, target: str, case: str, options: Sequence[str]) -> subprocess.Popen[str]:
    command = [*peer_command(library, "client"), *options, "--target", target, "--cases", case]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _outcome(client: subprocess.Popen[str]) -> dict[str, Any]:
    """What came of the client's one call. Raises `Trouble` if it does not tell."""
    try:
        out, err = client.communicate(timeout=CLIENT_SECONDS)
    except subprocess.TimeoutExpired:
        client.kill()
        client.communicate()
        raise Trouble("a client hangs") from None
    try:
        outcome: dict[str, Any] = json.loads(out.splitlines()[0])["calls"][0]
    except (IndexError, KeyError) as error:
        raise Trouble(f"a client tells nothing: {out.strip()} {err.strip()[-600:]}") from error
    return outcome
