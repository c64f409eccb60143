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
import signal
import socket
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn, TextIO

import attrs
import trio

from rawgrpc_proxy.command.demo import run_demo
from rawgrpc_proxy.command.workers import cores, run_workers
from rawgrpc_proxy.config import ENGINES, Http2Settings
from rawgrpc_proxy.descriptors import DescriptorPlan, raise_soft_limit
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.accept_share import AcceptShare, shared_counts
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.listen import address_of, bound_address, open_listeners
from rawgrpc_proxy.net.loop_guard import LoopGuard
from rawgrpc_proxy.observe.call_log import CallLog, printable
from rawgrpc_proxy.observe.line_writer import LineWriter, unbuffered
from rawgrpc_proxy.proxy.hops import limit_hops
from rawgrpc_proxy.proxy.routes import RouteTable
from rawgrpc_proxy.proxy.transparent import transparent_handler
from rawgrpc_proxy.server.server import Server
from rawgrpc_proxy.upstream.pool import Pool

_DISTRIBUTION = "rawgrpc-proxy"
_USAGE_ERROR = 2
_CRASHED = 1
_INTERRUPTED = 128 + signal.SIGINT
_GRACE_S = 30.0
_MS = 100
"""Calls on one connection to an upstream: what RFC 9113 §6.5.2 says a peer should allow at least. The library's pool
keeps the original's 20, with which a burst of 3,000 calls needs 150 connections."""
_MAX_WAITING = 1000
"""Calls in line for one upstream, when SIZE × MS are on their way: a burst fits, and costs a few MiB. The library's
pool has no line, as the original; a backend that hangs then takes a connection for each call, until no file is left."""
_PARENT_WAITS_S = 0.1
"""For its log, before it looks after its workers again."""
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
    add = parser.add_argument_group("where calls go").add_argument
    add(
        "--listen",
        required=True,
        type=_checked(lambda text: Address.parse(text, to_listen=True)),
        metavar="ADDRESS",
        help="where to accept calls: HOST:PORT (port 0 picks a free one), :PORT for every address of this machine, "
        "unix:PATH or unix:@NAME",
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
        "--hop-limit",
        type=_positive,
        metavar="N",
        help="refuse calls that have passed N proxies like this one, counted in the metadata 'via' (default: none)",
    )
    add = parser.add_argument_group("connections to each upstream").add_argument
    add(
        "--size",
        type=_count,
        default=pool["size"],
        metavar="N",
        help="connections kept (default: %(default)s)",
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
        help="connections without calls kept (default: %(default)s)",
    )
    add(
        "--ms",
        type=_positive,
        default=_MS,
        metavar="N",
        help="calls at a time on one connection (default: %(default)s)",
    )
    add(
        "--max-waiting",
        type=_count_or_none,
        default=_MAX_WAITING,
        metavar="N",
        help="calls that wait in line beyond SIZE x MS, the next one is refused; 'none': no limit, each call beyond "
        "gets a connection of its own (default: %(default)s)",
    )
    add = parser.add_argument_group("limits for clients").add_argument
    add(
        "--max-concurrent-streams",
        type=_setting("max_concurrent_streams"),
        default=Http2Settings().max_concurrent_streams,
        metavar="N",
        help="calls at a time on one connection of a client (default: %(default)s)",
    )
    add(
        "--max-header-list-bytes",
        type=_setting("max_header_list_bytes"),
        default=Http2Settings().max_header_list_bytes,
        metavar="N",
        help="names and values of the metadata of a call, and of its answer, together (default: %(default)s)",
    )
    add(
        "--max-header-fields",
        type=_setting("max_header_fields"),
        default=Http2Settings().max_header_fields,
        metavar="N",
        help="entries of that metadata (default: %(default)s)",
    )
    add = parser.add_argument_group("the process").add_argument
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
    _add_engine(add)
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
    _add_engine(parser.add_argument)
    parser.set_defaults(command=_demo)


