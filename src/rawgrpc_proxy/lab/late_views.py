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
"""

from collections.abc import Iterator
from functools import partial

from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.grpc.messages import boundary_of
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.http2.position import Position, StreamPosition
from rawgrpc_proxy.lab.events import HeadersKind, Sender, Stream, Unreadable
from rawgrpc_proxy.lab.header_facts import MAX_METHOD, learn, text_of
from rawgrpc_proxy.lab.link_parts import OpenStream
from rawgrpc_proxy.lab.link_view import LinkView, Tell
from rawgrpc_proxy.lab.readable import UNKNOWN
from rawgrpc_proxy.lab.views import Views
from rawgrpc_proxy.net.late_taps import Watchable, current_late_taps
from rawgrpc_proxy.net.stream import Stream as NetStream
from rawgrpc_proxy.net.tapped import Link, LinkTap
from rawgrpc_proxy.proxy.attempts import splice_of_attempt
from rawgrpc_proxy.proxy.splice import Splice, splice_of

_WHY_NOT = "the call was open before, and it is not known where its messages begin"


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
            view.join(position, self._open_streams(link, connection, position, at, tell), at)
        return view

    def _open_streams(
        self, link: Link, connection: Watchable, position: Position, at: float, tell: Tell
    ) -> Iterator[tuple[OpenStream, Headers]]:
        client_side = link.side is Side.UPSTREAM
        for where in position.streams:
            stream = connection.streams.get(where.id)
            if stream is None or (where.peer_ended if client_side else where.we_ended):
                continue  # its call is over, but for frames without a meaning
            opened = _stream(stream, where, at)
            opened.call = _call_of(link, connection, where.id)
            splice = splice_of_attempt(stream) if client_side else splice_of(stream)
            open_stream = OpenStream(opened)
            known = _place(open_stream, where, splice, client_side=client_side)
            yield open_stream, stream.headers
            for sender in Sender:
                if sender not in known and not opened.half(sender).closed:
                    opened.half(sender).is_grpc = False
                    tell(Unreadable(link, at, sender, where.id, "messages", _WHY_NOT))


def _call_of(link: Link, connection: Watchable, stream_id: int) -> str:
    """The caller's stream whose call this one carries; "" if there is none."""
    if link.side is Side.DOWNSTREAM:
        return f"{link.number}.{stream_id}"
    stream = connection.streams.get(stream_id)
    splice = None if stream is None else splice_of_attempt(stream)
    if splice is None:
        return ""
    caller = current_late_taps().link_of(splice.downstream.connection)
    return "" if caller is None else f"{caller.number}.{splice.downstream.id}"


def _stream(stream: NetStream, where: StreamPosition, at: float) -> Stream:
    """What its session knows of it."""
    client_side = stream.connection.session.client_side
    opened = Stream(stream.id, at, text_of(stream.headers, b":path", MAX_METHOD) or "", joined=True)
    learn(opened, Sender.CLIENT, HeadersKind.REQUEST, stream.headers)
    opened.request.closed = where.we_ended if client_side else where.peer_ended
    if where.peer_began if client_side else where.we_began:
        opened.response.headers = True
        opened.response.encoding = UNKNOWN
    return opened


def _place(
    open_stream: OpenStream, where: StreamPosition, splice: Splice | None, *, client_side: bool
) -> set[Sender]:
    """Have both halves go on where they are; answer those of which that is known."""
    stream, known = open_stream.stream, set()
    if not stream.response.headers:
        known.add(Sender.SERVER)
    if splice is None:
        return known
    if splice.http_status is not None and stream.response.headers:
        stream.http_status = int(splice.http_status)
    sent = Sender.CLIENT if client_side else Sender.SERVER
    for sender, messages, size in (
        (Sender.CLIENT, splice.request_messages, splice.request_bytes),
        (Sender.SERVER, splice.response_messages, splice.response_bytes),
    ):
        waiting = where.waiting_bytes if sender is sent else 0
        half = stream.half(sender)
        half.data_bytes = size - waiting
        if messages is not None and (boundary := boundary_of(messages)) is not None:
            half.messages, left, prefix = boundary
            open_stream.message(sender).join(waiting + left, prefix)
            known.add(sender)
    return known
