"""Recordings: the frames of connections in a file, byte for byte, with their times. The format is docs/recording.md.

    recording = read("calls.jsonl")
    for link in recording.links:
        link.bytes_of(Sender.CLIENT)            # what the client has sent, all of it
        link.entries                            # Frame and Bytes, both directions, in order

JSON Lines: a line for each frame, its bytes in base64. A binary format would save a quarter of the size; this one is
read by jq, by a text editor, and in ten lines of any language, and a line that was cut is told by its missing end.
The invariant: what is read of a file that was cut is what was written before the cut, and nothing else.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs

from rawgrpc_proxy.errors import ConfigError, Side
from rawgrpc_proxy.http2.frames import HEADER, HEADER_BYTES
from rawgrpc_proxy.lab.events import Sender
from rawgrpc_proxy.lab.frame_details import frame_name

FORMAT, VERSION = "rawgrpc-recording", 1
_ID_MASK = 0x7FFFFFFF

Fields = tuple[tuple[bytes, bytes], ...]


@attrs.frozen(kw_only=True)
class Head:
    """The first line of a file."""

    id: str
    """The same in all files of a recording."""
    part: int
    """From 1."""
    started: str
    """When times are 0: UTC, as RFC 3339 has it."""
    redacted: tuple[str, ...] = ()
    """Names of headers whose values were left out; then header blocks are not as they were on the wire."""


@attrs.frozen
class Opened:
    """A connection begins. `at` is in seconds since the recording has begun, here and everywhere."""

    link: int
    at: float
    side: Side
    peer: str
    tls: str | None


@attrs.frozen
class Frame:
    """A frame, whole."""

    link: int
    at: float
    """When its last byte has passed."""
    sender: Sender
    raw: bytes
    """Its header included."""
    headers: Fields | None = None
    """The list that ends with this frame, decoded."""

    @property
    def length(self) -> int:
        """Of the payload."""
        return len(self.raw) - HEADER_BYTES

    @property
    def type(self) -> int:
        """Its number."""
        return self.raw[3]

    @property
    def flags(self) -> int:
        """All eight of them."""
        return self.raw[4]

    @property
    def stream_id(self) -> int:
        """0 for those of the connection."""
        return int.from_bytes(self.raw[5:HEADER_BYTES]) & _ID_MASK

    @property
    def payload(self) -> bytes:
        """Padding included."""
        return self.raw[HEADER_BYTES:]


@attrs.frozen
class Bytes:
    """What is no frame: the client's preface, a frame that was never whole, another protocol."""

    link: int
    at: float
    sender: Sender
    raw: bytes


@attrs.frozen
class Lost:
    """From here on nothing of this connection is recorded."""

    link: int
    at: float
    why: str


@attrs.frozen
class Closed:
    """The connection is over."""

    link: int
    at: float


@attrs.frozen
class Next:
    """The recording goes on in the file of this part."""

    part: int


@attrs.frozen
class End:
    """The recording was ended in good order. Without it the file was cut."""

    at: float


Entry = Frame | Bytes
Record = Head | Opened | Frame | Bytes | Lost | Closed | Next | End


# ----------------------------------------------------------------------- writing


def line_of(record: Record) -> bytes:
    """The record as it is in a file, its line feed included."""
    return json.dumps(_fields_of(record), separators=(",", ":")).encode() + b"\n"


def _fields_of(record: Record) -> dict[str, Any]:
    match record:
        case Frame(link, at, sender, raw, headers):
            fields = {
                "kind": "frame",
                "at": round(at, 6),
                "link": link,
                "from": sender.value,
                "type": frame_name(raw[3]),
                "flags": raw[4],
                "stream": record.stream_id,
                "length": record.length,
            }
            if headers is not None:
                # ISO 8859-1 gives each byte the character of its number: what is no text is not lost.
                fields["headers"] = [[each.decode("latin-1") for each in field] for field in headers]
            return {**fields, "raw": base64.b64encode(raw).decode()}
        case Bytes(link, at, sender, raw):
            return {
                "kind": "bytes",
                "at": round(at, 6),
                "link": link,
                "from": sender.value,
                "raw": base64.b64encode(raw).decode(),
            }
        case Opened(link, at, side, peer, tls):
            return {
                "kind": "open",
                "at": round(at, 6),
                "link": link,
                "side": side.value,
                "peer": peer,
                "tls": tls,
            }
        case Lost(link, at, why):
            return {"kind": "lost", "at": round(at, 6), "link": link, "why": why}
        case Closed(link, at):
            return {"kind": "close", "at": round(at, 6), "link": link}
        case Head():
            return {
                "kind": "recording",
                "format": FORMAT,
                "version": VERSION,
                "id": record.id,
                "part": record.part,
                "started": record.started,
                "redacted": list(record.redacted),
            }
        case Next(part):
            return {"kind": "next", "part": part}
        case End(at):
            return {"kind": "end", "at": round(at, 6)}


def part_of(path: Path, part: int) -> Path:
    """The file of this part: `calls.jsonl`, then `calls.jsonl.2`."""
    return path if part == 1 else path.with_name(f"{path.name}.{part}")


# ----------------------------------------------------------------------- reading


