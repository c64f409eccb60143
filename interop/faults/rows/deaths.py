"""Backends that are killed, restarted, stopped, or not there at all."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import trio

from interop.faults.payload import Stream
from interop.faults.row import Figures, Outcome, Row, Site, left_out
from interop.faults.shim import shim_before
from interop.faults.world import (
    Backend,
    Failure,
    Load,
    Logged,
    Proxy,
    Settings,
    backends,
    calling,
    play,
    proxying,
    start,
    start_again,
    stop,
    until,
)
from interop.peers.catalogue import left_out as peer_left_out
from interop.peers.catalogue import peer_command
from interop.shared.ports import free_port
from interop.shared.processes import Listener

#: From a backend's death to the end of the calls on it.
DEATH_SECONDS = 0.1
KILLS_OF_STREAMS = 5
RESTARTS, CALLS_MEANWHILE = 20, 20_000
COMES_BACK_SECONDS = 10.0
KILLS, KILL_EVERY_SECONDS = 30, 2.0
#: As precise the log's times are.
LOG_SECONDS = 0.005
#: PING after 10 s, the least there may be, and 1 s for its answer.
KEEPALIVE_SECONDS = 11.0
DIAL_SECONDS = 1.0
STOPPED_SECONDS = 20.0
DEADLINE_SECONDS = 2.0
HEALTH = "health = { interval = 1, timeout = 1, unhealthy_threshold = 2 }"
#: Up to a second until the next check, two of a second each with a second between them, and a tenth of it by chance.
HEALTH_SECONDS = 4.5
FAIL_FAST_SECONDS = 3.0


def note_calls(figures: Figures, load: Load, allowed: int = 0) -> None:
    """How many calls there were, how many have failed, and that none was cut short under the name of a success."""
    why = f" ({load.why()})" if load.failures else ""
    figures.note(f"{len(load.failures)} of {load.total:,} calls failed{why}", len(load.failures) <= allowed)
    figures.note(f"{load.truncated} truncated successes", not load.truncated)


# ------------------------------------------------------------------------------------------------------------ killed


async def killed_in_mid_stream(site: Site) -> Outcome:
    """Kill one of two backends, again and again, with streams on both."""
    figures, after, new, others = Figures(), list[float](), list[Failure](), list[Failure]()
    streams = Stream(count=40, size=1000, pause_s=0.05)
    async with (
        backends("a", "b") as servers,
        proxying(site, Settings([server.target for server in servers])) as proxy,
        calling(
            proxy.target, kind="stream", at_a_time=10, count=streams.count, size=streams.size, pause=streams.pause_s
        ) as callers,
    ):  # fmt: skip
        kills = []
        for number in range(KILLS_OF_STREAMS):
            await trio.sleep(2)
            victim = servers[number % 2]
            kills.append(time.monotonic())
            victim.kill()
            await trio.sleep(1)
            servers[number % 2] = start_again(victim)
            await start(servers[number % 2])
        load = await callers.finish()
    for failure in load.failures:
        killed = max((at for at in kills if at <= failure.ended), default=None)
        if killed is None:
            others.append(failure)
        elif failure.started > killed and "is lost" not in failure.details:
            # One that was on the connection before the proxy heard of its end is none of these.
            new.append(failure)
        elif failure.ended - killed > 1.0 or failure.status != "UNAVAILABLE":
            others.append(failure)
        else:
            after.append(failure.ended - killed)
    figures.milliseconds("streams of a killed backend ended after", after, DEATH_SECONDS)
    figures.note(f"{len(others)} others failed" + (f": {others[0]}" if others else ""), not others)
    figures.note(f"{len(new)} new ones failed" + (f": {new[0]}" if new else ""), not new)
    figures.note(f"{load.truncated} of {load.ok} successes truncated", load.ok > 0 and not load.truncated)
    return figures.outcome()


# --------------------------------------------------------------------------------------------------------- restarted


async def _restarts(
    site: Site, servers: list[Listener], anew: list[Listener], route: str = ""
) -> tuple[Load, Proxy, str]:
    """Restart one after the other in good order; `anew` are the processes that come after them."""
    started = time.monotonic()
    async with (
        proxying(site, Settings([server.target for server in servers], route=route)) as proxy,
        calling(proxy.target, at_a_time=8) as callers,
    ):
        every, waits = CALLS_MEANWHILE / (len(anew) + 1), [0.0]
        for number, fresh in enumerate(anew):
            # The log tells of calls when they end, so it is a count; and the restarts are spread over all calls.
            await until(partial(_has_called, proxy, (number + 1) * every), 60)
            await stop(servers[number % 2])
            servers[number % 2] = fresh
            await start(fresh)
            # Who restarts the second one before the first has calls again has none for a moment.
            back = time.monotonic()
            if await until(partial(_has_answered, proxy, fresh.target, len(proxy.calls)), COMES_BACK_SECONDS):
                waits.append(time.monotonic() - back)
        await until(partial(_has_called, proxy, CALLS_MEANWHILE), 60)
        load = await callers.finish()
    seconds = time.monotonic() - started
    text = (
        f"{len(anew)} restarts in {seconds:.0f} s; a backend has calls again after {max(waits):.1f} s at most; "
        f"longest gap between successes {load.longest_gap_s * 1e3:.0f} ms"
    )
    return load, proxy, text


def _has_called(proxy: Proxy, count: float) -> bool:
    return len(proxy.calls) >= count


def _has_answered(proxy: Proxy, target: str, since: int) -> bool:
    return any(call.upstream == target and call.status == "OK" for call in proxy.calls[since:])


async def restarts(site: Site) -> Outcome:
    """Backends of grpc-go, whose graceful stop is one."""
    if why := peer_left_out("grpc-go"):
        return left_out(why)

    def server(port: int) -> Listener:
        return Listener("grpc-go", [*peer_command("grpc-go", "bytes_server"), f"--port={port}", "--graceful"])

    ports = free_port(), free_port()
    servers = [server(port) for port in ports]
    for each in servers:
        await start(each)
    try:
        anew = [server(ports[number % 2]) for number in range(RESTARTS)]
        load, _, text = await _restarts(site, servers, anew)
    finally:
        for each in servers:
            await stop(each)
    figures = Figures()
    note_calls(figures, load)
    figures.note(text, load.total >= CALLS_MEANWHILE)
    return figures.outcome()


async def restarts_grpcio(site: Site, route: str = "") -> Outcome:
    """Backends of grpcio, which answers calls that it has not begun with CANCELLED as it stops."""
    async with backends("a", "b") as servers:
        every: list[Listener] = list(servers)
        anew: list[Listener] = [start_again(servers[number % 2]) for number in range(RESTARTS)]
        try:
            load, proxy, text = await _restarts(site, every, anew, route)
        finally:
            servers[:] = [each for each in every if isinstance(each, Backend)]
    figures = Figures()
    theirs = [call for call in proxy.calls if (call.status, call.origin) == ("CANCELLED", "upstream")]
    if route:
        note_calls(figures, load)
        figures.note(text, load.total >= CALLS_MEANWHILE)
        return figures.outcome()
    figures.note(f"{len(theirs)} of {load.total:,} calls were answered with CANCELLED by grpcio")
    others = len(load.failures) - len(theirs)
    figures.note(f"{others} failed otherwise" + (f" ({load.why()})" if others else ""), not others)
    figures.note(f"{load.truncated} truncated successes", not load.truncated)
    figures.note(text, load.total >= CALLS_MEANWHILE)
    return figures.outcome()


# ------------------------------------------------------------------------------------------- killed every two seconds


@dataclass(frozen=True)
class _Kill:
    target: str
    time: float
    """Since 1970, as in the log."""


async def _kill_every_2_s(site: Site, route: str) -> tuple[Load, Proxy, Sequence[_Kill]]:
    kills = []
    async with (
        backends("a", "b", "c") as servers,
        proxying(site, Settings([server.target for server in servers], route=route)) as proxy,
        calling(proxy.target, at_a_time=8) as callers,
    ):
        for number in range(KILLS):
            next_at = trio.current_time() + KILL_EVERY_SECONDS
            victim = servers[number % 3]
            kills.append(_Kill(victim.target, time.time()))
            victim.kill()
            servers[number % 3] = start_again(victim)
            await start(servers[number % 3])
            await trio.sleep_until(next_at)
        load = await callers.finish()
    return load, proxy, kills


async def kills_with_retry(site: Site) -> Outcome:
    """One of three is killed every 2 s, and a policy repeats what is UNAVAILABLE."""
    figures = Figures()
    load, _, kills = await _kill_every_2_s(
        site, 'retry = { max_attempts = 3, retryable_status_codes = ["UNAVAILABLE"] }'
    )
    note_calls(figures, load)
    figures.note(f"{len(kills)} kills; longest gap between successes {load.longest_gap_s * 1e3:.0f} ms")
    return figures.outcome()


def _in_flight(kill: _Kill, calls: Sequence[Logged]) -> list[Logged]:
    """Calls on the one that was killed, until the proxy heard of it: when the first of them has failed."""
    its = [
        call
        for call in calls
        if call.upstream == kill.target and kill.time < call.over < kill.time + KILL_EVERY_SECONDS
    ]
    heard = min((call.over for call in its if call.status != "OK"), default=kill.time)
    return [call for call in its if call.began < heard + LOG_SECONDS]


async def kills_without_retry(site: Site) -> Outcome:
    """The same without the policy: only what was in flight on the one that was killed may fail."""
    figures = Figures()
    load, proxy, kills = await _kill_every_2_s(site, "")
    in_flight = {call for kill in kills for call in _in_flight(kill, proxy.calls)}
    beside = [call for call in proxy.calls if call.status != "OK" and call not in in_flight]
    note_calls(figures, load, allowed=len(in_flight))
    figures.note(f"{len(in_flight)} were in flight on one that was killed, in {len(kills)} kills")
    figures.note(f"{len(beside)} others" + (f": {beside[0]}" if beside else ""), not beside)
    return figures.outcome()


# ----------------------------------------------------------------------------------------------------------- stopped


async def stopped(site: Site, cluster: str, safe_s: float) -> Outcome:
    """SIGSTOP one of two backends, and SIGCONT: nothing tells of it but its silence."""
    figures = Figures()
    settings = "upstream_keepalive = 10\nkeepalive_timeout = 1"
    async with (
        backends("a", "b") as servers,
        proxying(
            site,
            Settings(
                [server.target for server in servers],
                cluster,
                http2=settings,
                pool=f"dial_timeout = {DIAL_SECONDS}",
            ),
        ) as proxy,
        calling(proxy.target, at_a_time=8, timeout=DEADLINE_SECONDS, rest=0.02) as callers,
    ):
        victim = servers[0]
        stopped_at = time.monotonic()
        victim.signal(signal.SIGSTOP)
        await trio.sleep(STOPPED_SECONDS)
        goes_on = time.monotonic()
        victim.signal(signal.SIGCONT)

        def back() -> float | None:
            ends = [
                call.ended
                for call in proxy.calls
                if call.upstream == victim.target
                and call.status == "OK"
                and call.ended - call.seconds > goes_on
            ]
            return min(ends) - goes_on if ends else None

        await until(lambda: back() is not None, 15)
        load = await callers.finish()
    overruns = [each.ended - each.started - DEADLINE_SECONDS for each in load.failures]
    figures.at_most("the latest end after its deadline", max(overruns, default=0.0), 0.25)
    last = max((each.started - stopped_at for each in load.failures), default=0.0)
    figures.at_most("the last call that was lost began", last, safe_s)
    meanwhile = [call for call in proxy.calls if call.status == "OK" and stopped_at < call.ended < goes_on]
    figures.note(f"{len(load.failures)} lost and {len(meanwhile)} answered while it stood still")
    figures.at_most("it has calls again after", back(), 5.0)
    figures.note(f"{load.truncated} truncated successes", not load.truncated)
    return figures.outcome()


async def stopped_from_the_start(site: Site) -> Outcome:
    """The only backend stands still before the first call: it accepts, and says nothing, not even SETTINGS."""
    figures = Figures()
    async with backends("a") as (server,), proxying(site, Settings([server.target])) as proxy:
        server.signal(signal.SIGSTOP)
        results = await play(proxy.target, [{"method": "Echo"}] * 10)
        figures.note(f"statuses {sorted({each.status for each in results})}", _all(results, "UNAVAILABLE"))
        longest = max(each.seconds for each in results)
        figures.at_most("the longest took", longest, FAIL_FAST_SECONDS + 1.0)
        [hasty] = await play(proxy.target, [{"method": "Echo", "timeout_s": 1.0}])
        figures.at_most("one with a deadline of 1 s took", hasty.seconds, 1.25)
        server.signal(signal.SIGCONT)
        started = time.monotonic()
        with trio.move_on_after(20):
            while (await play(proxy.target, [{"method": "Echo"}]))[0].status != "OK":
                pass
        figures.at_most("calls go through again after", time.monotonic() - started, 5.0)
    return figures.outcome()


async def down(site: Site) -> Outcome:
    """The only backend resets all who connect."""
    figures = Figures()
    async with backends("a") as (server,), shim_before(server.target) as (shim, upstream):
        shim.reset_next(10**9)
        async with proxying(site, Settings([upstream])) as proxy:
            calls = [{"method": "Echo", "after_s": number * 0.02} for number in range(500)]
            results = await play(proxy.target, calls)
            figures.note(f"{len(results)} calls in 10 s, each UNAVAILABLE", _all(results, "UNAVAILABLE"))
            figures.at_most("the longest took", max(each.seconds for each in results), FAIL_FAST_SECONDS)
            figures.at_most("dials", shim.accepted, 20, "")
            shim.reset_next(0)
            back = time.monotonic()
            with trio.move_on_after(20):
                while (await play(proxy.target, [{"method": "Echo"}]))[0].status != "OK":
                    pass
            figures.at_most("back, calls go through after", time.monotonic() - back, 5.0)
    return figures.outcome()


def _all(results: Sequence[object], status: str) -> bool:
    return all(getattr(each, "status", None) == status for each in results)


async def pool_full(site: Site) -> Outcome:
    """More calls than connections, and than may wait for one."""
    figures = Figures()
    pool = "size = 1\nms = 2\nmax_waiting = 4"
    async with backends("a") as (server,), proxying(site, Settings([server.target], pool=pool)) as proxy:
        await play(proxy.target, [{"method": "Echo"}])
        calls = [{"method": "Slow", "request": "1.0", "timeout_s": 2.5}] * 20
        results = await play(proxy.target, calls)
        refused = [each for each in results if each.status == "RESOURCE_EXHAUSTED"]
        late = [each for each in results if each.status == "DEADLINE_EXCEEDED"]
        served = [each for each in results if each.status == "OK"]
        figures.note(f"{len(served)} of 20 served, 2 at a time", len(served) == 4)
        figures.note(f"{len(late)} waited until their deadline", len(late) == 2)
        figures.note(f"{len(refused)} refused with RESOURCE_EXHAUSTED", len(refused) == 14)
        figures.at_most("refused after", max((each.seconds for each in refused), default=None), 0.5)
        figures.note("nothing is left behind", await proxy.quiet())
    return figures.outcome()


ROWS = [
    Row(
        "killed",
        "a backend is killed in mid-stream (5 times, 20 streams on two)",
        "its streams end as UNAVAILABLE within 100 ms; the others, and new ones, are unaffected; no truncated success",
        22,
        killed_in_mid_stream,
    ),
    Row(
        "restarts",
        f"{RESTARTS} graceful restarts of two backends in turn (grpc-go), under load",
        f"0 failed of at least {CALLS_MEANWHILE:,} unary calls",
        40,
        restarts,
    ),
    Row(
        "restarts_grpcio",
        f"the same with grpcio, {RESTARTS} times, which cancels calls that it has not begun as it stops",
        f"0 failed of at least {CALLS_MEANWHILE:,} unary calls but those that it has cancelled",
        40,
        restarts_grpcio,
    ),
    Row(
        "restarts_retry",
        f"the same, {RESTARTS} times, with retry on CANCELLED",
        f"0 failed of at least {CALLS_MEANWHILE:,} unary calls",
        40,
        partial(
            restarts_grpcio,
            route='retry = { max_attempts = 3, retryable_status_codes = ["CANCELLED", "UNAVAILABLE"] }',
        ),
    ),
    Row(
        "kills_retry",
        "one of three backends is killed every 2 s for a minute; retry on UNAVAILABLE",
        "0 failed unary calls",
        65,
        kills_with_retry,
    ),
    Row(
        "kills",
        "the same without retry",
        "only calls fail that were in flight on the one that was killed",
        65,
        kills_without_retry,
    ),
    Row(
        "stopped",
        f"one of two backends is stopped (SIGSTOP) for {STOPPED_SECONDS:.0f} s, with keepalive 10 + 1 s",
        "deadlines are kept to 0.25 s; no call is lost that begins 12.5 s later; it has calls again 5 s after SIGCONT",
        30,
        partial(stopped, cluster="", safe_s=KEEPALIVE_SECONDS + DIAL_SECONDS + 0.5),
    ),
    Row(
        "stopped_checked",
        "the same with health checks each second, two of which have to fail",
        "the same, but no call is lost that begins 4.5 s later",
        30,
        partial(stopped, cluster=HEALTH, safe_s=HEALTH_SECONDS),
    ),
    Row(
        "stopped_first",
        "the only backend is stopped before its first call",
        "UNAVAILABLE after 4 s at the latest, deadlines are kept; back within 5 s",
        20,
        stopped_from_the_start,
        waits=True,
    ),
    Row(
        "down",
        "the only backend resets all connections; 50 calls a second",
        f"UNAVAILABLE within {FAIL_FAST_SECONDS:.0f} s, no storm of dials; back within 5 s",
        20,
        down,
        waits=True,
    ),
    Row(
        "pool_full",
        "20 calls at once where 2 have room and 4 may wait",
        "those that wait keep their deadline, the others are RESOURCE_EXHAUSTED at once",
        6,
        pool_full,
        waits=True,
    ),
]
