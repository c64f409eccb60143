"""A small HTTP/1.1 server on h11: what the admin listener speaks (RFC 9112).

It reads requests, bounded in size and in time, has `answer` answer each, and writes that: a body of bytes, or a
`Stream` that goes on. Connections are kept alive, and pipelined requests answered in their order. What it does not do:
TLS, HTTP/2, uploads (the content of a request is small), or know what is asked for.

The invariant: a connection costs a bounded amount of memory and one task, whatever its peer does, and what goes wrong
in it, on either side, ends it and no other. Where all places are taken, the connection that has waited for its
request for longest makes room, so that nobody can lock others out by saying nothing.
"""

import contextlib
import email.utils
import http
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import attrs
import h11
import trio

from rawgrpc_proxy.command.admin.messages import OnFault, Refused, Request, Response, Stream, text_response
from rawgrpc_proxy.net.listen import accept_on_each
from rawgrpc_proxy.observe.repeats import Repeats

_READ_BYTES = 4096
_LINGER_S = 1.0
_LINGER_BYTES = 256 * 1024
_TURNED_AWAY_AT_ONCE = 16
"""Connections that are told that there are too many. Those beyond are closed without a word."""
_SEND_BUFFER_BYTES = 64 * 1024
"""Of the system, for each connection. By itself it would keep megabytes for one who does not read."""
_ABSOLUTE = re.compile(r"https?://([^/?#]*)([^?#]*)(?:\?([^#]*))?", re.IGNORECASE)
_SHOWN_CHARACTERS = 200
_TROUBLE_INTERVAL_S = 60.0


@attrs.frozen(kw_only=True)
class Limits:
    """What one who asks may take, of time and room. It is a listener for few: a browser, Prometheus, a probe."""

    connections: int = 64
    """Open at a time. A browser opens six."""
    head_bytes: int = 16 * 1024
    """Of the request line and all fields; a read of 4 KiB more may be held. Cookies of localhost, whatever set them,
    are sent to every port of it."""
    target_bytes: int = 2048
    fields: int = 100
    body_bytes: int = 16 * 1024
    """Only rules of faults have any."""
    request_timeout_s: float = 10.0
    """From the first byte of a request to its last."""
    idle_timeout_s: float = 120.0
    """Without a request. More than the minute in which Prometheus asks again."""
    answer_timeout_s: float = 30.0
    """For whoever makes the answer."""
    send_timeout_s: float = 10.0
    """Until a whole answer, or a piece of one that goes on, is with the socket."""


Answer = Callable[[Request], Awaitable[Response]]
"""May raise `Refused`. Anything else that it raises is answered with 500, and told to `OnFault`."""


async def serve_http(
    listeners: Sequence[socket.socket],
    answer: Answer,
    *,
    on_fault: OnFault,
    fields: Mapping[str, str] | None = None,
    limits: Limits | None = None,
) -> None:
    """Serve until cancelled, which closes all connections at once; the listeners stay open.

    `fields` are those of every response that has none of the same name. Raises `OSError` if a listener does not listen.
    """
    async with trio.open_nursery() as nursery:
        server = _Server(answer, on_fault, fields or {}, limits or Limits(), nursery)
        await accept_on_each(listeners, server.accept, server.accept_failed)


class _Server:
    """Who is connected."""

    def __init__(
        self,
        answer: Answer,
        on_fault: OnFault,
        fields: Mapping[str, str],
        limits: Limits,
        nursery: trio.Nursery,
    ) -> None:
        self.answer = answer
        self.on_fault = on_fault
        self.fields = fields
        self.limits = limits
        self._nursery = nursery
        self._open: set[_Connection] = set()
        self._turned_away = 0
        self._repeats = Repeats(interval_s=_TROUBLE_INTERVAL_S, most=1)

    def accept_failed(self, error: OSError) -> None:
        """Tell that the system has no socket left for us, once a minute; it is tried ten times a second."""
        if self._repeats.left_out("", "", trio.current_time()) is not None:
            self.on_fault("cannot accept a connection", error)

    def accept(self, sock: socket.socket, peer: str) -> None:
        """Serve this one, if there is room or room can be made."""
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        connection = _Connection(self, sock, peer)
        if len(self._open) < self.limits.connections or self._make_room():
            self._open.add(connection)
            self._nursery.start_soon(self._serve, connection)
        elif self._turned_away < _TURNED_AWAY_AT_ONCE:
            self._turned_away += 1
            self._nursery.start_soon(self._turn_away, connection)
        else:
            connection.close()

    def _make_room(self) -> bool:
        waiting = [one for one in self._open if one.waits_since is not None]
        if not waiting:
            return False
        longest = min(waiting, key=lambda one: one.waits_since or 0.0)
        self._open.discard(longest)
        longest.scope.cancel()
        return True

    async def _serve(self, connection: "_Connection") -> None:
        try:
            await connection.run(connection.serve)
        finally:
            self._open.discard(connection)

    async def _turn_away(self, connection: "_Connection") -> None:
        most = self.limits.connections
        too_many = Refused(
            503, f"all {most} connections of this listener are in use; try again", **{"Retry-After": "1"}
        )
        try:
            await connection.run(partial(connection.refuse, too_many))
        finally:
            self._turned_away -= 1


