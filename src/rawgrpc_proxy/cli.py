"""The command line: `rawgrpc-proxy serve` and `rawgrpc-proxy demo`.

It reads arguments, makes settings, a pool and a server of them, and stops the server when a signal comes. What is
wrong with the arguments is said in one line, with what to write instead, and the exit code is 2. Nothing here is needed
to use the proxy as a library.
"""

import argparse
import contextlib
import gc
import inspect
import math
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import attrs
import trio

from rawgrpc_proxy.config import ENGINES, Http2Settings
from rawgrpc_proxy.demo import run_demo
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.handler import transparent_handler
from rawgrpc_proxy.net.accept_share import AcceptShare, shared_counts
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.listen import bound_address, open_listener
from rawgrpc_proxy.observe.call_log import CallLog, printable
from rawgrpc_proxy.pool import Pool
from rawgrpc_proxy.routes import RouteTable
from rawgrpc_proxy.server import Server
from rawgrpc_proxy.workers import run_workers

_DISTRIBUTION = "rawgrpc-proxy"
_USAGE_ERROR = 2
_INTERRUPTED = 128 + signal.SIGINT
_GRACE_S = 30.0
_COLLECT_AFTER = (20_000, 20, 20)
"""Objects more than before, young collections, middle ones (by default 700, 10, 10). Garbage stays within a few MiB."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line (`sys.argv[1:]` unless told otherwise) and answer the exit code."""
    parser = _parser()
    try:
        options = parser.parse_args(argv)
        if options.version:
            print(f"rawgrpc-proxy {_version()}")
            return 0
        if options.command is None:
            print(parser.format_help().rstrip(), file=sys.stderr)
            return _USAGE_ERROR
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except ConfigError as error:
        print(f"rawgrpc-proxy: {printable(str(error))}", file=sys.stderr)
        return _USAGE_ERROR
    except SystemExit as done:
        # --help
        return int(done.code or 0)
    except KeyboardInterrupt:
        return _INTERRUPTED


# --------------------------------------------------------------------- arguments


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and does not bury it under the usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rawgrpc-proxy",
        description="A transparent gRPC reverse proxy that forwards HTTP/2 frames and never decodes a message.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="forward calls to upstreams", allow_abbrev=False))
    _add_demo(
        commands.add_parser("demo", help="show calls going through to a built-in backend", allow_abbrev=False)
    )
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    pool = {name: parameter.default for name, parameter in inspect.signature(Pool).parameters.items()}
    parser.description = (
        "Accept gRPC calls on one address and forward them to upstreams. SIGINT or SIGTERM stops accepting and lets "
        "running calls finish."
    )
    add = parser.add_argument
    add(
        "--listen",
        required=True,
        type=_checked(lambda text: Address.parse(text, may_choose_port=True)),
        metavar="ADDRESS",
        help="where to accept calls: HOST:PORT (port 0 picks a free one) or unix:PATH",
    )
    add(
        "--upstream",
        type=_checked(Address.parse),
        metavar="ADDRESS",
        help="where calls go that no --route matches: HOST:PORT or unix:PATH (default: they are UNIMPLEMENTED)",
    )
    add(
        "--route",
        action="append",
        default=[],
        type=_checked(lambda text: RouteTable.parse([text])),
        metavar="PATTERN=ADDRESS",
        help="where calls of one service ('/pkg.Service/*=HOST:PORT'), of one method ('/pkg.Service/Method=HOST:PORT') "
        "or all ('/*=HOST:PORT') go; repeat it for more, the first one that matches decides",
    )
    add(
        "--size",
        type=_count,
        default=pool["size"],
        metavar="N",
        help="connections kept for each upstream (default: %(default)s)",
    )
    add(
        "--ttl",
        type=_seconds,
        default=pool["ttl"],
        metavar="SECONDS",
        help="how long a connection takes new calls, in seconds (default: %(default)g)",
    )
    add(
        "--idle",
        type=_count,
        default=pool["idle"],
        metavar="N",
        help="connections without calls kept for each upstream (default: %(default)s)",
    )
    add(
        "--ms",
        type=_positive,
        default=pool["ms"],
        metavar="N",
        help="calls at a time on one connection to an upstream (default: %(default)s)",
    )
    add(
        "--max-waiting",
        type=_count,
        metavar="N",
        help="make SIZE x MS a hard limit for each upstream, beyond which up to N calls wait in line "
        "(default: no limit, calls beyond it get connections of their own)",
    )
    add(
        "--workers",
        type=_workers,
        default=1,
        metavar="N",
        help="processes that share the listening socket, each with connections of its own to the upstreams; 'auto' is "
        "one for each core (default: %(default)s)",
    )
    add(
        "--grace",
        type=_seconds,
        default=_GRACE_S,
        metavar="SECONDS",
        help="how long running calls may go on after SIGINT or SIGTERM, in seconds (default: %(default)g)",
    )
    add(
        "--log-format",
        choices=("text", "json", "none"),
        default="text",
        help="how to log calls on standard error, one line each: text, json or none (default: %(default)s)",
    )
    _add_engine(parser)
    parser.set_defaults(command=_serve)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Start a small built-in gRPC backend and the proxy in front of it on free loopback ports, make a call of each "
        "shape through them, and check the answers. The exit code is 0 if all is as expected, else 1."
    )
    parser.add_argument(
        "--stay",
        action="store_true",
        help="then leave both running, for other clients, until SIGINT or SIGTERM",
    )
    _add_engine(parser)
    parser.set_defaults(command=_demo)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default=Http2Settings().engine,
        help=f"which implementation of HTTP/2 to use: {' or '.join(ENGINES)} (default: %(default)s)",
    )