def _add_engine(add: Callable[..., object]) -> None:
    add(
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


def _count_or_none(text: str) -> int | None:
    if text == "none":
        return None
    try:
        return _count(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor 'none'") from None


def _setting(name: str) -> Callable[[str], int]:
    """A whole number that is one of the settings of HTTP/2, in the range that it has."""

    def check(text: str) -> int:
        number = _count(text)
        try:
            Http2Settings(**{name: number})  # type: ignore[arg-type]  # mypy thinks of every setting
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return number

    return check


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def _workers(text: str) -> int:
    return cores() if text == "auto" else _positive(text)


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

    options: argparse.Namespace
    server: Server
    pool: Pool
    loop_guard: LoopGuard
    log: CallLog
    inherited: "_Inherited | None" = None

    def say(self, event: str, text: str, **facts: object) -> None:
        """Tell the operator, in the format of the log."""
        self.log.notice(event, text, **facts)


@attrs.frozen(kw_only=True)
class _Inherited:
    """What a worker has from its parent."""

    worker: int
    listeners: list[socket.socket]
    share: AcceptShare
    """Of the connections that come to the listeners."""
    orphaned: int
    """A file descriptor that can be read once the parent is gone."""


class _Notes(CallLog):
    """What the operator is told where calls are not logged."""

    def _format(self, event: str, text: str, **_facts: object) -> str:  # noqa: ARG002  # as in the log
        return f"rawgrpc-proxy:{self._worker_text} {text.removeprefix('- ')}\n"


def _serve(options: argparse.Namespace) -> int:
    if options.upstream is None and not options.route:
        raise ConfigError(
            "serve needs to know where calls go: give --upstream HOST:PORT or --route '/pkg.Service/*=HOST:PORT'"
        )
    if options.size == 0 and options.max_waiting is not None:
        raise ConfigError("a size of 0 would never let a call through: give --max-waiting none, too")
    raise_soft_limit()
    log = _log(options)
    service = _service(options, log)
    if options.workers == 1:
        return _run_process(service.log, lambda: service)
    # From here on signals wait for the parent to ask for them: one that comes while it starts must not be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    listeners = _listen(options)
    address = _announced(options, listeners)
    counts = shared_counts(options.workers)
    _calm_garbage_collector()

    def work(number: int, orphaned: int) -> int:
        inherited = _Inherited(
            worker=number, listeners=listeners, share=AcceptShare(counts, number - 1), orphaned=orphaned
        )
        own_log = _log(options, worker=number)
        return _run_process(own_log, lambda: attrs.evolve(_service(options, own_log), inherited=inherited))

    def say(text: str) -> None:
        log.notice("workers", text, message=text)
        log.flush(_PARENT_WAITS_S)
        log.collect()

    log.collect()
    try:
        return run_workers(options.workers, work, say)
    finally:
        for listener in listeners:
            listener.close()
        _remove(address)
        log.flush()


def _calm_garbage_collector() -> None:
    """Have CPython look for circles of objects less often.

    A call leaves none, and by default every thirtieth one has the collector look at all young objects, and now and then
    at older ones: with a thousand connections that took a fifth of the time. What was made before the start it need
    never look at.
    """
    if sys.implementation.name == "cpython":
        gc.freeze()
        gc.set_threshold(*_COLLECT_AFTER)


def _service(options: argparse.Namespace, log: CallLog) -> _Service:
    routes = RouteTable.parse(options.route, default=options.upstream)
    settings = Http2Settings(
        engine=options.engine,
        max_concurrent_streams=options.max_concurrent_streams,
        max_header_list_bytes=options.max_header_list_bytes,
        max_header_fields=options.max_header_fields,
    )
    descriptors = DescriptorPlan.of_this_process()
    loop_guard = LoopGuard(lambda problem: log.notice("loop", problem, message=problem))
    pool = Pool(
        options.size,
        options.ttl,
        options.idle,
        options.ms,
        max_waiting=options.max_waiting,
        max_connections=descriptors.upstream,
        loop_guard=loop_guard,
        settings=settings,
        observer=log,
    )
    director = routes.director(pool)
    if options.hop_limit is not None:
        director = limit_hops(director, options.hop_limit)
    server = Server(
        unknown_service_handler=transparent_handler(director),
        settings=settings,
        observer=None if options.log_format == "none" else log,
    )
    return _Service(options=options, server=server, pool=pool, loop_guard=loop_guard, log=log)


def _log(options: argparse.Namespace, *, worker: int | None = None) -> CallLog:
    file = unbuffered(sys.stderr)
    if options.log_format == "none":
        return _Notes(file=file, worker=worker)
    return CallLog(options.log_format, file, worker=worker)


def _run_process(log: CallLog, service: Callable[[], _Service]) -> int:
    """Serve until a signal comes, and answer the exit code.

    From here on only the log's thread writes to standard error, for which nobody waits for longer than a second.
    """
    log.collect()
    try:
        with _heard_by(log):
            trio.run(_run, service())
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever it is, it belongs into the log
        log.fault("crashed", "- the proxy crashed:", error)
        return _CRASHED
    finally:
        log.flush()
    return 0


@contextlib.contextmanager
def _heard_by(log: CallLog) -> Iterator[None]:
    """Have the log write what Python itself would write to standard error."""

    def unraisable(fact: Any) -> None:
        log.fault("unraisable", f"- {fact.err_msg or 'Exception ignored'}", fact.exc_value or fact.exc_type())

    def warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,  # noqa: ARG001  # the signature is Python's
        line: str | None = None,  # noqa: ARG001
    ) -> None:
        text = f"{filename}:{lineno}: {category.__name__}: {message}"
        log.notice("warning", text, message=text)

    before = sys.unraisablehook, warnings.showwarning
    sys.unraisablehook, warnings.showwarning = unraisable, warning
    try:
        yield
    finally:
        sys.unraisablehook, warnings.showwarning = before


def _listen(options: argparse.Namespace) -> list[socket.socket]:
    """Open the listeners. Raises `ConfigError` if that cannot be, or if an upstream is one of them."""
    listeners = open_listeners(Address.parse(options.listen, to_listen=True))
    guard = LoopGuard()
    for listener in listeners:
        guard.listens_on(bound_address(listener))
    upstreams = [("--upstream", options.upstream)] if options.upstream is not None else []
    upstreams += [("--route", route.partition("=")[2]) for route in options.route]
    for option, upstream in upstreams:
        problem = guard.objection(Address.parse(upstream))
        if problem is not None:
            for listener in listeners:
                listener.close()
            _remove(Address.parse(options.listen, to_listen=True))
            raise ConfigError(f"argument {option}: {problem}")
    return listeners


def _announced(options: argparse.Namespace, listeners: list[socket.socket]) -> Address:
    """Say on standard output where calls are accepted, and answer it. Whoever has started us may not read."""
    address = address_of(listeners, Address.parse(options.listen, to_listen=True))
    stdout = LineWriter(unbuffered(sys.stdout), str)
    stdout.collect()
    stdout.add(f"listening on {address}\n")
    stdout.flush()
    return address


async def _run(service: _Service) -> None:
    inherited = service.inherited
    # Signals first: one that comes while we start must not be lost, nor end us with a traceback.
    with (
        # SIGINT goes to every process of a terminal; the parent of the workers turns it into SIGTERM for them.
        trio.open_signal_receiver(signal.SIGTERM, *([signal.SIGINT] if inherited is None else [])) as signals,
        contextlib.ExitStack() as listening,
    ):
        listeners = _listen(service.options) if inherited is None else inherited.listeners
        if inherited is None:
            listening.callback(_remove, bound_address(listeners[0]))
        for listener in listeners:
            service.loop_guard.listens_on(bound_address(listener))
        async with service.pool, trio.open_nursery() as nursery:
            nursery.start_soon(service.log.run)

            async def serve(task_status: trio.TaskStatus[str]) -> None:
                share = None if inherited is None else inherited.share
                await service.server.serve(listeners, share=share, task_status=task_status)
                nursery.cancel_scope.cancel()

            await nursery.start(serve)
            if inherited is None:
                _announced(service.options, listeners)
                _calm_garbage_collector()
            else:
                nursery.start_soon(_stop_if_orphaned, service, inherited.orphaned)
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
    grace_s = service.options.grace
    service.server.stop(grace_s=grace_s)
    service.say(
        "draining",
        f"{name}: draining, {_calls(calls)} still running, for up to {grace_s:g} s; a second signal ends at once",
        signal=name,
        calls=calls,
        grace_s=grace_s,
    )
    name = signal.Signals(await anext(signals)).name
    calls = service.server.open_calls
    service.say(
        "aborting", f"{name} again: ending at once, {_calls(calls)} cut off", signal=name, calls=calls
    )


async def _stop_if_orphaned(service: _Service, orphaned: int) -> None:
    await trio.lowlevel.wait_readable(orphaned)
    service.say("orphaned", "the parent of the workers is gone: draining")
    service.server.stop(grace_s=service.options.grace)


def _calls(number: int) -> str:
    return "1 call" if number == 1 else f"{number} calls"


def _remove(address: Address) -> None:
    """Remove the file of a Unix socket."""
    if address.path is not None and not address.is_abstract:
        with contextlib.suppress(OSError):
            Path(address.path).unlink()
