"""What came of each call of a connection, and how it differs from what came of it another time.

Bytes of a link in, `CallSeen` out, in memory with all their messages: for recordings, and for what is played from them.
"""

import math
from collections.abc import Iterable, Sequence

import attrs

from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.http2.frames import RST_STREAM
from rawgrpc_proxy.lab.events import (
    Event,
    HalfClosed,
    HeadersKind,
    HeadersSeen,
    MessageSeen,
    Sender,
    Stream,
    StreamBegun,
    StreamEnded,
)
from rawgrpc_proxy.lab.link_view import LinkView
from rawgrpc_proxy.lab.recording import Fields
from rawgrpc_proxy.net.tapped import Link

_ALL = 1 << 32
"""Bytes of a message."""

Passed = tuple[float, Sender, bytes]
"""When, by whom, and what."""


@attrs.frozen
class Message:
    """A message as it was on the wire."""

    sender: Sender
    flag: int
    """1 if it is compressed."""
    payload: bytes


@attrs.frozen
class Header:
    """A header list."""

    sender: Sender
    kind: HeadersKind
    fields: Fields
    ends: bool
    """With END_STREAM."""


@attrs.frozen
class HalfEnd:
    """END_STREAM."""

    sender: Sender


Step = Message | Header | HalfEnd


@attrs.define(eq=False)
class CallSeen:
    """One call."""

    stream: Stream
    steps: list[Step] = attrs.field(factory=list)
    """What has passed, in order."""
    ended_at: float | None = None
    reset_code: int | None = None
    """If RST_STREAM has ended it, by either side."""
    reset_by: Sender | None = None

    @property
    def method(self) -> str:
        """`/package.Service/Method`."""
        return self.stream.method

    def messages(self, sender: Sender) -> list[Message]:
        """Those of the request or the response."""
        return [step for step in self.steps if isinstance(step, Message) and step.sender is sender]

    @property
    def seconds(self) -> float:
        """From its first header to its end; infinite if it has none."""
        return math.inf if self.ended_at is None else self.ended_at - self.stream.began_at

    @property
    def outcome(self) -> str:
        """How it ended, in a few words."""
        stream = self.stream
        if stream.grpc_status is not None:
            return f"grpc-status {stream.grpc_status}"
        if self.reset_code is not None:
            return f"RST_STREAM {self.reset_code}"
        if stream.http_status is not None and stream.http_status != 200:  # noqa: PLR2004  # HTTP's OK
            return f"HTTP {stream.http_status}"
        return "no status"


def calls_of(passed: Iterable[Passed]) -> list[CallSeen]:
    """The calls in what has passed on one connection, in the order in which they were begun."""
    calls: dict[Stream, CallSeen] = {}

    def tell(event: Event) -> None:
        match event:
            case StreamBegun():
                calls[event.stream] = CallSeen(event.stream)
            case HeadersSeen() if event.stream is not None:
                fields = tuple((name, value) for name, value in event.headers)
                calls[event.stream].steps.append(Header(event.sender, event.kind, fields, event.end_stream))
            case MessageSeen():
                calls[event.stream].steps.append(Message(event.sender, event.flag, event.payload or b""))
            case HalfClosed():
                calls[event.stream].steps.append(HalfEnd(event.sender))
            case StreamEnded():
                call = calls[event.stream]
                if event.frame_type is not None or event.stream.response.closed:
                    call.ended_at = event.at
                if event.frame_type == RST_STREAM:
                    call.reset_code, call.reset_by = event.error_code, event.sender
            case _:
                pass

    view = LinkView(Link(number=0, side=Side.DOWNSTREAM, peer="", tls=None), tell, payload_bytes=_ALL)
    at = 0.0
    for at, sender, data in passed:
        view.feed(sender, data, at)
    view.close(at)
    return list(calls.values())


def differences(before: CallSeen, now: CallSeen | None, *, slower_s: float = math.inf) -> list[str]:
    """In words, how the response differs: outcome, message, messages, and more time than before, beyond `slower_s`."""
    if now is None:
        return ["the call was not made"]
    found = []
    if before.outcome != now.outcome:
        found.append(f"{now.outcome} instead of {before.outcome}")
    elif before.stream.grpc_message != now.stream.grpc_message:
        found.append(f"grpc-message {now.stream.grpc_message!r} instead of {before.stream.grpc_message!r}")
    found += _of_messages(before.messages(Sender.SERVER), now.messages(Sender.SERVER))
    if before.ended_at is not None and now.seconds > before.seconds + slower_s:
        found.append(f"{now.seconds:.3f} s instead of {before.seconds:.3f} s")
    return found


def _of_messages(before: Sequence[Message], now: Sequence[Message]) -> list[str]:
    found = []
    if len(before) != len(now):
        found.append(f"{_counted(len(now))} instead of {len(before)}")
    for index, (old, new) in enumerate(zip(before, now, strict=False)):
        if old != new:
            lengths = f"{len(new.payload)} bytes instead of {len(old.payload)}"
            if len(old.payload) == len(new.payload):
                place = next(
                    (n for n, (a, b) in enumerate(zip(old.payload, new.payload, strict=True)) if a != b), None
                )
                lengths = "it is compressed, or is not" if place is None else f"the first at byte {place}"
            found.append(f"message {index} has other bytes ({lengths})")
            break  # the first one tells most; what is behind it follows from it, as a rule
    return found


def _counted(messages: int) -> str:
    return f"{messages} message{'' if messages == 1 else 's'}"
