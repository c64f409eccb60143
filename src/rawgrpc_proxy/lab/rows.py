"""What `rawgrpc-proxy tap` tells: events become rows, plain facts that are JSON as they are (docs/tap.md).

    rows = Rows(write, mode="messages")         # write(row) gets each
    server = Server(..., tap=Views(rows.tell))

What it does not do: make lines of rows (`row_text.py`). The invariant: memory is bounded by the open calls. Of a
call of which it depends on its end whether it is shown no more than `MAX_HELD` rows are held, the rest is counted.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import attrs

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import ConfigError, Side
from rawgrpc_proxy.grpc.status import decode_grpc_message
from rawgrpc_proxy.http2 import frames as h2
from rawgrpc_proxy.lab.call_status import status_seen
from rawgrpc_proxy.lab.events import (
    Event,
    FrameSeen,
    HeadersKind,
    HeadersSeen,
    LinkClosed,
    LinkOpened,
    MessageSeen,
    Sender,
    Stream,
    StreamEnded,
    Unreadable,
    who,
)
from rawgrpc_proxy.lab.filters import Facts, Filter
from rawgrpc_proxy.lab.frame_details import flag_names, frame_name
from rawgrpc_proxy.lab.readable import Decoder, said_in
from rawgrpc_proxy.lab.redact import Redactor
from rawgrpc_proxy.lab.row_parts import about, code_name, from_one_end, kept_payload, message_of, said
from rawgrpc_proxy.net.tapped import Link
from rawgrpc_proxy.observe.record import CallRecord

Row = dict[str, Any]
Mode = Literal["frames", "messages"]
MAX_HELD = 200
_MAX_RECORDS = 1024
_WITH_HEADERS = (h2.HEADERS, h2.CONTINUATION, h2.PUSH_PROMISE)


@attrs.define(eq=False)
class _Choice:
    """Whether a call is shown: all its streams, where those are known to be one call's."""

    facts: Facts
    is_decided: bool
    """Whether its rows are shown as they come."""
    is_wanted: bool
    held: list[Row] = attrs.field(factory=list)
    left_out: int = 0

    @property
    def is_out(self) -> bool:
        """Whether it is certain that it is not shown."""
        return self.is_decided and not self.is_wanted


@attrs.define(eq=False)
class _Call:
    stream: Stream
    choice: _Choice
    decides: bool
    """Whether its end decides; else that of another stream does."""


