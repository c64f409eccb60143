"""An admin listener on loopback before a proxy that is only told of, and clients that do what no library does."""

import contextlib
import http.client
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import attrs
import trio
from trio.testing import MockClock

from rawgrpc_proxy.command.admin.http import Limits
from rawgrpc_proxy.command.admin.messages import Refused, Stream
from rawgrpc_proxy.command.admin.site import serve_admin
from rawgrpc_proxy.command.admin.source import Report
from rawgrpc_proxy.command.lab.tap_wishes import TapWishes
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.listen import open_listeners

TIMEOUT_S = 60.0
"""For whatever a test waits for."""
PAGE = {
    "index.html": b"<!doctype html>",
    "page.css": b"body {}",
    "page.js": b"'use strict'",
    "favicon.svg": b"<svg/>",
}


class Told:
    """A source that answers what it was given."""

    def __init__(self) -> None:
        self.config = 'listen = "127.0.0.1:8080" # --listen\n'
        self.engine = "relay"
        self.state = "serving"
        self.started_at = 1.0
        self.workers = [{"worker": 1}, {"worker": 2}]
        self.open_calls: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.levels: list[str] = []
        self.limits: list[int] = []
        self.may_set_faults = False
        self.rules: list[dict[str, Any]] = []
        self.put: list[str] = []
        self.clears = 0
        self.drains = self.reloads = self.asked = 0
        self.exposed = b""
        self.wishes: list[TapWishes] = []
        self.rows: list[bytes] = []
        """What a tap tells; without any it is not allowed."""
        self.closed = 0
        self.fault: BaseException | None = None
        self.gate: trio.Event | None = None
        """What reports and reloads wait for."""
        self.sums: dict[str, Any] = {
            "calls": {"open": 5},
            "endpoints": [],
            "look_ups": {"orders.internal:1": {"failing": 1}},
            "failed": {"lost": {"FIN": 3}},
            "last_failed": [{"worker": 2, "cause": "FIN"}],
        }

    async def _wait(self) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault

    def exposition(self, reports: Sequence[Report], *, openmetrics: bool) -> bytes:
        if self.exposed:
            return self.exposed
        return b"openmetrics %d\n# EOF\n" % len(reports) if openmetrics else b"text %d\n" % len(reports)

    def merged(self, reports: Sequence[Report]) -> dict[str, Any]:
        return {**self.sums, "workers": [report["worker"] for report in reports]}

    def tap(self, wishes: TapWishes) -> Stream:
        self.wishes.append(wishes)
        if not self.rows:
            raise Refused(403, "tap = true")
        return self

    async def run(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        for row in self.rows:
            await send(row)

    def close(self) -> None:
        self.closed += 1

    async def reports(self) -> list[Report]:
        self.asked += 1
        await self._wait()
        return self.workers

    async def calls(self, limit: int) -> list[dict[str, Any]]:
        self.limits.append(limit)
        return list(self.open_calls)

    async def connections(self) -> list[dict[str, Any]]:
        return [{"worker": 1, "side": "downstream"}]

    async def reload(self) -> list[str]:
        self.reloads += 1
        await self._wait()
        return self.problems

    async def faults(self) -> list[dict[str, Any]]:
        return self.rules

    async def put_faults(self, toml: str) -> list[str]:
        await self._wait()
        if not self.problems:
            self.put.append(toml)
        return self.problems

    async def clear_faults(self) -> None:
        self.clears += 1

    def drain(self) -> None:
        self.drains += 1

    async def set_log_level(self, level: str) -> None:
        self.levels.append(level)


@attrs.frozen
class Reply:
    """One response."""

    status: int
    fields: Mapping[str, str]
    """By their names in lower case."""
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@attrs.frozen
class House:
    """What runs, and what it has told."""

    source: Told
    host: str
    port: int
    changes: list[str]
    faults: list[tuple[str, BaseException]]

    @property
    def authority(self) -> str:
        return f"{self.host}:{self.port}"

    def forgive(self) -> list[str]:
        """Answer where something has failed on our side, which this test wanted."""
        told = [where for where, _ in self.faults]
        self.faults.clear()
        return told

    async def ask(self, path: str, method: str = "GET", body: bytes | None = None, /, **fields: str) -> Reply:
        """Ask as Python's own client does, which knows nothing of us. Fields: `Sec_Fetch_Site="none"`."""
        headers = {name.replace("_", "-"): value for name, value in fields.items()}

        def work() -> Reply:
            client = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)
            with contextlib.closing(client):
                client.request(method, path, body=body, headers=headers)
                response = client.getresponse()
                names = {name.lower(): value for name, value in response.getheaders()}
                return Reply(response.status, names, response.read())

        return await trio.to_thread.run_sync(work)

    async def connect(self) -> "Client":
        """Open a connection."""
        return Client(await trio.open_tcp_stream(self.host, self.port))

    async def raw(self, data: bytes) -> bytes:
        """Send this, and nothing more, and answer all that comes until the end, which has to be a gentle one."""
        async with await self.connect() as client:
            await client.send(data)
            answer = b""
            while data := await client.stream.receive_some(65536):
                answer += data
            return answer

    def get(self, path: str = "/livez", *fields: str, version: str = "1.1", method: str = "GET") -> bytes:
        """A request in bytes."""
        lines = [f"{method} {path} HTTP/{version}", f"Host: {self.authority}", *fields, "", ""]
        return "\r\n".join(lines).encode()