def _checked(parse: Callable[[str], object]) -> Callable[[str], str]:
    """An argument that stays text, and has to be one that `parse` understands."""

    def check(text: str) -> str:
        try:
            parse(text)
        except ConfigError as error:
            # This one names the option in front of the message.
            raise argparse.ArgumentTypeError(str(error)) from error
        return text

    return check


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 0 or more")
    return int(text)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def _workers(text: str) -> int:
    return len(os.sched_getaffinity(0)) if text == "auto" else _positive(text)


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        seconds = float(text)
        if seconds >= 0 and not math.isnan(seconds):
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds; write 0 or more, for example 2.5")


def _version() -> str:
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _demo(options: argparse.Namespace) -> int:
    return run_demo(stay=options.stay, settings=Http2Settings(engine=options.engine))


# ------------------------------------------------------------------------- serve


@attrs.frozen(kw_only=True)
class _Service:
    """What one process of `serve` runs, checked; nothing is open yet."""

    server: Server
    pool: Pool
    listen: Address
    grace_s: float
    log: CallLog | None
    listener: socket.socket | None = None
    """Inherited from the parent of the workers; `listen` is the parent's business then."""
    share: AcceptShare | None = None
    """A worker's, of the connections that come to it."""
    orphaned: int | None = None
    """A worker's file descriptor that can be read once its parent is gone."""
    worker: int | None = None

    def say(self, event: str, text: str, **facts: object) -> None:
        """Tell the operator, in the format of the log."""
        if self.log is not None:
            self.log.notice(event, text, **facts)
        else:
            _say(text if self.worker is None else f"worker {self.worker}: {text}")


def _say(text: str) -> None:
    print(f"rawgrpc-proxy: {text}", file=sys.stderr, flush=True)


def _serve(options: argparse.Namespace) -> int:
    if options.upstream is None and not options.route:
        raise ConfigError(
            "serve needs to know where calls go: give --upstream HOST:PORT or --route '/pkg.Service/*=HOST:PORT'"
        )
    service = _service(options)
    _calm_garbage_collector()
    if options.workers == 1:
        return _run_process(service)
    # From here on signals wait for the parent to ask for them: one that comes while it starts must not be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    listener = open_listener(service.listen)
    address = bound_address(listener)
    print(f"listening on {address}", flush=True)

    counts = shared_counts(options.workers)

    def work(number: int, orphaned: int) -> int:
        share = AcceptShare(counts, number - 1)
        return _run_process(
            attrs.evolve(_service(options, worker=number), listener=listener, share=share, orphaned=orphaned)
        )

    try:
        return run_workers(options.workers, work, _say)
    finally:
        listener.close()
        if address.path is not None:
            _remove(address.path)


