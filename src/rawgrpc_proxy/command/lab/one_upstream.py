"""A proxy before one upstream whose connections are looked at, or broken: what `tap` and the like have in common.

One process, without a supervisor. What becomes of what is seen is each command's own matter.
"""

import argparse
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import IO, TextIO

import attrs
import trio

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.command.argument_types import address, listening_address
from rawgrpc_proxy.config import ENGINES, Http2Settings
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.lab.row_text import Style
from rawgrpc_proxy.net.tapped import Tap, Wrap
from rawgrpc_proxy.net.tls import TlsContext
from rawgrpc_proxy.net.tls_files import listener_context, upstream_context
from rawgrpc_proxy.observe.call_log import CallLog
from rawgrpc_proxy.observe.line_writer import LineFile
from rawgrpc_proxy.proxy.transparent import transparent_handler
from rawgrpc_proxy.server.server import Server
from rawgrpc_proxy.upstream.pool import Pool
from rawgrpc_proxy.upstream.target import Target


def add_listen(add: Callable[..., object]) -> None:
    """Add `--listen`, which is a free port of this machine unless it is given."""
    add(
        "--listen",
        type=listening_address,
        default="127.0.0.1:0",
        metavar="ADDRESS",
        help="where to accept calls: HOST:PORT, :PORT or unix:PATH (default: a free port of this machine)",
    )


def add_one_upstream(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the options for both sides. If they are not `required`, `the_other_way` looks whether they are there."""
    add = parser.add_argument_group("where calls come from, and go").add_argument
    add_listen(add)
    add(
        "--upstream",
        type=address,
        required=required,
        metavar="ADDRESS",
        help="where they go: HOST:PORT or unix:PATH",
    )
    add("--tls-cert", metavar="FILE", help="the certificate that callers get (PEM)")
    add("--tls-key", metavar="FILE", help="its private key")
    add(
        "--upstream-tls", action="store_true", help="speak TLS to the upstream, with the system's authorities"
    )
    add(
        "--upstream-ca", metavar="FILE", help="speak TLS to the upstream, and trust these authorities instead"
    )
    add(
        "--engine",
        choices=ENGINES,
        default=Http2Settings().engine,
        help="which implementation of HTTP/2 to use",
    )


def the_other_way(
    options: argparse.Namespace, parser: argparse.ArgumentParser, name: str, option: str
) -> bool:
    """Whether `option`, in the options as `name`, was given in place of a proxy of one's own.

    Raises `ConfigError` if neither was, and for options of a proxy where there is none.
    """
    if getattr(options, name) is None:
        if options.upstream is None:
            raise ConfigError(f"give --upstream ADDRESS, or {option}")
        return False
    for each in ("listen", "upstream", "tls_cert", "tls_key", "upstream_tls", "upstream_ca", "engine"):
        if getattr(options, each) != parser.get_default(each):
            raise ConfigError(
                f"--{each.replace('_', '-')} is for a proxy of its own, and does not go with {option}"
            )
    return True


@attrs.frozen(kw_only=True)
class Links:
    """What the options say of both sides, checked; certificates are read."""

    listen: str
    upstream: str
    listener_tls: TlsContext | None
    upstream_tls: TlsContext | None
    settings: Http2Settings

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Links":
        """Raises `ConfigError`."""
        if (options.tls_cert is None) != (options.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key go together")
        listener_tls = upstream_tls = None
        if options.tls_cert is not None:
            listener_tls = listener_context(options.tls_cert, options.tls_key)
        if options.upstream_tls or options.upstream_ca is not None:
            upstream_tls = upstream_context(ca=options.upstream_ca)
        return cls(
            listen=options.listen,
            upstream=options.upstream,
            listener_tls=listener_tls,
            upstream_tls=upstream_tls,
            settings=Http2Settings(engine=options.engine),
        )


class OneUpstream:
    """The proxy between the two. Nothing is open yet.

    `tap` sees all connections, `log` hears of them, and `wrap` puts something between them and their peers.
    """

    def __init__(
        self,
        links: Links,
        tap: Tap | None = None,
        log: CallLog | None = None,
        *,
        wrap: Wrap | None = None,
    ) -> None:
        self.pool = Pool(settings=links.settings, observer=log, tap=tap, wrap=wrap)
        self._links = links
        self.has_begun = False
        """It listens, or has: there is something to tell of what has passed."""
        target = self.pool.target(links.upstream, ssl_context=links.upstream_tls)

        def director(context: CallContext, _method: str) -> tuple[CallContext, Target]:
            return context, target

        self.server = Server(
            unknown_service_handler=transparent_handler(director),
            settings=links.settings,
            observer=log,
            tap=tap,
            wrap=wrap,
        )

    async def start(self, nursery: trio.Nursery) -> str:
        """Serve in this nursery, while the pool is open. Answers the address. Raises `ConfigError`, in a group."""
        address: str = await nursery.start(self.serve)
        self.has_begun = True
        return address

    async def serve(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve, while the pool is open. Answers, if started, the address it listens on."""
        links = self._links
        await self.server.serve(links.listen, ssl_context=links.listener_tls, task_status=task_status)


class Pipe:
    """A file that knows whether whoever has read it, as `head` does, has gone."""

    def __init__(self, file: LineFile | IO[str]) -> None:
        self._file = file
        self.is_broken = False

    def write(self, text: str, /) -> int:
        """Raises `BrokenPipeError`, and what the file raises."""
        try:
            return self._file.write(text)
        except BrokenPipeError:
            self.is_broken = True
            raise

    def flush(self) -> None:
        """See that it has left the process."""
        self._file.flush()


def style_of(file: TextIO | None) -> Style:
    """What this file can show: colours only if it is a terminal."""
    if file is None:
        return Style()
    colours = file.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    try:
        "→←…".encode(file.encoding or "ascii")
    except UnicodeEncodeError:
        return Style(colours=colours, unicode=False)
    return Style(colours=colours)


@asynccontextmanager
async def until_signal(house: OneUpstream, log: CallLog) -> AsyncIterator[trio.Nursery]:
    """Open the pool, and a nursery for the rest, which SIGINT and SIGTERM end."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with house.pool, trio.open_nursery() as nursery:
            nursery.start_soon(cancel_on_signal, signals, nursery.cancel_scope)
            nursery.start_soon(log.run)
            yield nursery


async def cancel_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    """Wait for the first signal, and cancel all."""
    await anext(signals)
    scope.cancel()