class Client:
    """A connection that says what the test wants."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._read = b""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await trio.aclose_forcefully(self.stream)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def until(self, end: bytes) -> bytes:
        """Answer what comes, up to and with this."""
        while end not in self._read:
            data = await self.stream.receive_some(65536)
            assert data, f"{end!r} never came, but {self._read!r}"
            self._read += data
        got, _, self._read = self._read.partition(end)
        return got + end

    async def reply(self) -> Reply:
        """Answer the next response, one with Content-Length."""
        head = await self.until(b"\r\n\r\n")
        fields = dict(re.findall(rb"(?m)^([\w-]+): (.*)\r$", head))
        names = {name.decode().lower(): value.decode() for name, value in fields.items()}
        length = int(names.get("content-length", "0"))
        while len(self._read) < length:
            data = await self.stream.receive_some(65536)
            assert data
            self._read += data
        body, self._read = self._read[:length], self._read[length:]
        return Reply(int(head.split()[1]), names, body)

    async def rest(self) -> bytes:
        """Answer all that comes until the other side has ended, gently or not."""
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await self.stream.receive_some(65536):
                self._read += data
        return self._read


@contextlib.asynccontextmanager
async def a_house(
    folder: Path | None = None,
    *,
    limits: Limits | None = None,
    names: Sequence[str] = (),
    address: Address | None = None,
) -> AsyncIterator[House]:
    """Run an admin listener, with a page from the folder, and have nothing fail on our side that nobody forgives."""
    source = Told()
    listeners = open_listeners(address or Address(host="127.0.0.1", port=0))
    changes: list[str] = []
    faults: list[tuple[str, BaseException]] = []
    name = listeners[0].getsockname()
    host, port = name[:2] if isinstance(name, tuple) else ("", 0)

    def tell_fault(where: str, error: BaseException) -> None:
        faults.append((where, error))

    try:
        with trio.fail_after(TIMEOUT_S * 10):  # on a clock that a test may put forward
            async with trio.open_nursery() as nursery:

                async def serve() -> None:
                    await serve_admin(
                        listeners,
                        source,
                        on_change=changes.append,
                        on_fault=tell_fault,
                        names=names,
                        limits=limits,
                        page=folder,
                    )

                nursery.start_soon(serve)
                yield House(source, host, port, changes, faults)
                nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            listener.close()
    assert not faults, faults


def run(main: Callable[[], Awaitable[None]], *, clock: MockClock | None = None) -> None:
    """Run a test."""
    trio.run(main, clock=clock)


def small_buffers(stream: trio.SocketStream) -> None:
    """Have the system keep little for this one, who will not read."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
