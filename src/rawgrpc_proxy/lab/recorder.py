"""Recorders: taps that write connections to a file, in the format of `recording.py`.

    with Recorder(Path("calls.jsonl")) as recorder:
        server = Server(..., tap=recorder)

A connection only copies its bytes into a queue; a thread cuts them into frames, decodes headers and writes. So the loop
never waits for the disk. What is waiting is bounded: a connection for which there is no room is given up, and the file
says from where on. What is on the wire is in the file, secrets included, so only its owner may read it (mode 0600).
"""

import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import hpack

from rawgrpc_proxy.errors import ConfigError, Side
from rawgrpc_proxy.http2 import frames as h2
from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.lab.events import Event, HeadersSeen, Sender, Unreadable
from rawgrpc_proxy.lab.frame_cutter import FrameCutter
from rawgrpc_proxy.lab.link_view import LinkView
from rawgrpc_proxy.lab.recording import (
    Bytes,
    Closed,
    End,
    Fields,
    Frame,
    Head,
    Lost,
    Next,
    Opened,
    Record,
    line_of,
    part_of,
)
from rawgrpc_proxy.net.tapped import Link, LinkTap

MAX_WAITING_BYTES = 64 << 20
_OVERHEAD = 256
"""Of an item that waits, beside its bytes."""
_BLOCK_BYTES = 16384
_REDACTED = b"[redacted]"

_Item = tuple["_RecordedLink", float, Sender | None, bytes | str | None]
"""Whose, when, who has sent these bytes; without a sender: why it is given up, or None for its end."""


