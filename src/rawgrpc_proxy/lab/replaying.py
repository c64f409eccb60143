"""Plays one end of a recorded connection to a peer: the recorded frames, in the recorded order, at the recorded times.

    ours, theirs = trio.testing.memory_stream_pair()
    nursery.start_soon(serve_it, theirs)                                # what is tested
    played = await play(read("failure.jsonl").links[0], Sender.CLIENT, ours)
    assert played.differences() == []

What is sent are the recorded bytes, but for answers to what only this peer has asked (a PING, SETTINGS), and credit for
what it sends beyond what the recorded one had sent. A frame that came behind one of the other end waits for that, see
`progress.py`; DATA wait for room in the peer's windows. It uses trio's clock alone, so under `MockClock` it takes no
time. Nothing waits for ever: a peer that does not do what the recorded one did has `patience_s` longer than that.
"""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator

import attrs
import trio

from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.http2 import frames as h2
from rawgrpc_proxy.lab.answers import CallSeen, Passed, calls_of, differences
from rawgrpc_proxy.lab.events import Sender
from rawgrpc_proxy.lab.frame_cutter import FrameCutter
from rawgrpc_proxy.lab.frame_details import frame_name
from rawgrpc_proxy.lab.progress import Progress, lacks
from rawgrpc_proxy.lab.recording import Frame, RecordedLink
from rawgrpc_proxy.net.address import Address

PATIENCE_S = 10.0
_MAY_COME_S = 1.0
"""How long a frame is waited for that a peer need not send."""
_READ_BYTES = 64 * 1024


@attrs.frozen(kw_only=True)
class Played:
    """What came of it."""

    link: RecordedLink
    part: Sender
    """Who was played."""
    passed: tuple[Passed, ...]
    """All bytes of both ends, with the seconds since it began."""
    problem: str | None
    """Why it was not played to its end, if it was not."""

    def bytes_of(self, sender: Sender) -> bytes:
        """All that this end has sent."""
        return b"".join(data for _, who, data in self.passed if who is sender)

    @property
    def calls(self) -> list[tuple[CallSeen, CallSeen | None]]:
        """Each call as it was recorded, and as it is now."""
        now = {call.stream.id: call for call in calls_of(self.passed)}
        return [(call, now.get(call.stream.id)) for call in calls_of(passed_of(self.link))]

    def differences(self, *, slower_s: float = math.inf) -> list[str]:
        """In words, what is not as it was recorded, call by call; none if the answers are the same."""
        found = [] if self.problem is None else [self.problem]
        for before, now in self.calls:
            where = f"{before.method} (stream {before.stream.id})"
            found += [f"{where}: {each}" for each in differences(before, now, slower_s=slower_s)]
        return found


def passed_of(link: RecordedLink) -> Iterator[Passed]:
    """What has passed on a recorded connection."""
    return ((entry.at, entry.sender, entry.raw) for entry in link.entries)


async def play(
    link: RecordedLink,
    part: Sender,
    stream: trio.abc.HalfCloseableStream,
    *,
    speed: float = 1.0,
    patience_s: float = PATIENCE_S,
) -> Played:
    """Be the client, or the server, of this connection until its end, and close the stream.

    `speed` 2 halves the time between frames, infinity leaves none. Errors of the stream end it, and are in `problem`.
    Raises `ConfigError` for a connection that was not recorded to its end: what is missing cannot be played.
    """
    if link.lost is not None:
        raise ConfigError(f"link {link.number} cannot be played: {link.lost}")
    return await _Player(link, part, stream, speed, patience_s).run()


async def play_to(
    link: RecordedLink, address: str, *, speed: float = 1.0, patience_s: float = PATIENCE_S
) -> Played:
    """Be the client of this connection to the server at `address` (`HOST:PORT`, `unix:PATH`), in plaintext.

    Raises `OSError` if there is none, and what `play` raises.
    """
    stream = await open_stream(Address.parse(address))
    return await play(link, Sender.CLIENT, stream, speed=speed, patience_s=patience_s)


async def open_stream(address: Address) -> trio.SocketStream:
    """A connection. Raises `OSError`."""
    if address.path is not None:
        return await trio.open_unix_socket(address.path)
    return await trio.open_tcp_stream(address.host, address.port)


