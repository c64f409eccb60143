"""Rules for calls: header lists, messages, how a stream ends."""

from rawgrpc_proxy.config import DEFAULT_WINDOW
from rawgrpc_proxy.http2.frames import Setting
from rawgrpc_proxy.lab.events import (
    HalfClosed,
    HeadersKind,
    HeadersSeen,
    MessageBegun,
    Sender,
    Stream,
    StreamBegun,
    StreamEnded,
)
from rawgrpc_proxy.lab.lint.fields import (
    first,
    header_list_bytes,
    request_problems,
    response_problems,
    show,
    trailers_problems,
    values,
)
from rawgrpc_proxy.lab.lint.frame_rules import is_idle, reset_after_response
from rawgrpc_proxy.lab.lint.state import Flow, LinkState, StreamState

STALL_S = 5.0
"""Since when a window is shut, for "never opened"."""
AFTER_GOAWAY_S = 5.0
"""A stream that begins so long behind GOAWAY has not crossed it."""

_MAX_ENCODINGS = 16
_MAX_ENCODING_BYTES = 32
_IDENTITY = b"identity"


def stream_begun(state: LinkState, event: StreamBegun) -> None:
    """A client has opened a stream."""
    number, at = event.stream.id, event.at
    if event.stream.joined:
        state.streams[number] = _joined(event.stream)
        return
    state.streams[number] = StreamState(event.stream, Flow(at), Flow(at))
    state.last_stream = max(number, state.last_stream)
    if number % 2 == 0:
        state.say("stream-id-even", Sender.CLIENT, at, number, f"a client opens stream {number}")
    most = state.server.most(Setting.MAX_CONCURRENT_STREAMS)
    if len(state.streams) > most:
        seen = f"{len(state.streams)} streams are open, SETTINGS_MAX_CONCURRENT_STREAMS is {most:.0f}"
        state.say("too-many-streams", Sender.CLIENT, at, number, seen)
    goaway_at = state.server.goaway_at
    if goaway_at is not None and at - goaway_at > AFTER_GOAWAY_S:
        seen = f"stream {number} begins {at - goaway_at:.0f} s behind GOAWAY"
        state.say("stream-after-goaway", Sender.CLIENT, at, number, seen)


def _joined(stream: Stream) -> StreamState:
    """One that was open before. Its request's headers are told, but not as they were on the wire."""
    return StreamState(stream, Flow(None, joined=True), Flow(None, joined=stream.response.headers))


def headers_seen(state: LinkState, event: HeadersSeen) -> None:
    """A header list."""
    number = event.stream_id
    if event.kind is HeadersKind.REQUEST and event.stream is not None and event.stream.joined:
        return
    size, limit = (
        header_list_bytes(event.headers),
        state.other(event.sender).most(Setting.MAX_HEADER_LIST_SIZE),
    )
    if size > limit:
        _say(
            state,
            event,
            "header-list-too-large",
            f"{size} bytes; SETTINGS_MAX_HEADER_LIST_SIZE is {limit:.0f}",
        )
    stream = state.streams.get(number)
    match event.kind:
        case HeadersKind.LATE:
            _late(state, event)
        case HeadersKind.REQUEST if stream is not None:
            stream.accepts = _accepted(event)
            stream.client.has_headers = True
            stream.client.declared = _content_length(event)
            for rule, seen in request_problems(event.headers):
                _say(state, event, rule, seen)
        case HeadersKind.RESPONSE if stream is not None:
            _response(state, event, stream)
        case HeadersKind.TRAILERS if stream is not None:
            _trailers(state, event, stream)
        case _:
            pass


def _response(state: LinkState, event: HeadersSeen, stream: StreamState) -> None:
    headers, flow = event.headers, stream.server
    flow.has_headers = True
    flow.declared = _content_length(event)
    flow.has_status = first(headers, b"grpc-status") is not None
    problems = list(response_problems(headers, is_all=event.end_stream))
    for rule, seen in problems:
        _say(state, event, rule, seen)
    flow.judged_as_grpc = not any(rule in _NOT_GRPC for rule, _ in problems)
    encoding = first(headers, b"grpc-encoding") or _IDENTITY
    if stream.accepts is not None and encoding not in stream.accepts:
        takes = ", ".join(sorted(each.decode("latin-1") for each in stream.accepts))
        _say(
            state,
            event,
            "encoding-not-accepted",
            f"grpc-encoding is {show(encoding)}, the caller takes {takes}",
        )


_NOT_GRPC = ("http-status", "content-type-missing", "content-type-invalid", "pseudo-header-missing")


def _trailers(state: LinkState, event: HeadersSeen, stream: StreamState) -> None:
    sender, flow = event.sender, stream.flow(event.sender)
    if not event.end_stream:
        if not flow.mid_stream:
            _say(state, event, "headers-mid-stream", "HEADERS without END_STREAM behind the first ones")
        flow.mid_stream = True
        return
    is_response = sender is Sender.SERVER
    if not is_response:
        _say(state, event, "request-trailers", f"trailers with {len(event.headers)} entries")
    for rule, seen in trailers_problems(event.headers, are_of_response=is_response):
        _say(state, event, rule, seen)
    has_status = first(event.headers, b"grpc-status") is not None
    if is_response and has_status and flow.has_status:
        _say(state, event, "grpc-status-duplicate", "grpc-status is in the headers and in the trailers")
    flow.has_status = flow.has_status or has_status


