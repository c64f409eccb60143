"""Plays the clients of a recording to a server: all connections, each begun when it was, and what came of their calls.

What it does not do: play one connection (`replaying.py`), or compare calls (`answers.py`).
"""

import math
from collections.abc import Awaitable, Callable, Sequence

import attrs
import trio

from rawgrpc_proxy.lab.answers import CallSeen, calls_of, differences
from rawgrpc_proxy.lab.events import Sender
from rawgrpc_proxy.lab.recording import RecordedLink
from rawgrpc_proxy.lab.replaying import PATIENCE_S, Played, passed_of, play

Dial = Callable[[], Awaitable[trio.abc.HalfCloseableStream]]


@attrs.frozen(kw_only=True)
class Verdict:
    """Of one call, or of a connection as a whole (`before` None)."""

    link: int
    before: CallSeen | None
    now: CallSeen | None
    differences: tuple[str, ...]

    @property
    def name(self) -> str:
        """Which call it is."""
        return (
            "the connection"
            if self.before is None
            else f"{self.before.method} (stream {self.before.stream.id})"
        )


async def replay(
    links: Sequence[RecordedLink],
    dial: Dial,
    *,
    speed: float = 1.0,
    concurrency: int | None = None,
    slower_s: float = math.inf,
    patience_s: float = PATIENCE_S,
) -> list[Verdict]:
    """Play the client's part of each, and answer what came of each call, in the recording's order.

    Each begins when it did, but no more than `concurrency` go on at a time. `dial` may raise `OSError`, which is told
    of the connection's calls.
    """
    began = trio.current_time()
    places = trio.Semaphore(concurrency or max(len(links), 1))
    found: dict[int, list[Verdict]] = {}
    first = min((link.opened_at for link in links), default=0.0)

    async def one(link: RecordedLink, stream: trio.abc.HalfCloseableStream) -> None:
        played = await play(link, Sender.CLIENT, stream, speed=speed, patience_s=patience_s)
        found[link.number] = list(_verdicts(played, slower_s))
        places.release()

    async with trio.open_nursery() as nursery:
        # One after another, so that connections are opened in the order in which they were.
        for link in links:
            if link.lost is not None:
                found[link.number] = [_of_link(link, f"not played: {link.lost}")]
                continue
            if not math.isinf(speed):
                await trio.sleep_until(began + (link.opened_at - first) / speed)
            await places.acquire()
            try:
                stream = await dial()
            except OSError as error:
                found[link.number] = [_of_link(link, f"no connection: {error}"), *_not_made(link)]
                places.release()
            else:
                nursery.start_soon(one, link, stream)
    return [verdict for link in links for verdict in found[link.number]]


def _verdicts(played: Played, slower_s: float) -> list[Verdict]:
    verdicts = [] if played.problem is None else [_of_link(played.link, played.problem)]
    for before, now in played.calls:
        told = tuple(differences(before, now, slower_s=slower_s))
        verdicts.append(Verdict(link=played.link.number, before=before, now=now, differences=told))
    return verdicts


def _of_link(link: RecordedLink, problem: str) -> Verdict:
    return Verdict(link=link.number, before=None, now=None, differences=(problem,))


def _not_made(link: RecordedLink) -> list[Verdict]:
    return [
        Verdict(link=link.number, before=call, now=None, differences=tuple(differences(call, None)))
        for call in calls_of(passed_of(link))
    ]