def records(path: Path | str) -> Iterator[Record]:
    """What is in this file and those that it goes on in, up to where it was cut, one after another.

    Raises `ConfigError` for a file that cannot be read or is no recording, with the line that is wrong.
    """
    path, part, first = Path(path), 1, None
    while True:
        file, goes_on = part_of(path, part), False
        for number, line in enumerate(_whole_lines(file, required=part == 1), 1):
            record = _record(line, file, number)
            if number == 1:
                if not isinstance(record, Head) or record.part != part or (first and record.id != first.id):
                    what = f"part {part} of this recording" if first else "the beginning of a recording"
                    raise ConfigError(f"{file}: this is not {what}")
                first = first or record
            if isinstance(record, Next):
                goes_on = record.part == part + 1
                break
            if number > 1 or part == 1:
                yield record
        if not goes_on:
            return
        part += 1


def _whole_lines(path: Path, *, required: bool) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            # The last line of a file that was cut has no end; nor have we.
            yield from (line for line in file if line.endswith(b"\n"))
    except FileNotFoundError as error:
        if required:
            raise ConfigError(f"{path}: {error.strerror}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _record(line: bytes, path: Path, number: int) -> Record:
    try:
        return _record_of(json.loads(line))
    except (KeyError, TypeError, ValueError, binascii.Error, RecursionError) as error:
        what = "is no recording" if number == 1 else "has what is no record of a recording"
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
            why = "this is no JSON"
        else:
            why = f"it has no {error}" if isinstance(error, KeyError) else repr(error)
        raise ConfigError(f"{path} {what}: line {number}: {why}") from None


def _record_of(fields: dict[str, Any]) -> Record:
    """Unknown fields are left out: a later program may have added some. Raises what Python raises."""
    kind = fields["kind"]
    if kind == "recording":
        if fields["format"] != FORMAT or fields["version"] != VERSION:
            raise ConfigError(
                f"a {fields['format']} of version {fields['version']}; this program reads {FORMAT} {VERSION}"
            )
        return Head(
            id=str(fields["id"]),
            part=int(fields["part"]),
            started=str(fields["started"]),
            redacted=tuple(map(str, fields["redacted"])),
        )
    if kind == "next":
        return Next(int(fields["part"]))
    at = float(fields["at"])
    if kind == "end":
        return End(at)
    link = int(fields["link"])
    if kind == "open":
        tls = fields["tls"]
        return Opened(link, at, Side(fields["side"]), str(fields["peer"]), None if tls is None else str(tls))
    if kind == "lost":
        return Lost(link, at, str(fields["why"]))
    if kind == "close":
        return Closed(link, at)
    sender, raw = Sender(fields["from"]), base64.b64decode(fields["raw"], validate=True)
    if kind == "bytes":
        return Bytes(link, at, sender, raw)
    if kind != "frame":
        raise ValueError(f"unknown kind {kind!r}")
    length = HEADER.unpack_from(raw.ljust(HEADER_BYTES, b"\0"))[0] >> 8
    if len(raw) != HEADER_BYTES + length:
        raise ValueError("its bytes are not one frame")
    headers = fields.get("headers")
    if headers is not None:
        headers = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers)
    return Frame(link, at, sender, raw, headers)


# --------------------------------------------------------------------- as a whole


@attrs.frozen(kw_only=True)
class RecordedLink:
    """One connection of a recording."""

    number: int
    side: Side
    peer: str
    tls: str | None
    opened_at: float
    closed_at: float | None
    """None if the recording ended first."""
    entries: tuple[Entry, ...]
    """Of both directions, in the order in which they have passed."""
    lost: str | None = None
    """Why not all of it is here, if it is not."""

    def bytes_of(self, sender: Sender) -> bytes:
        """All that this end has sent."""
        return b"".join(entry.raw for entry in self.entries if entry.sender is sender)


@attrs.frozen(kw_only=True)
class Recording:
    """A recording in memory, all of it."""

    head: Head
    links: tuple[RecordedLink, ...]
    """In the order in which they were opened."""
    complete: bool
    """Whether it was ended in good order, rather than cut."""

    def side(self, side: Side) -> tuple[RecordedLink, ...]:
        """The connections of callers, or those to upstreams."""
        return tuple(link for link in self.links if link.side is side)


def read(path: Path | str) -> Recording:
    """The whole recording that begins in this file. Raises `ConfigError`, as `records`."""
    return recording_of(records(path), str(path))


def recording_of(all_records: Iterable[Record], name: str = "the recording") -> Recording:
    """The same of records in order. Raises `ConfigError` if there is none, or one is of a link that was not opened."""
    head: Head | None = None
    opened: dict[int, Opened] = {}
    entries: dict[int, list[Entry]] = {}
    closed: dict[int, float] = {}
    lost: dict[int, str] = {}
    complete = False
    for record in all_records:
        match record:
            case Head():
                head = record
            case Opened():
                opened[record.link], entries[record.link] = record, []
            case Frame() | Bytes():
                if record.link not in entries:
                    raise ConfigError(f"{name}: a frame of link {record.link}, which was not opened")
                entries[record.link].append(record)
            case Lost(link, _, why):
                lost.setdefault(link, why)
            case Closed(link, at):
                closed[link] = at
            case End():
                complete = True
            case Next():
                pass
    if head is None:
        raise ConfigError(f"{name}: there is nothing in it, not even its first line")
    links = [
        RecordedLink(
            number=number,
            side=each.side,
            peer=each.peer,
            tls=each.tls,
            opened_at=each.at,
            closed_at=closed.get(number),
            entries=tuple(entries[number]),
            lost=lost.get(number),
        )
        for number, each in opened.items()
    ]
    return Recording(head=head, links=tuple(links), complete=complete)
