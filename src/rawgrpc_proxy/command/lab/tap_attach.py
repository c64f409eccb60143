"""`rawgrpc-proxy tap --attach ADMIN`: asks the admin listener of a running proxy what passes (`GET /tap`).

What it does not do: show it. The rows come as the workers have made them, and messages are decoded here, so that it
costs the proxy nothing.
"""

import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode, urlsplit

import attrs
import h11
import trio

from rawgrpc_proxy.command.lab.tap_wishes import TapWishes
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.lab.rows import Row
from rawgrpc_proxy.net.address import Address

_CONNECT_WITHIN_S = 10.0
_SILENT_FOR_S = 30.0
"""The admin listener says something every five seconds."""
_READ_BYTES = 64 * 1024
_LONGEST_LINE = 4 * 1024 * 1024
_MOST_SAID = 2000
_PORTS = {"http": 80, "https": 443}


class Lost(Exception):
    """Nothing more comes: the proxy has ended, or its admin process."""


@attrs.frozen
class AdminUrl:
    """Where an admin listener is."""

    address: Address
    path: str = ""
    """In front of its own, where a reverse proxy has it elsewhere."""
    is_tls: bool = False

    @classmethod
    def parse(cls, text: str) -> "AdminUrl":
        """Read `HOST:PORT`, `unix:PATH`, or a URL. Raises `ConfigError`."""
        if "://" not in text:
            return cls(Address.parse(text))
        try:
            url = urlsplit(text)
            port = url.port or _PORTS[url.scheme]
            host = url.hostname or ""
        except (KeyError, ValueError):
            raise ConfigError(
                f"{text!r} is no address of an admin listener; write http://HOST:PORT/"
            ) from None
        shown = f"[{host}]" if ":" in host else host
        return cls(Address.parse(f"{shown}:{port}"), url.path.rstrip("/"), url.scheme == "https")

    @property
    def authority(self) -> str:
        """What stands in Host."""
        return "localhost" if self.address.path is not None else str(self.address)

    async def connect(self) -> trio.abc.Stream:
        """Raises `OSError`."""
        address = self.address
        if address.path is not None:
            return await trio.open_unix_socket(address.path)
        stream: trio.abc.Stream = await trio.open_tcp_stream(address.host, address.port)
        if self.is_tls:
            context = ssl.create_default_context()
            stream = trio.SSLStream(stream, context, server_hostname=address.host, https_compatible=True)
        return stream


@contextlib.asynccontextmanager
async def attached(url: AdminUrl, wishes: TapWishes) -> AsyncIterator[AsyncIterator[Row]]:
    """The rows that come, once the proxy has agreed. Raises `ConfigError` if it does not, or cannot be reached.

    Their iteration raises `Lost` in the end.
    """
    async with contextlib.AsyncExitStack() as stack:
        try:
            with trio.fail_after(_CONNECT_WITHIN_S):
                stream = await stack.enter_async_context(await url.connect())
                http = h11.Connection(h11.CLIENT)
                await _ask(stream, http, url, wishes)
        except h11.RemoteProtocolError:
            raise ConfigError(
                f"--attach: {url.address}: what answers there is no admin listener, for it does not speak HTTP/1.1"
            ) from None
        except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            raise ConfigError(f"--attach: {url.address}: {str(error) or 'no answer'}") from None
        yield _rows(stream, http)


async def _ask(stream: trio.abc.Stream, http: h11.Connection, url: AdminUrl, wishes: TapWishes) -> None:
    target = f"{url.path}/tap?{urlencode(wishes.query())}"
    fields = [("Host", url.authority), ("Accept", "application/x-ndjson")]
    request = http.send(h11.Request(method="GET", target=target, headers=fields))
    await stream.send_all((request or b"") + (http.send(h11.EndOfMessage()) or b""))
    response = await _event(stream, http)
    if isinstance(response, h11.Response) and response.status_code == 200:  # noqa: PLR2004
        return
    status = response.status_code if isinstance(response, h11.Response) else "no answer"
    said = b""
    while isinstance(event := await _event(stream, http), h11.Data) and len(said) < _MOST_SAID:
        said += event.data
    raise ConfigError(
        f"--attach: {url.address}: {status}: {said.decode('utf-8', 'replace').strip()[:_MOST_SAID]}"
    )


async def _event(stream: trio.abc.Stream, http: h11.Connection) -> Any:
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(bytes(await stream.receive_some(_READ_BYTES)))
    return event


async def _rows(stream: trio.abc.Stream, http: h11.Connection) -> AsyncIterator[Row]:
    rest = b""
    while True:
        try:
            with trio.fail_after(_SILENT_FOR_S):
                event = await _event(stream, http)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, h11.RemoteProtocolError) as error:
            raise Lost from error
        if not isinstance(event, h11.Data):
            raise Lost
        *lines, rest = (rest + event.data).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            raise Lost
        for line in filter(None, lines):
            try:
                row = json.loads(line)
            except ValueError:
                raise Lost from None
            yield row
