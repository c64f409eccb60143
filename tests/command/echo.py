"""The echo service of the demo, for commands that are to have something behind them."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from rawgrpc_proxy.command.certs import write_certificates
from rawgrpc_proxy.command.demo import backend
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.net.tls import TlsContext
from rawgrpc_proxy.net.tls_files import listener_context, upstream_context
from rawgrpc_proxy.observe.call_log import CallLog


@asynccontextmanager
async def an_echo(ssl_context: TlsContext | None = None) -> AsyncIterator[str]:
    """The service, and its address."""
    quiet = CallLog()
    quiet.level = "none"
    serve = partial(backend(Http2Settings(), quiet).serve, "127.0.0.1:0", ssl_context=ssl_context)
    async with trio.open_nursery() as nursery:
        yield await nursery.start(serve)
        nursery.cancel_scope.cancel()


@attrs.frozen
class TlsEcho:
    """An echo that speaks TLS, and what is needed to put a command before it, and a client before that."""

    upstream: str
    options: tuple[str, ...]
    client: ssl.SSLContext


@asynccontextmanager
async def an_echo_with_tls(folder: Path) -> AsyncIterator[TlsEcho]:
    """The service with throw-away certificates in this folder, which need not be there; skips without trustme."""
    pytest.importorskip("trustme")
    write_certificates(folder)
    ca, pem, key = (str(folder / name) for name in ("ca.pem", "server.pem", "server.key"))
    async with an_echo(listener_context(pem, key)) as upstream:
        options = ("--tls-cert", pem, "--tls-key", key, "--upstream-ca", ca)
        yield TlsEcho(upstream, options, upstream_context(ca=ca))