class Recorder:
    """A `Tap` that records the connections of these sides, for one thread.

    It begins a file, and raises `ConfigError` if it is there already or cannot be made. With `rotate_bytes` it goes on
    in another one (`FILE.2`) when there are so many in one. `redact` are names of headers, the values of which are left
    out; header blocks are then made anew. `on_failure` is called once, in another thread, if the file cannot be written
    any more; nothing is recorded from then on.
    """

    def __init__(
        self,
        path: Path,
        *,
        sides: Collection[Side] = (Side.DOWNSTREAM, Side.UPSTREAM),
        rotate_bytes: int | None = None,
        redact: Collection[str] = (),
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        on_failure: Callable[[OSError], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._sides = sides
        self._rotate_bytes = rotate_bytes
        self._redact = frozenset(name.lower().encode("latin-1") for name in redact)
        self._max_waiting_bytes = max_waiting_bytes
        self._on_failure = on_failure
        self._clock = clock
        self._started_at = clock()
        self._id = uuid.uuid4().hex
        self._started = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._given = self._taken = 0
        """Bytes, overhead included: two counts, each with one writer, need no lock."""
        self.links = 0
        """How many were recorded."""
        self.lost_links = 0
        """How many were given up for want of room."""
        self.failure: OSError | None = None
        """Why nothing is recorded any more."""
        self._part = 0
        self._written = 0
        self._open: dict[_RecordedLink, _Pen] = {}
        if part_of(path, 2).exists():
            raise ConfigError(f"{part_of(path, 2)} is there already, and is left as it is: give another name")
        try:
            self._fd = self._begin_part()
        except FileExistsError:
            raise ConfigError(f"{path} is there already, and is left as it is: give another name") from None
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def link(self, link: Link) -> LinkTap | None:
        """Record this one, if it is of a side that is wanted."""
        if link.side not in self._sides or self.failure is not None:
            return None
        self.links += 1
        return _RecordedLink(self, link)

    def close(self) -> None:
        """End the recording, and wait until all of it is written. May be called twice."""
        self._queue.put(None)
        self._thread.join()

    # ------------------------------------------------------- of the connections

    def now(self) -> float:
        """Seconds since it has begun."""
        return self._clock() - self._started_at

    def add(self, link: "_RecordedLink", sender: Sender, data: Data) -> bool:
        """Have this written; answer whether there was room."""
        size = len(data) + _OVERHEAD
        if self._given - self._taken + size > self._max_waiting_bytes:
            self.lost_links += 1
            self.note(
                link, f"the disk was too slow: more than {self._max_waiting_bytes} bytes were waiting for it"
            )
            return False
        self._given += size
        self._queue.put((link, self.now(), sender, bytes(data)))
        return True

    def note(self, link: "_RecordedLink", why_lost: str | None) -> None:
        """Have it written that it has ended (None), or is given up."""
        self._queue.put((link, self.now(), None, why_lost))

    # ------------------------------------------------------------ in the thread

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self.failure is None:
                try:
                    self._write_items(item)
                except OSError as error:
                    self.failure = error
                    if self._on_failure is not None:
                        self._on_failure(error)
            else:
                self._count(item)
        if self.failure is None:
            try:
                ends = [record for pen in self._open.values() for record in pen.rest(self.now())]
                self._write([*ends, End(self.now())])
            except OSError as error:
                self.failure = error
        os.close(self._fd)

    def _write_items(self, item: _Item) -> None:
        """Write this one, and those behind it as long as there are some and they are little."""
        lines: list[Record] = []
        size = 0
        while True:
            lines += self._records(item)
            size += self._count(item)
            if size > 1 << 18 or self._queue.empty():
                break
            following = self._queue.get()
            if following is None:
                self._queue.put(None)
                break
            item = following
        self._write(lines)

    def _count(self, item: _Item) -> int:
        size = len(item[3]) + _OVERHEAD if isinstance(item[3], bytes) else 0
        self._taken += size
        return size

    def _records(self, item: _Item) -> Iterator[Record]:
        link, at, sender, data = item
        pen = self._open.get(link)
        if pen is None:
            pen = self._open[link] = _Pen(link.link, self._redact)
            yield Opened(link.link.number, link.opened_at, link.link.side, link.link.peer, link.link.tls)
        if isinstance(data, bytes):
            assert sender is not None
            yield from pen.write(sender, data, at)
            return
        if data is not None:
            yield from pen.lose(at, data)
            return
        del self._open[link]
        yield from pen.rest(at)
        yield Closed(link.link.number, at)

    def _write(self, lines: list[Record]) -> None:
        for line in map(line_of, lines):
            if self._rotate_bytes is not None and self._written >= self._rotate_bytes:
                self._put(line_of(Next(self._part + 1)))
                fd = self._begin_part()
                os.close(self._fd)
                self._fd = fd
            self._put(line)

    def _begin_part(self) -> int:
        part = self._part + 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        fd = os.open(part_of(self._path, part), flags, 0o600)
        self._part, self._written = part, 0
        head = Head(id=self._id, part=part, started=self._started, redacted=self._redacted_names)
        self._put(line_of(head), fd)
        return fd

    @property
    def _redacted_names(self) -> tuple[str, ...]:
        return tuple(sorted(name.decode("latin-1") for name in self._redact))

    def _put(self, line: bytes, fd: int | None = None) -> None:
        rest = memoryview(line)
        while rest:
            written = os.write(self._fd if fd is None else fd, rest)
            rest = rest[written:]
            self._written += written


class _RecordedLink:
    """Of one connection, in its thread."""

    def __init__(self, recorder: Recorder, link: Link) -> None:
        self._recorder = recorder
        self.link = link
        self.opened_at = recorder.now()
        self._lost = False
        downstream = link.side is Side.DOWNSTREAM
        self._peer, self._own = (
            (Sender.CLIENT, Sender.SERVER) if downstream else (Sender.SERVER, Sender.CLIENT)
        )

    def received(self, data: Data) -> None:
        """From the peer."""
        if not self._lost:
            self._lost = not self._recorder.add(self, self._peer, data)

    def sent(self, data: Data) -> None:
        """To the peer."""
        if not self._lost:
            self._lost = not self._recorder.add(self, self._own, data)

    def closed(self) -> None:
        """The connection is over."""
        self._recorder.note(self, None)


class _Pen:
    """Makes records of the bytes of one connection, in the recorder's thread."""

    def __init__(self, link: Link, redact: frozenset[bytes]) -> None:
        self._number = link.number
        self._cutters = {
            sender: FrameCutter(expect_preface=sender is Sender.CLIENT)
            for sender in (Sender.CLIENT, Sender.SERVER)
        }
        self._view = LinkView(link, self._tell)
        self._redact = redact
        self._seen: HeadersSeen | None = None
        self._unreadable: str | None = None
        self._lost = False

    def write(self, sender: Sender, data: bytes, at: float) -> Iterator[Record]:
        """The records that these bytes complete."""
        yield from self._of_pieces(sender, self._cutters[sender].cut(data), at)

    def lose(self, at: float, why: str) -> Iterator[Record]:
        """The record that says why there are no others."""
        if not self._lost:
            yield from self.rest(at)
            yield Lost(self._number, at, why)
            self._lost = True

    def rest(self, at: float) -> Iterator[Record]:
        """What was held back."""
        for sender, cutter in self._cutters.items():
            if not self._redact:
                yield from self._of_pieces(sender, cutter.rest(), at)

    def _of_pieces(self, sender: Sender, pieces: Iterator[tuple[bool, bytes]], at: float) -> Iterator[Record]:
        for is_frame, raw in pieces:
            if self._lost:
                return
            if self._redact and not is_frame and raw != h2.PREFACE:
                yield from self.lose(at, "what is no HTTP/2 cannot be redacted")
                return
            self._read(sender, raw, at)
            if not is_frame:
                yield Bytes(self._number, at, sender, raw)
            elif self._redact:
                yield from self._redacted(sender, raw, at)
            else:
                headers = None if self._seen is None else _fields(self._seen)
                yield Frame(self._number, at, sender, raw, headers)

    def _read(self, sender: Sender, raw: bytes, at: float) -> None:
        """See what it says: `_seen`, or why it cannot be read."""
        self._seen = self._unreadable = None
        self._view.feed(sender, raw, at)

    def _tell(self, event: Event) -> None:
        if isinstance(event, HeadersSeen):
            self._seen = event
        elif isinstance(event, Unreadable):
            self._unreadable = event.reason

    def _redacted(self, sender: Sender, raw: bytes, at: float) -> Iterator[Record]:
        """The frame, its header block made anew: what others refer to is not what it was, so all blocks have to be."""
        kind = raw[3]
        if kind not in (h2.HEADERS, h2.CONTINUATION, h2.PUSH_PROMISE):
            yield Frame(self._number, at, sender, raw)
        elif not raw[4] & h2.END_HEADERS:
            return
        elif kind == h2.PUSH_PROMISE or self._seen is None:
            yield from self.lose(
                at, f"a header block cannot be redacted: {self._unreadable or 'it is a push'}"
            )
        else:
            fields = tuple(
                (name, _REDACTED if name in self._redact else value) for name, value in _fields(self._seen)
            )
            yield from _frames_of(self._number, at, sender, self._seen, fields)


def _fields(seen: HeadersSeen) -> Fields:
    return tuple((name, value) for name, value in seen.headers)


def _frames_of(link: int, at: float, sender: Sender, seen: HeadersSeen, fields: Fields) -> Iterator[Frame]:
    """A header list in frames that lean on no other list."""
    # Without Huffman's code, for which hpack takes time quadratic in the length of a value.
    block = hpack.Encoder().encode([(name, value, True) for name, value in fields], huffman=False)
    pieces = [block[start : start + _BLOCK_BYTES] for start in range(0, max(len(block), 1), _BLOCK_BYTES)]
    for place, piece in enumerate(pieces):
        last = place == len(pieces) - 1
        flags = h2.END_HEADERS if last else 0
        if place == 0 and seen.end_stream:
            flags |= h2.END_STREAM
        kind = h2.HEADERS if place == 0 else h2.CONTINUATION
        raw = h2.frame_header(kind, flags, seen.stream_id, len(piece)) + piece
        yield Frame(link, at, sender, raw, fields if last else None)