def _late(state: LinkState, event: HeadersSeen) -> None:
    """HEADERS that are not where they belong."""
    number, sender = event.stream_id, event.sender
    if number in state.streams:
        _say(state, event, "frame-on-closed-stream", "HEADERS behind END_STREAM")
    elif sender is Sender.SERVER and is_idle(state, number):
        _say(state, event, "frame-on-idle-stream", f"HEADERS on stream {number}, which is not open yet")
    elif number in state.closed:
        # It is a request for a stream that was there, or trailers that have crossed a reset.
        if sender in state.closed[number][1]:
            _say(state, event, "frame-on-closed-stream", "HEADERS behind the end of the stream")
    elif sender is Sender.CLIENT and first(event.headers, b":method") is not None:
        _say(
            state,
            event,
            "stream-id-not-increasing",
            f"stream {number} begins behind stream {state.last_stream}",
        )


def message_begun(state: LinkState, event: MessageBegun) -> None:
    """The prefix of a message."""
    number, sender = event.stream.id, event.sender
    stream = state.streams.get(number)
    if stream is None or stream.flow(sender).mid_stream or stream.flow(sender).joined:
        return
    if event.flag > 1:
        seen = f"the flag of message {event.index} is {event.flag}, its length {event.length}"
        state.say("message-flag", sender, event.at, number, seen)
    elif event.flag and stream.flow(sender).has_headers and event.stream.half(sender).encoding == "identity":
        seen = f"message {event.index} is compressed, and there is no grpc-encoding"
        state.say("encoding-missing", sender, event.at, number, seen)


def half_closed(state: LinkState, event: HalfClosed) -> None:
    """END_STREAM."""
    number, sender = event.stream.id, event.sender
    stream = state.streams.get(number)
    if stream is None or stream.flow(sender).joined:
        return
    flow, half = stream.flow(sender), event.stream.half(sender)
    if event.missing_bytes and not flow.mid_stream:
        what = (
            "its prefix"
            if event.missing_bytes < 0
            else f"a message, of which {event.missing_bytes} bytes are missing"
        )
        state.say("message-truncated", sender, event.at, number, f"END_STREAM in {what}")
    if flow.declared is not None and flow.declared != half.data_bytes:
        seen = f"content-length is {flow.declared}, the body has {half.data_bytes} bytes"
        state.say("content-length-mismatch", sender, event.at, number, seen)
    if (
        sender is Sender.SERVER
        and flow.judged_as_grpc
        and not (flow.has_status or flow.mid_stream or state.server.headers_lost)
    ):
        state.say("grpc-status-missing", sender, event.at, number, "the response ends without grpc-status")


def stream_ended(state: LinkState, event: StreamEnded) -> None:
    """The stream is over: forget it, but for a little."""
    stream, number = event.stream, event.stream.id
    known = state.streams.get(number)
    complete = stream.response.closed
    if known is not None and not complete:
        for sender in Sender:
            _stalled(state, known, sender, event.at)
    if event.reset_by is Sender.SERVER and complete and event.reset_code is not None:
        reset_after_response(state, event.at, number, event.reset_code)
    ended_by = {sender for sender in Sender if stream.half(sender).closed or event.reset_by is sender}
    state.close_stream(number, frozenset(ended_by), complete=complete)


def _stalled(state: LinkState, stream: StreamState, sender: Sender, at: float) -> None:
    """Whether this end of a call that was given up was not allowed to send."""
    half, flow, end = stream.stream.half(sender), stream.flow(sender), state.end(sender)
    if half.closed or not half.headers:
        return
    other = state.other(sender)
    whose = ""
    if flow.used >= other.least(Setting.INITIAL_WINDOW_SIZE) and _since(flow.shut_at, at):
        whose = "the stream's"
    elif end.used >= DEFAULT_WINDOW and _since(end.shut_at, at):
        whose = "the connection's"
    if whose:
        number = stream.stream.id
        seen = f"{whose} window was shut for more than {STALL_S:.0f} s when the stream ended"
        state.say("window-never-opened", other.sender, at, number, seen)


def _since(moment: float | None, at: float) -> bool:
    return moment is not None and at - moment >= STALL_S


def _accepted(event: HeadersSeen) -> frozenset[bytes]:
    """What the caller takes: what it says, what it sends itself, and what is not compressed."""
    names = [_IDENTITY, *values(event.headers, b"grpc-encoding")[:1]]
    for value in values(event.headers, b"grpc-accept-encoding"):
        names += [name.strip() for name in value.split(b",", _MAX_ENCODINGS)]
    return frozenset(name[:_MAX_ENCODING_BYTES] for name in names[:_MAX_ENCODINGS])


def _content_length(event: HeadersSeen) -> int | None:
    text = first(event.headers, b"content-length")
    return int(text) if text is not None and text.isdigit() and len(text) < 19 else None


def _say(state: LinkState, event: HeadersSeen, rule: str, seen: str) -> None:
    state.say(rule, event.sender, event.at, event.stream_id, seen)
