"""`rawgrpc-proxy` in a process of its own, as the tests see it: arguments, lines, signals, exit code."""

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Literal

import trio

TIMEOUT_S = 60.0
"""For whatever a test waits for. PyPy takes seconds to start, and a busy machine is slow."""


class Program:
    """A running `rawgrpc-proxy`, and the lines it has written so far."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self._changed = trio.Event()
        self._reading = 2

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def line(self, pattern: str, stream: Literal["stdout", "stderr"] = "stderr") -> re.Match[str]:
        """Wait until a line of the stream matches."""
        lines = self.stdout if stream == "stdout" else self.stderr
        while True:
            for line in lines:
                if match := re.search(pattern, line):
                    return match
            assert self._reading, f"{pattern!r} never came; stdout: {self.stdout}, stderr: {self.stderr}"
            changed = self._changed
            await changed.wait()

    async def lines(self, pattern: str, times: int) -> None:
        """Wait until so many lines of standard error match."""
        while sum(bool(re.search(pattern, line)) for line in self.stderr) < times:
            assert self._reading, f"{pattern!r} never came {times} times; stderr: {self.stderr}"
            await self._changed.wait()

    async def address(self) -> str:
        """Wait until it listens, and answer where."""
        return (await self.line(r"^listening on (\S+)$", "stdout"))[1]

    def signal(self, number: signal.Signals) -> None:
        """Send it this signal."""
        self._process.send_signal(number)

    async def exit_code(self) -> int:
        """Wait for its end, and for its last line."""
        await self._process.wait()
        while self._reading:
            await self._changed.wait()
        assert self._process.returncode is not None
        return self._process.returncode

    async def hang_up(self, stream: Literal["stdout", "stderr"]) -> None:
        """Stop reading this stream, so that writing to it fails."""
        pipe = getattr(self._process, stream)
        await pipe.aclose()

    async def _read(self, stream: trio.abc.ReceiveStream, lines: list[str]) -> None:
        rest = b""
        with contextlib.suppress(trio.ClosedResourceError):
            async for data in stream:
                *complete, rest = (rest + data).split(b"\n")
                lines += [line.decode() for line in complete]
                self._tell()
        lines += [rest.decode()] if rest else []
        self._reading -= 1
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


_WITH_FILES = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""


@contextlib.asynccontextmanager
async def program(
    *arguments: str,
    files: tuple[int, int] | None = None,
    python: Sequence[str] | None = None,
    inherits: int | None = None,
) -> AsyncIterator[Program]:
    """Run `rawgrpc-proxy` with these arguments; what is left of it at the end of the block is killed.

    `files` are its soft and hard limits on files; `python` are arguments of Python instead of `arguments`, and
    `inherits` is a file descriptor that it gets.
    """
    command = ["-m", "rawgrpc_proxy", *arguments] if python is None else list(python)
    if files is not None:
        command = ["-c", _WITH_FILES, *map(str, files), *command]
    process = await trio.lowlevel.open_process(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=() if inherits is None else (inherits,),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    running = Program(process)
    try:
        with trio.fail_after(TIMEOUT_S):
            async with process.stdout, process.stderr, trio.open_nursery() as nursery:
                nursery.start_soon(running._read, process.stdout, running.stdout)
                nursery.start_soon(running._read, process.stderr, running.stderr)
                yield running
                nursery.cancel_scope.cancel()
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