class _Stuck(Exception):
    """The peer has not done what the recorded one did."""


class _Player:
    def __init__(
        self,
        link: RecordedLink,
        part: Sender,
        stream: trio.abc.HalfCloseableStream,
        speed: float,
        patience_s: float,
    ) -> None:
        self._link, self._part, self._stream = link, part, stream
        self._peer = Sender.SERVER if part is Sender.CLIENT else Sender.CLIENT
        self._speed, self._patience_s = speed, patience_s
        self._passed: list[Passed] = []
        self._began = trio.current_time()
        self._origin = self._began - link.opened_at / speed
        """When, on trio's clock, the recording's time is 0. Moves on when the peer is later than it was."""
        self._cutter = FrameCutter(expect_preface=self._peer is Sender.CLIENT)
        self._now, self._then, self._ours = Progress(), Progress(), Progress()
        """The peer, the recorded peer up to here, and what we have sent."""
        self._total = Progress()
        """The recorded peer at its end."""
        for entry in link.entries:
            if entry.sender is self._peer and isinstance(entry, Frame):
                self._total.feed(*_parts(entry.raw))
        self._received_bytes = 0
        self._pings: deque[bytes] = deque()
        """Those that have no answer yet."""
        self._settings = 0
        """The same of SETTINGS."""
        self._acks_left_out = 0
        """Answers to SETTINGS that were recorded, and have not come."""
        self._credited: dict[int, int] = {}
        self._sending = trio.Lock()
        self._over = False
        """The peer sends nothing more."""
        self._changed = trio.Event()

    async def run(self) -> Played:
        problem: str | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, nursery)
                try:
                    await self._walk()
                    await self._finish()
                except _Stuck as stuck:
                    problem = str(stuck)
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    problem = f"the connection broke: {error.__cause__ or error}"
                nursery.cancel_scope.cancel()
        finally:
            await trio.aclose_forcefully(self._stream)
        return Played(link=self._link, part=self._part, passed=tuple(self._passed), problem=problem)

    # ------------------------------------------------------------------- story

    async def _walk(self) -> None:
        held = b""
        before = self._link.opened_at
        for entry in self._link.entries:
            gap, before = max(0.0, entry.at - before), entry.at
            if entry.sender is self._peer:
                if isinstance(entry, Frame):
                    await self._await_peer(entry, gap)
                continue
            await self._sleep_until(entry.at)
            if not isinstance(entry, Frame):
                await self._send(entry.raw)
                continue
            kind, flags, stream_id, payload = _parts(entry.raw)
            held += entry.raw
            if kind in (h2.HEADERS, h2.PUSH_PROMISE, h2.CONTINUATION) and not flags & h2.END_HEADERS:
                continue  # nothing else may come before the rest of its block
            raw, held = held, b""
            if kind == h2.DATA:
                await self._await_room(stream_id, len(payload), gap)
            elif kind == h2.PING and flags & h2.ACK:
                answer = await self._ping_to_answer()
                if answer is None:
                    continue
                raw = h2.ping(answer, ack=True)
            elif kind == h2.SETTINGS and flags & h2.ACK and not await self._settings_to_answer():
                continue
            self._ours.feed(kind, flags, stream_id, payload)
            await self._send(raw)

    async def _await_peer(self, entry: Frame, gap: float) -> None:
        kind, flags, stream_id, payload = _parts(entry.raw)
        self._then.feed(kind, flags, stream_id, payload)

        def lacking() -> bool:
            return stream_id not in self._ours.reset and lacks(self._now, self._then, kind, flags, stream_id)

        what = f"{frame_name(kind)} of stream {stream_id}"
        await self._until(lambda: not lacking(), gap + self._patience_s, what)
        # It may be later than it was: then so is all that follows.
        self._origin = max(self._origin, trio.current_time() - entry.at / self._speed)

    async def _await_room(self, stream_id: int, size: int, gap: float) -> None:
        def room() -> bool:
            return stream_id in self._now.reset or self._now.room_for(stream_id, self._ours) >= size

        await self._until(room, gap + self._patience_s, f"room for {size} bytes of stream {stream_id}")

    async def _ping_to_answer(self) -> bytes | None:
        """The next PING that has no answer; None if there is none. A peer sends them when it likes."""
        with trio.move_on_after(_MAY_COME_S):
            await self._until(lambda: bool(self._pings), math.inf, "PING")
        return self._pings.popleft() if self._pings else None

    async def _settings_to_answer(self) -> bool:
        """Whether there are SETTINGS that have no answer, or the recorded answer is one to nothing.

        The first ones have been waited for; later ones a peer sends when it likes.
        """
        if self._ours.settings_acks + self._acks_left_out >= self._then.settings:
            return True
        with trio.move_on_after(_MAY_COME_S):
            await self._until(lambda: self._settings > 0, math.inf, "SETTINGS")
        if self._settings:
            self._settings -= 1
            return True
        self._acks_left_out += 1
        return False

    async def _finish(self) -> None:
        """See the peer's last bytes, and that it hears that no more comes."""
        expected = len(self._link.bytes_of(self._peer))
        with trio.move_on_after(_MAY_COME_S):
            await self._until(
                lambda: self._over or self._received_bytes >= expected, math.inf, "the last bytes"
            )
        if self._part is Sender.CLIENT:
            async with self._sending:
                await self._stream.send_eof()
        with trio.move_on_after(_MAY_COME_S if self._part is Sender.CLIENT else self._patience_s):
            await self._until(lambda: self._over, math.inf, "the end")

    # ------------------------------------------------------------------- steps

    async def _until(self, done: Callable[[], bool], patience_s: float, what: str) -> None:
        """Wait until the peer has come so far. Raises `_Stuck`."""
        with trio.move_on_after(patience_s):
            while not done():
                if self._over:
                    raise _Stuck(f"the peer closed the connection before {what}")
                await self._changed.wait()
            return
        raise _Stuck(f"the peer did not send {what} within {patience_s:.3g} s")

    async def _sleep_until(self, at: float) -> None:
        if not math.isinf(self._speed):
            await trio.sleep_until(self._origin + at / self._speed)

    async def _send(self, data: bytes) -> None:
        async with self._sending:
            self._passed.append((trio.current_time() - self._began, self._part, data))
            await self._stream.send_all(data)

    # --------------------------------------------------------------- the reader

    async def _read(self, nursery: trio.Nursery) -> None:
        try:
            while data := bytes(await self._stream.receive_some(_READ_BYTES)):
                self._passed.append((trio.current_time() - self._began, self._peer, data))
                self._received_bytes += len(data)
                answers = b""
                for is_frame, raw in self._cutter.cut(data):
                    if is_frame:
                        answers += self._hear(raw)
                if answers:
                    nursery.start_soon(self._answer, answers)
                self._tell()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self._over = True
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _hear(self, raw: bytes) -> bytes:
        """Note a frame; answer what has to be sent because the recorded peer has sent none like it."""
        kind, flags, stream_id, payload = _parts(raw)
        self._now.feed(kind, flags, stream_id, payload)
        if kind == h2.DATA:
            return self._credit(stream_id)
        if kind == h2.SETTINGS and not flags & h2.ACK:
            if self._now.settings > self._total.settings - self._acks_left_out:
                return h2.SETTINGS_ACK
            self._settings += 1
        if kind == h2.PING and not flags & h2.ACK:
            if self._now.pings > self._total.pings:
                return h2.ping(payload.ljust(8, b"\0")[:8], ack=True)
            self._pings.append(payload.ljust(8, b"\0")[:8])
        return b""

    def _credit(self, stream_id: int) -> bytes:
        """For what is beyond what was recorded, and so has no WINDOW_UPDATE in the recording."""
        updates = b""
        for number in (0, stream_id):
            beyond = self._now.data_bytes[number] - self._total.data_bytes[number]
            more = beyond - self._credited.get(number, 0)
            if more > 0 and not (number and self._now.is_done(number)):
                self._credited[number] = beyond
                updates += h2.window_update(number, more)
        return updates

    async def _answer(self, data: bytes) -> None:
        with contextlib.suppress(
            trio.BrokenResourceError, trio.ClosedResourceError
        ):  # the story hears of it, too
            await self._send(data)


def _parts(raw: bytes) -> tuple[int, int, int, bytes]:
    return raw[3], raw[4], int.from_bytes(raw[5:9]) & 0x7FFFFFFF, raw[h2.HEADER_BYTES :]
