"""The process of `rawgrpc-proxy serve`: a server, a pool and a log made of the options, from the start to the end.

    options ──► checked ──► listening ──► serving ──a signal──► draining, for the grace ──► stopped
                                                                └──a second one──► stopped at once

With several workers the parent opens the listeners, and looks after the workers (`workers.py`). From when a process
serves, only the log's thread writes to standard error.
"""

import argparse
import contextlib
import gc
import signal
import socket
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import attrs
import trio

from rawgrpc_proxy.command.workers import run_workers
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.descriptors import DescriptorPlan, raise_soft_limit
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.memory_limit import default_max_buffered_bytes
from rawgrpc_proxy.net.accept_share import AcceptShare, set_accept_share, shared_counts
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.listen import address_of, bound_address, open_listeners
from rawgrpc_proxy.net.loop_guard import LoopGuard
from rawgrpc_proxy.observe.call_log import CallLog
from rawgrpc_proxy.observe.line_writer import LineWriter, unbuffered
from rawgrpc_proxy.proxy.hops import limit_hops
from rawgrpc_proxy.proxy.routes import RouteTable
from rawgrpc_proxy.proxy.transparent import transparent_handler
from rawgrpc_proxy.server.server import Server
from rawgrpc_proxy.upstream.pool import Pool

_CRASHED = 1
_PARENT_WAITS_S = 0.1
"""For its log, before it looks after its workers again."""
_COLLECT_AFTER = (20_000, 20, 20)
"""Objects more than before, young collections, middle ones (by default 700, 10, 10). Garbage stays within a few MiB."""


@attrs.frozen(kw_only=True)
class Process:
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


def serve(options: argparse.Namespace) -> int:
    """Run `serve` with these options, checked one by one, and answer the exit code. Raises `ConfigError`."""
    if options.upstream is None and not options.route:
        raise ConfigError(
            "serve needs to know where calls go: give --upstream HOST:PORT or --route '/pkg.Service/*=HOST:PORT'"
        )
    if options.size == 0 and options.max_waiting is not None:
        raise ConfigError("a size of 0 would never let a call through: give --max-waiting none, too")
    raise_soft_limit()
    log = log_for(options)
    process = _process(options, log)
    if options.workers == 1:
        return run_process(process.log, lambda: process)
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
        own_log = log_for(options, worker=number)
        return run_process(own_log, lambda: attrs.evolve(_process(options, own_log), inherited=inherited))

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


def _process(options: argparse.Namespace, log: CallLog) -> Process:
    routes = RouteTable.parse(options.route, default=options.upstream)
    settings = Http2Settings(
        engine=options.engine,
        max_concurrent_streams=options.max_concurrent_streams,
        max_header_list_bytes=options.max_header_list_bytes,
        max_header_fields=options.max_header_fields,
        max_buffered_bytes=default_max_buffered_bytes(options.workers),
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
        max_connections=options.max_connections,
    )
    return Process(options=options, server=server, pool=pool, loop_guard=loop_guard, log=log)


def log_for(options: argparse.Namespace, *, worker: int | None = None) -> CallLog:
    """The log that the options ask for, on standard error; what the operator has to know is written in any case."""
    file = unbuffered(sys.stderr)
    if options.log_format == "none":
        return _Notes(file=file, worker=worker)
    return CallLog(options.log_format, file, worker=worker)


def run_process(log: CallLog, make: Callable[[], Process]) -> int:
    """Serve until a signal comes, and answer the exit code.

    From here on only the log's thread writes to standard error, for which nobody waits for longer than a second.
    """
    log.collect()
    try:
        with heard_by(log):
            trio.run(_run, make())
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever it is, it belongs into the log
        log.fault("crashed", "- the proxy crashed:", error)
        return _CRASHED
    finally:
        log.flush()
    return 0


@contextlib.contextmanager
def heard_by(log: CallLog) -> Iterator[None]:
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


async def _run(process: Process) -> None:
    inherited = process.inherited
    # Signals first: one that comes while we start must not be lost, nor end us with a traceback.
    with (
        # SIGINT goes to every process of a terminal; the parent of the workers turns it into SIGTERM for them.
        trio.open_signal_receiver(signal.SIGTERM, *([signal.SIGINT] if inherited is None else [])) as signals,
        contextlib.ExitStack() as listening,
    ):
        listeners = _listen(process.options) if inherited is None else inherited.listeners
        if inherited is None:
            listening.callback(_remove, bound_address(listeners[0]))
        for listener in listeners:
            process.loop_guard.listens_on(bound_address(listener))
        if inherited is not None:
            set_accept_share(inherited.share)
        async with process.pool, trio.open_nursery() as nursery:
            nursery.start_soon(process.log.run)

            async def serve(task_status: trio.TaskStatus[str]) -> None:
                await process.server.serve(listeners, task_status=task_status)
                nursery.cancel_scope.cancel()

            await nursery.start(serve)
            if inherited is None:
                _announced(process.options, listeners)
                _calm_garbage_collector()
            else:
                nursery.start_soon(_stop_if_orphaned, process, inherited.orphaned)
            await _stop_on_signal(process, signals, listening)
            nursery.cancel_scope.cancel()
        process.say("stopped", "stopped")


async def _stop_on_signal(
    process: Process, signals: AsyncIterator[int], listening: contextlib.ExitStack
) -> None:
    """Begin to stop at the first signal, and return at the second. The end of the server cancels it."""
    name = signal.Signals(await anext(signals)).name
    # Before the socket closes: from then on somebody else may listen here, and the file be theirs.
    listening.close()
    calls = process.server.open_calls
    grace_s = process.options.grace
    process.server.stop(grace_s=grace_s)
    process.say(
        "draining",
        f"{name}: draining, {_calls(calls)} still running, for up to {grace_s:g} s; a second signal ends at once",
        signal=name,
        calls=calls,
        grace_s=grace_s,
    )
    name = signal.Signals(await anext(signals)).name
    calls = process.server.open_calls
    process.say(
        "aborting", f"{name} again: ending at once, {_calls(calls)} cut off", signal=name, calls=calls
    )


async def _stop_if_orphaned(process: Process, orphaned: int) -> None:
    await trio.lowlevel.wait_readable(orphaned)
    process.say("orphaned", "the parent of the workers is gone: draining")
    process.server.stop(grace_s=process.options.grace)


def _calls(number: int) -> str:
    return "1 call" if number == 1 else f"{number} calls"


def _remove(address: Address) -> None:
    """Remove the file of a Unix socket."""
    if address.path is not None and not address.is_abstract:
        with contextlib.suppress(OSError):
            Path(address.path).unlink()
