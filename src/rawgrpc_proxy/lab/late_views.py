"""Views of connections that are open already, as well as of those that come: a tap that may come and go at any time.

    views = LateViews(tell)
    for _ in current_late_taps().attach(views):
        await trio.lowlevel.checkpoint()

Of a connection that it joins, the session knows the headers of open calls, and the tables by which the next ones are
read; the splice of a call knows how far its messages are. So the view goes on as if it had been there, with this left
out: how long calls have lasted, the headers of responses that have begun, the message that was just passing, and what
waited for the socket. Calls that are not passed on (methods of the proxy's own) have no messages then, which is told.

A stream is told with the call that it carries (`Stream.call`): an upstream's has that of its caller, retries and hedges
as well. It is looked up when a stream begins, so nothing is kept for it.

Of a connection with many calls it takes long to tell of them all, so where they stand is noted at once, and they are
told some at a time (`LinkView.join_more`), with others having their turn between; one of which a frame comes is told
before that.
"""

from collections.abc import Iterator
from functools import partial

from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.grpc.messages import boundary_of
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.http2.position import Position, StreamPosition
from rawgrpc_proxy.lab.events import HeadersKind, Sender, Stream
from rawgrpc_proxy.lab.header_facts import MAX_METHOD, learn, text_of
from rawgrpc_proxy.lab.link_parts import FoundStream, OpenStream
from rawgrpc_proxy.lab.link_view import Find, LinkView
from rawgrpc_proxy.lab.readable import UNKNOWN
from rawgrpc_proxy.lab.views import Views
from rawgrpc_proxy.net.late_taps import Watchable, current_late_taps
from rawgrpc_proxy.net.tapped import Link, LinkTap
from rawgrpc_proxy.proxy.attempts import splice_of_attempt
from rawgrpc_proxy.proxy.splice import Splice, splice_of

_Passed = tuple[int, tuple[int, int, bytes] | None]
"""Of one direction of a splice: how many bytes, and the boundary of its messages, if that is known."""


class LateViews(Views):
    """`Views`, and a late tap: a `LinkView` for connections that are open already, too."""

    def join(self, link: Link, connection: Watchable, position: Position | None) -> LinkTap | None:
        """The view of this one."""
        tell = self._tell_of(link)
        if tell is None:
            return None
        view = LinkView(
            link,
            tell,
            clock=self._clock,
            payload_bytes=self._payload_bytes,
            call_of=partial(_call_of, link, connection),
        )
        at = self._clock()
        if position is None:
            view.open(at)
        else:
            view.join(position, dict(_open_streams(link, connection, position)), at)
        return view


def _open_streams(link: Link, connection: Watchable, position: Position) -> Iterator[tuple[int, Find]]:
    """Of each call that is open how to find out more, later: what it takes for that is noted now."""
    client_side = link.side is Side.UPSTREAM
    for where in position.streams:
        stream = connection.streams.get(where.id)
        if stream is None or (where.peer_ended if client_side else where.we_ended):
            continue  # its call is over, but for frames without a meaning
        splice = splice_of_attempt(stream) if client_side else splice_of(stream)
        call = _call_of_splice(splice) if client_side else f"{link.number}.{where.id}"
        passed = None if splice is None else _passed(splice)
        status = None if splice is None else splice.http_status
        yield where.id, partial(_found, where, stream.headers, call, passed, status, client_side)


def _found(
    where: StreamPosition,
    headers: Headers,
    call: str,
    passed: tuple[_Passed, _Passed] | None,
    http_status: bytes | None,
    client_side: bool,
    at: float,
) -> FoundStream:
    open_stream = OpenStream(_stream(where, headers, at, client_side=client_side))
    stream = open_stream.stream
    stream.call = call
    if http_status is not None and stream.response.headers:
        stream.http_status = int(http_status)
    known = _place(open_stream, where, passed, client_side=client_side)
    lost = [sender for sender in Sender if sender not in known and not stream.half(sender).closed]
    return FoundStream(open_stream, headers, lost)


def _call_of(link: Link, connection: Watchable, stream_id: int) -> str:
    """The caller's stream whose call this one carries; "" if there is none."""
    if link.side is Side.DOWNSTREAM:
        return f"{link.number}.{stream_id}"
    stream = connection.streams.get(stream_id)
    return _call_of_splice(None if stream is None else splice_of_attempt(stream))


def _call_of_splice(splice: Splice | None) -> str:
    if splice is None:
        return ""
    caller = current_late_taps().link_of(splice.downstream.connection)
    return "" if caller is None else f"{caller.number}.{splice.downstream.id}"


def _stream(where: StreamPosition, headers: Headers, at: float, *, client_side: bool) -> Stream:
    """What its session knows of it."""
    opened = Stream(where.id, at, text_of(headers, b":path", MAX_METHOD) or "", joined=True)
    learn(opened, Sender.CLIENT, HeadersKind.REQUEST, headers)
    opened.request.closed = where.we_ended if client_side else where.peer_ended
    if where.peer_began if client_side else where.we_began:
        opened.response.headers = True
        opened.response.encoding = UNKNOWN
    return opened


def _passed(splice: Splice) -> tuple[_Passed, _Passed]:
    """Of the request and of the response."""
    requests, responses = splice.request_messages, splice.response_messages
    return (
        (splice.request_bytes, None if requests is None else boundary_of(requests)),
        (splice.response_bytes, None if responses is None else boundary_of(responses)),
    )


def _place(
    open_stream: OpenStream,
    where: StreamPosition,
    passed: tuple[_Passed, _Passed] | None,
    *,
    client_side: bool,
) -> set[Sender]:
    """Have both halves go on where they were; answer those of which that is known."""
    stream, known = open_stream.stream, set()
    if not stream.response.headers:
        known.add(Sender.SERVER)
    if passed is None:
        return known
    sent = Sender.CLIENT if client_side else Sender.SERVER
    for sender, (size, boundary) in zip((Sender.CLIENT, Sender.SERVER), passed, strict=True):
        waiting = where.waiting_bytes if sender is sent else 0
        half = stream.half(sender)
        half.data_bytes = size - waiting
        if boundary is not None:
            half.messages, left, prefix = boundary
            open_stream.message(sender).join(waiting + left, prefix)
            known.add(sender)
    return known