def _calm_garbage_collector() -> None:
    """Have CPython look for circles of objects less often.

    A call leaves none, and by default every thirtieth one has the collector look at all young objects, and now and then
    at older ones: with a thousand connections that took a fifth of the time. What was made before the start it need
    never look at.
    """
    if sys.implementation.name == "cpython":
        gc.freeze()
        gc.set_threshold(*_COLLECT_AFTER)


def _service(options: argparse.Namespace, *, worker: int | None = None) -> _Service:
    listen = Address.parse(options.listen, may_choose_port=True)
    routes = RouteTable.parse(options.route, default=options.upstream)
    settings = Http2Settings(engine=options.engine)
    log = None if options.log_format == "none" else CallLog(options.log_format, worker=worker)
    pool = Pool(
        options.size,
        options.ttl,
        options.idle,
        options.ms,
        max_waiting=options.max_waiting,
        settings=settings,
        observer=log,
    )
    server = Server(
        unknown_service_handler=transparent_handler(routes.director(pool)), settings=settings, observer=log
    )
    return _Service(server=server, pool=pool, listen=listen, grace_s=options.grace, log=log, worker=worker)


def _run_process(service: _Service) -> int:
    try:
        trio.run(_run, service)
    finally:
        # Here, where a signal ends the process again: whoever reads the log may have stopped reading.
        if service.log is not None:
            service.log.flush()
    return 0


async def _run(service: _Service) -> None:
    # Signals first: one that comes while we start must not be lost, nor end us with a traceback.
    with (
        # SIGINT goes to every process of a terminal; the parent of the workers turns it into SIGTERM for them.
        trio.open_signal_receiver(
            signal.SIGTERM, *([signal.SIGINT] if service.worker is None else [])
        ) as signals,
        contextlib.ExitStack() as listening,
    ):
        listener = service.listener or open_listener(service.listen)
        address = bound_address(listener)
        if address.path is not None and service.listener is None:
            listening.callback(_remove, address.path)
        async with service.pool, trio.open_nursery() as nursery:
            if service.log is not None:
                nursery.start_soon(service.log.run)

            async def serve(task_status: trio.TaskStatus[str]) -> None:
                await service.server.serve(listener, share=service.share, task_status=task_status)
                nursery.cancel_scope.cancel()

            await nursery.start(serve)
            if service.listener is None:
                print(f"listening on {address}", flush=True)
            if service.orphaned is not None:
                nursery.start_soon(_stop_if_orphaned, service, service.orphaned)
            await _stop_on_signal(service, signals, listening)
            nursery.cancel_scope.cancel()
        service.say("stopped", "stopped")


async def _stop_on_signal(
    service: _Service, signals: AsyncIterator[int], listening: contextlib.ExitStack
) -> None:
    """Begin to stop at the first signal, and return at the second. The end of the server cancels it."""
    name = signal.Signals(await anext(signals)).name
    # Before the socket closes: from then on somebody else may listen here, and the file be theirs.
    listening.close()
    calls = service.server.open_calls
    service.server.stop(grace_s=service.grace_s)
    service.say(
        "draining",
        f"{name}: draining, {_calls(calls)} still running, for up to {service.grace_s:g} s; "
        "a second signal ends at once",
        signal=name,
        calls=calls,
        grace_s=service.grace_s,
    )
    name = signal.Signals(await anext(signals)).name
    calls = service.server.open_calls
    service.say(
        "aborting", f"{name} again: ending at once, {_calls(calls)} cut off", signal=name, calls=calls
    )


async def _stop_if_orphaned(service: _Service, orphaned: int) -> None:
    await trio.lowlevel.wait_readable(orphaned)
    service.say("orphaned", "the parent of the workers is gone: draining")
    service.server.stop(grace_s=service.grace_s)


def _calls(number: int) -> str:
    return "1 call" if number == 1 else f"{number} calls"


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        Path(path).unlink()
