"""A worker of `rawgrpc-proxy serve`, from the start to the end of its process.

    made of the settings ──► serving ──SIGTERM──► draining, for the grace ──► stopped
                                                  └──the supervisor's word──► stopped at once

Its supervisor has opened the listeners and forked it (`serve.py`, `supervisor.py`); what it is made of is in
`assembly.py`. Only the log's thread writes to standard error.
"""

import contextlib
import gc
import itertools
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

import attrs
import trio

from rawgrpc_proxy.command.assembly import Process
from rawgrpc_proxy.command.channel import beat, hear_supervisor, tell_draining, tell_ready
from rawgrpc_proxy.command.children import signals_wait
from rawgrpc_proxy.command.link import answer
from rawgrpc_proxy.command.log import heard_by
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.accept_share import AcceptShare, set_accept_share
from rawgrpc_proxy.net.listen import bound_address
from rawgrpc_proxy.observe.call_log import CallLog
from rawgrpc_proxy.proxy.transparent import transparent_handler
from rawgrpc_proxy.services.own_health import own_health

_CRASHED = 1
_COLLECT_AFTER = (20_000, 20, 20)
"""Objects more than before, young collections, middle ones (by default 700, 10, 10). Garbage stays within a few MiB."""


@attrs.frozen(kw_only=True)
class Inherited:
    """What a worker has from its supervisor."""

    listeners: Sequence[Sequence[socket.socket]]
    """The sockets of each listener: a name may be several addresses."""
    share: AcceptShare | None
    """Of the connections that come to the listeners; None if there is no other worker."""
    channel: socket.socket
    """To the supervisor."""
    beat_s: float | None
    """How often it wants to hear that this process lives; None for never."""


def calm_garbage_collector() -> None:
    """Have CPython look for circles of objects less often.

    A call leaves none, and by default every thirtieth one has the collector look at all young objects, and now and then
    at older ones: with a thousand connections that took a fifth of the time. What was made before the start it need
    never look at.
    """
    if sys.implementation.name == "cpython":
        gc.freeze()
        gc.set_threshold(*_COLLECT_AFTER)


def run_process(log: CallLog, make: Callable[[], Process], inherited: Inherited) -> int:
    """Serve until SIGTERM comes, and answer the exit code.

    From here on only the log's thread writes to standard error, for which nobody waits for longer than a second.
    """
    log.collect()
    try:
        with heard_by(log):
            trio.run(_run, make(), inherited)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever it is, it belongs into the log
        log.fault("crashed", "- the proxy crashed:", error)
        return _CRASHED
    finally:
        log.flush()
    return 0


async def _run(process: Process, inherited: Inherited) -> None:
    # Signals first: one that comes while we start must not be lost, nor end us with a traceback.
    with contextlib.ExitStack() as heard:
        with signals_wait():
            # trio raises again at the end what nobody has taken, as a second one; that must not end us before our log.
            signal.signal(signal.SIGTERM, lambda *_: None)
            signals = heard.enter_context(trio.open_signal_receiver(signal.SIGTERM))
        for sock in itertools.chain.from_iterable(inherited.listeners):
            process.loop_guard.listens_on(bound_address(sock))
        if inherited.share is not None:
            set_accept_share(inherited.share)
        async with contextlib.AsyncExitStack() as stack:
            if process.exporter is not None:
                # First in, last out: the last calls have spans, too.
                await stack.enter_async_context(process.exporter)
            for pool in process.pools:
                await stack.enter_async_context(pool)
            for cluster in process.clusters:
                await stack.enter_async_context(cluster)
            for mirror in process.mirrors:
                await stack.enter_async_context(mirror)
            nursery = await stack.enter_async_context(trio.open_nursery())
            nursery.start_soon(process.log.run)
            abort = trio.Event()
            nursery.start_soon(_hear_supervisor, process, inherited.channel, nursery, abort)

            async def serve(task_status: trio.TaskStatus[None]) -> None:
                async with trio.open_nursery() as serving:
                    for listener, sockets, tls, director, http2 in zip(
                        process.settings.serve.listeners,
                        inherited.listeners,
                        process.listener_tls,
                        process.directors,
                        process.listener_http2,
                        strict=True,
                    ):
                        run = partial(
                            process.server.serve,
                            sockets,
                            ssl_context=tls,
                            proxy_protocol=listener.proxy_protocol,
                            handlers=own_health(process.settings.serve.health, director),
                            unknown_service_handler=transparent_handler(director),
                            settings=http2,
                        )
                        await serving.start(run)
                    task_status.started()
                nursery.cancel_scope.cancel()

            await nursery.start(serve)
            tell_ready(inherited.channel)
            if inherited.beat_s is not None:
                nursery.start_soon(beat, inherited.channel, inherited.beat_s)
            await _stop_on_signal(process, signals, inherited.channel, abort)
            if process.exporter is not None:
                process.exporter.give_up()
            nursery.cancel_scope.cancel()
        process.say("stopped", "stopped")


async def _stop_on_signal(
    process: Process, signals: AsyncIterator[int], channel: socket.socket, abort: trio.Event
) -> None:
    """Begin to stop at the first signal, and return when it has to be at once. The end of the server cancels it.

    More signals make no difference: a service manager may signal all processes, and so does the supervisor.
    """
    await anext(signals)
    calls = process.server.open_calls
    grace_s = process.settings.serve.grace_s
    process.server.stop(grace_s=grace_s)
    process.say(
        "draining",
        f"draining, {_calls(calls)} still running, for up to {grace_s:g} s",
        calls=calls,
        grace_s=grace_s,
    )
    await trio.lowlevel.checkpoint()  # a connection that had come already is taken meanwhile
    tell_draining(channel)
    await abort.wait()
    calls = process.server.open_calls
    process.say("aborting", f"ending at once, {_calls(calls)} cut off", calls=calls)


async def _hear_supervisor(
    process: Process, channel: socket.socket, nursery: trio.Nursery, abort: trio.Event
) -> None:
    def talk(link: socket.socket) -> None:
        nursery.start_soon(answer, link, process.answers)

    await hear_supervisor(channel, talk, abort.set)
    process.say("orphaned", "the supervisor is gone: draining")
    process.server.stop(grace_s=process.settings.serve.grace_s)


def _calls(number: int) -> str:
    return "1 call" if number == 1 else f"{number} calls"