class _Gone(Exception):
    """The peer is gone, or does not read; nothing can be said to it any more."""


class _Connection:
    """One connection, from its first request to its end."""

    def __init__(self, server: _Server, sock: socket.socket, peer: str) -> None:
        self._server = server
        self._limits = server.limits
        self._peer = peer
        sock.settimeout(0)
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=server.limits.head_bytes)
        self._method = ""
        """Of the request that is read or answered."""
        self._patience = trio.CancelScope()
        """Of the wait for the next request."""
        self.scope = trio.CancelScope()
        """Of all it does. Cancelled when it has to make room."""
        self.waits_since: float | None = trio.current_time()
        """None while a request is answered: then it makes no room for others."""

    def close(self) -> None:
        """Close the socket, without ceremony."""
        self._stream.socket.close()

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do this work, keep to ourselves what it raises, and close the socket."""
        try:
            with self.scope, contextlib.suppress(_Gone):
                await work()
        except Exception as error:  # noqa: BLE001  # one connection's fault is no other's
            self._server.on_fault(f"serving {self._peer} failed", error)
        finally:
            self.close()

    async def serve(self) -> None:
        """Answer requests until one side has enough."""
        while True:
            try:
                request = await self._next_request()
            except Refused as refusal:
                await self.refuse(refusal)
                return
            if request is None:
                return
            await self._respond(await self._answer(request))
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                await self._linger()
                return
            self._http.start_next_cycle()

    async def refuse(self, refusal: Refused) -> None:
        """Answer with this, and end: what comes next cannot be understood, or is not wanted."""
        self.waits_since = None
        response = refusal.response()
        await self._respond(attrs.evolve(response, fields={**response.fields, "Connection": "close"}))
        await self._linger()

    # ------------------------------------------------------------------ requests

    async def _next_request(self) -> Request | None:
        """Wait for a request. None if there is none, and nothing to say about it."""
        self._method = ""
        now = self.waits_since = trio.current_time()
        begun, _ = self._http.trailing_data
        patience = self._limits.request_timeout_s if begun else self._limits.idle_timeout_s
        with trio.CancelScope(deadline=now + patience) as self._patience:
            request = await self._read_request()
            self.waits_since = None
            return request
        begun, _ = self._http.trailing_data
        if not begun and not self._method:
            return None
        raise Refused(
            408, f"the request was not complete after {self._limits.request_timeout_s:g} s; send it at once"
        )

    async def _read_request(self) -> Request | None:
        head = await self._event()
        if not isinstance(head, h11.Request):
            return None
        self._method = head.method.decode("ascii")
        limits = self._limits
        if not head.http_version.startswith(b"1."):
            version = head.http_version.decode("ascii")
            raise Refused(505, f"this listener speaks HTTP/1.1, not HTTP/{version}; with curl, use --http1.1")
        if len(head.target) > limits.target_bytes:
            raise Refused(414, f"the target has {len(head.target)} bytes; {limits.target_bytes} are allowed")
        if len(head.headers) > limits.fields:
            raise Refused(431, f"there are {len(head.headers)} header fields; {limits.fields} are allowed")
        body = bytearray()
        while isinstance(event := await self._event(), h11.Data):
            body += event.data
            if len(body) > limits.body_bytes:
                raise Refused(413, f"more than {limits.body_bytes} bytes of content; no more are taken")
        return self._request(head, bytes(body))

    def _request(self, head: h11.Request, body: bytes) -> Request:
        fields: dict[str, str] = {}
        for name_bytes, value_bytes in head.headers:
            name, value = name_bytes.decode("ascii"), value_bytes.decode("latin-1")
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
        target, host = head.target.decode("ascii"), fields.get("host")
        if target.startswith("/"):
            path, _, query = target.partition("?")
        elif absolute := _ABSOLUTE.fullmatch(target):  # RFC 9112 §3.2.2: its authority counts, and not Host
            host, path, query = absolute[1], absolute[2] or "/", absolute[3] or ""
        else:
            raise Refused(400, f"the target {_shown(target)} is no path; ask for GET / for example")
        return Request(
            method=self._method,
            path=path,
            query=query,
            host=host,
            fields=fields,
            peer=self._peer,
            body=body,
        )

    async def _event(self) -> h11.Event:
        """Wait for what comes next. Raises `Refused` if it cannot be read."""
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise Refused(error.error_status_hint or 400, self._why_unreadable(error)) from error
            if isinstance(event, h11.Event):
                return event
            await self._read()

    async def _read(self) -> None:
        if self._http.they_are_waiting_for_100_continue:
            await self._send(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
        try:
            data = await self._stream.receive_some(_READ_BYTES)
        except trio.BrokenResourceError as error:
            raise _Gone from error
        if data and not self._method and not self._http.trailing_data[0]:
            soonest = trio.current_time() + self._limits.request_timeout_s
            self._patience.deadline = soonest  # the first bytes of a request: from here on it has to be quick
        self._http.receive_data(data)

    def _why_unreadable(self, error: h11.RemoteProtocolError) -> str:
        if error.error_status_hint == http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            return f"the request line and header fields are longer than {self._limits.head_bytes} bytes"
        return f"this is no HTTP/1.1 request that can be read: {_shown(str(error))}"

    # ------------------------------------------------------------------ responses

    async def _answer(self, request: Request) -> Response:
        what = f"{_shown(request.method)} {_shown(request.path)}"
        try:
            with trio.fail_after(self._limits.answer_timeout_s):
                return await self._server.answer(request)
        except Refused as refusal:
            return refusal.response()
        except trio.TooSlowError:
            words = f"no answer to {what} after {self._limits.answer_timeout_s:g} s; it was given up"
            return text_response(words, status=504)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is this request's
            self._server.on_fault(f"answering {what} failed", error)
            return text_response("this failed on our side; the log has the traceback", status=500)

    async def _respond(self, response: Response) -> None:
        body = response.body
        try:
            head = self._head(response)
            if self._method == "HEAD":
                await self._send(head + self._http.send(h11.EndOfMessage()))
            elif isinstance(body, bytes):
                content = self._http.send(h11.Data(data=body)) if body else b""
                await self._send(head + content + self._http.send(h11.EndOfMessage()))
            else:
                await self._send(head)
                await self._run(body)
        finally:
            if not isinstance(body, bytes):
                body.close()

    def _head(self, response: Response) -> bytes:
        names = {name.lower() for name in response.fields}
        fields = [("Date", email.utils.formatdate(usegmt=True))]
        fields += [field for field in self._server.fields.items() if field[0].lower() not in names]
        fields += response.fields.items()
        if isinstance(response.body, bytes) and response.status != http.HTTPStatus.NOT_MODIFIED:
            fields.append(("Content-Length", str(len(response.body))))
        return self._http.send(
            h11.Response(
                status_code=response.status,
                headers=fields,
                reason=http.HTTPStatus(response.status).phrase.encode("ascii"),
            )
        )

    async def _run(self, body: Stream) -> None:
        """Send what goes on for as long as the peer is there."""

        async def send(data: bytes) -> None:
            await self._send(self._http.send(h11.Data(data=data)))

        async def mind_the_peer() -> None:
            data = b""
            with contextlib.suppress(trio.BrokenResourceError):
                data = await self._stream.receive_some(_READ_BYTES)
            if not data:
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(mind_the_peer)
            with contextlib.suppress(_Gone):
                await body.run(send)
                await self._send(self._http.send(h11.EndOfMessage()))
            nursery.cancel_scope.cancel()
        raise _Gone

    async def _send(self, data: bytes) -> None:
        """Write all of it, in the time that there is. Raises `_Gone`."""
        with trio.move_on_after(self._limits.send_timeout_s):
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise _Gone from error
            return
        raise _Gone

    async def _linger(self) -> None:
        """Say that no more comes, and throw away what still does.

        A socket that is closed with bytes unread is reset, and the peer may lose what was written to it last.
        """
        self.waits_since = trio.current_time()
        with trio.move_on_after(_LINGER_S), contextlib.suppress(trio.BrokenResourceError):
            await self._stream.send_eof()
            left = _LINGER_BYTES
            while left > 0 and (data := await self._stream.receive_some(_READ_BYTES)):
                left -= len(data)


def _shown(text: str) -> str:
    """What a peer has sent, for people: bounded, and nothing that a terminal would act on."""
    return ascii(text[:_SHOWN_CHARACTERS])[1:-1]
