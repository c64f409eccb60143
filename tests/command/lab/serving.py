"""A `serve` that runs, in a process of its own, and those who look into it."""

import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import attrs

from tests.command.echo import an_echo
from tests.processes import Program, program


@attrs.frozen
class Serving:
    program: Program
    address: str
    admin: str

    def tap(self, *options: str) -> AbstractAsyncContextManager[Program]:
        return program("tap", "--attach", self.admin, *options)

    def lint(self, *options: str) -> AbstractAsyncContextManager[Program]:
        return program("lint", "--attach", self.admin, *options)

    async def attached(self, tap: Program, workers: int = 2) -> None:
        """Wait until all workers are looked at."""
        for number in range(1, workers + 1):
            await tap.line(rf"worker {number} \(process \d+\): attached$", "stdout")


@asynccontextmanager
async def serving(
    folder: Path, *, tap: bool = True, engine: str = "relay", workers: int = 2
) -> AsyncIterator[Serving]:
    async with an_echo() as upstream:
        file = folder / "proxy.toml"
        file.write_text(
            f'workers = {workers}\n[http2]\nengine = "{engine}"\n[[listeners]]\naddress = "127.0.0.1:0"\n[admin]\n'
            f'address = "127.0.0.1:0"\ntap = {str(tap).lower()}\n[clusters.c]\nendpoints = ["{upstream}"]\n'
            '[[routes]]\ncluster = "c"\n'
        )
        async with program("serve", "--config", str(file)) as running:
            admin = await running.line(r"^admin: http://(\S+)/$", "stdout")
            yield Serving(running, await running.address(), admin[1])
            running.signal(signal.SIGTERM)
            assert await running.exit_code() == 0