class Rows:
    """Turns events into rows; see above. `decode` reads messages, where somebody wants that.

    With `keeps_payloads` rows of messages have them, for `decoded` to be read elsewhere.

    With `hears_records` somebody gives `call_ended` what a server observer hears, and calls `settle` now and then: the
    ends of callers' streams then say who has made the status.
    """

    def __init__(
        self,
        write: Callable[[Row], None],
        *,
        mode: Mode,
        filters: Sequence[Filter] = (),
        redactor: Redactor | None = None,
        decode: Decoder | None = None,
        keeps_payloads: bool = False,
        hears_records: bool = False,
    ) -> None:
        if mode not in get_args(Mode):
            raise ConfigError(f"{mode!r} is no mode; there are: {', '.join(get_args(Mode))}")
        self._write = write
        self._frames = mode == "frames"
        self._filters = filters
        self._redactor = redactor or Redactor()
        self.decode = decode
        """May be set while it is in use."""
        self._keeps_payloads = keeps_payloads
        self._calls: dict[tuple[int, int], _Call] = {}
        self._choices: dict[str, _Choice] = {}
        """Of callers' streams, by `Stream.call`."""
        self._pending: tuple[FrameSeen, Row] | None = None
        """A frame with headers, until they are told as well."""
        self._lost: set[tuple[int, Sender]] = set()
        """Whose headers cannot be read."""
        self._hears_records = hears_records
        self._records: OrderedDict[tuple[str, int], CallRecord] = OrderedDict()
        """Of calls whose last frame was not told yet."""
        self._ends: OrderedDict[tuple[str, int], StreamEnded] = OrderedDict()
        """Of calls of which the server has not spoken yet."""

    def call_ended(self, record: CallRecord) -> None:
        """What the server says of a call, with "extras": before or behind its last frame, but not much."""
        if record.extras is None:
            return
        key = record.peer, record.extras.stream_id
        ended = self._ends.pop(key, None)
        if ended is not None:
            self._end(ended, record)
        else:
            self._records[key] = record
            if len(self._records) > _MAX_RECORDS:
                self._records.popitem(last=False)

    def settle(self, before: float) -> None:
        """Of calls that have ended before this time the server will say nothing more."""
        while self._ends:
            key, ended = next(iter(self._ends.items()))
            if ended.at >= before:
                return
            del self._ends[key]
            self._end(ended, None)

    def tell(self, event: Event) -> None:
        """A sink."""
        match event:
            case FrameSeen():
                if self._frames:
                    self._frame(event)
            case HeadersSeen():
                self._headers(event)
            case MessageSeen():
                if not self._frames:
                    self._message(event)
            case StreamEnded():
                self._flush()
                self._ended(event)
            case Unreadable():
                self._unreadable(event)
            case LinkOpened() if self._frames:
                joined = {"joined": True} if event.joined else {}
                self._emit(
                    event.link, None, about(event.link, event.at, "open", tls=event.link.tls, **joined)
                )
            case LinkClosed():
                self._lost -= {(event.link.number, sender) for sender in Sender}
                if self._frames:
                    self._flush()
                    self._emit(event.link, None, about(event.link, event.at, "close"))
            case _:
                pass

    # ----------------------------------------------------------------- frames

    def _frame(self, event: FrameSeen) -> None:
        self._flush()
        row = from_one_end(event.link, event.at, "frame", event.sender)
        row["stream"] = event.stream_id
        row |= {"frame": frame_name(event.type), "flags": flag_names(event.type, event.flags)}
        row["length"] = event.length
        row |= said(event)
        ends_block = event.type in _WITH_HEADERS and event.flags & h2.END_HEADERS
        if ends_block and (event.link.number, event.sender) not in self._lost:
            self._pending = event, row
        else:
            self._emit(event.link, event.stream_id, row)

    def _flush(self) -> None:
        if self._pending is not None:
            event, row = self._pending
            self._pending = None
            self._emit(event.link, event.stream_id, row)

    def _headers(self, event: HeadersSeen) -> None:
        call = None if event.stream is None else self._begin(event, event.stream)
        if call is not None and call.choice.is_out:
            self._pending = None
        elif self._pending is not None:
            self._pending[1].update(kind=event.kind.value, headers=self._shown(event))
            self._flush()
        elif (
            call is not None
            and event.kind is HeadersKind.REQUEST
            and (call.stream.joined or not self._frames)
        ):
            row = from_one_end(event.link, event.at, "begin", event.sender)
            row |= {"stream": event.stream_id, "headers": self._shown(event)}
            if call.stream.joined:
                row["joined"] = True
            self._emit(event.link, event.stream_id, row)

    def _shown(self, event: HeadersSeen) -> list[list[str]]:
        return [list(pair) for pair in self._redactor.shown(event.headers)]

    def _begin(self, event: HeadersSeen, stream: Stream) -> _Call:
        key = event.link.number, stream.id
        call = self._calls.get(key)
        if call is None:
            headers = event.headers if event.kind is HeadersKind.REQUEST else ()
            facts = Facts(method=stream.method, peer=event.link.peer, headers=headers)
            maybe = [each for each in self._filters if each.may_match(facts)]
            at_once = not self._filters or any(not each.needs_status for each in maybe)
            choice = _Choice(facts, is_decided=at_once or not maybe, is_wanted=at_once)
            decides = True
            if event.link.side is Side.DOWNSTREAM:
                if stream.call:
                    self._choices[stream.call] = choice
            elif not choice.is_wanted and stream.call in self._choices:
                choice, decides = self._choices[stream.call], False
            call = self._calls[key] = _Call(stream, choice, decides)
        return call

    # --------------------------------------------------------------- messages

    def _message(self, event: MessageSeen) -> None:
        call = self._calls.get((event.link.number, event.stream.id))
        if call is not None and call.choice.is_out:
            return
        row = from_one_end(event.link, event.at, "message", event.sender)
        row |= {"stream": event.stream.id, "index": event.index, "length": event.length}
        if event.flag:
            encoding = event.stream.half(event.sender).encoding
            row["compressed"] = encoding if event.flag == 1 else f"flag {event.flag}"
        if self.decode is not None and event.payload is not None:
            row |= said_in(message_of(event, event.payload), self.decode)
        elif self._keeps_payloads and event.payload is not None:
            row |= kept_payload(event, event.payload)
        self._emit(event.link, event.stream.id, row)

    # -------------------------------------------------------------------- end

    def _ended(self, event: StreamEnded) -> None:
        key = event.link.peer, event.stream.id
        if not self._hears_records or event.link.side is not Side.DOWNSTREAM:
            self._end(event, None)
        elif key in self._records:
            self._end(event, self._records.pop(key))
        else:
            if key in self._ends:  # a client with the same address and port, and its same stream
                self._end(self._ends.pop(key), None)
            self._ends[key] = event

    def _end(self, event: StreamEnded, record: CallRecord | None) -> None:
        stream = event.stream
        status = (
            status_seen(stream, event.sender, event.frame_type, event.error_code)
            if record is None
            else record.status
        )
        row = about(event.link, event.at, "end")
        row |= {
            "stream": stream.id,
            "status": status.name,
            "detail": decode_grpc_message(stream.grpc_message.encode()),
        }
        row["ended_by"] = "link" if event.sender is None else who(event.link, event.sender)
        if event.frame_type is not None:
            row["frame"] = frame_name(event.frame_type)
        if event.error_code is not None:
            row["error_code"] = code_name(event.error_code)
        if event.reset_by is not None and event.frame_type != h2.RST_STREAM and event.reset_code is not None:
            row |= {"reset_by": who(event.link, event.reset_by), "reset_code": code_name(event.reset_code)}
        if record is not None:
            row |= {"origin": record.origin, "cause": record.cause, "upstream": record.upstream}
            row["detail"] = row["detail"] or record.detail
        if not stream.joined:
            row["duration_ms"] = round((event.at - stream.began_at) * 1000, 3)
        row |= {
            "request_messages": stream.request.messages,
            "response_messages": stream.response.messages,
            "request_bytes": stream.request.data_bytes,
            "response_bytes": stream.response.data_bytes,
        }
        if stream.http_status not in (None, 200):
            row["http_status"] = stream.http_status
        self._decide(event, status)
        self._emit(event.link, stream.id, row)
        self._calls.pop((event.link.number, stream.id), None)
        if event.link.side is Side.DOWNSTREAM:
            self._choices.pop(stream.call, None)

    def _decide(self, event: StreamEnded, status: Status) -> None:
        call = self._calls.get((event.link.number, event.stream.id))
        if call is None or call.choice.is_decided or not call.decides:
            return
        choice = call.choice
        choice.is_decided = True
        facts = attrs.evolve(choice.facts, status=int(status))
        choice.is_wanted = any(each.matches(facts) for each in self._filters)
        if choice.is_wanted:
            for row in choice.held:
                self._write(row)
            if choice.left_out:
                row = about(event.link, event.at, "left_out")
                row |= {"stream": event.stream.id, "method": event.stream.method, "rows": choice.left_out}
                self._write(row)
        choice.held.clear()

    def _unreadable(self, event: Unreadable) -> None:
        self._flush()
        if event.what == "messages" and self._frames:
            return
        if event.what in ("headers", "link"):
            self._lost.add((event.link.number, event.sender))
        row = from_one_end(event.link, event.at, "unreadable", event.sender)
        row |= {"stream": event.stream_id, "what": event.what, "reason": event.reason}
        self._emit(event.link, event.stream_id, row)
        if event.what == "stream":
            self._calls.pop((event.link.number, event.stream_id), None)

    def _emit(self, link: Link, stream_id: int | None, row: Row) -> None:
        """Show this row, or hold it, or leave it out."""
        call = None if stream_id is None else self._calls.get((link.number, stream_id))
        if call is None:
            facts = Facts(method="", peer=link.peer)
            if not self._filters or any(
                not each.looks_at_calls and each.may_match(facts) for each in self._filters
            ):
                self._write(row)
            return
        row["method"] = call.stream.method
        if call.stream.call:
            row["call"] = call.stream.call
        choice = call.choice
        if not choice.is_decided:
            if len(choice.held) < MAX_HELD:
                choice.held.append(row)
            else:
                choice.left_out += 1
        elif choice.is_wanted:
            self._write(row)
