"""`Exchange`: one call of a client on the wire, in bytes: its place, its stream, the request out, the response in.

    open ──a place, a stream──► messages, both ways ──trailers──► over
              ▲                       └──refused, nothing lost──┐
              └──────────────── once, elsewhere ────────────────┘

What it does not do: encode messages, or know what a method takes and answers (`calls.py`). The invariant: however a
call ends, `close` leaves nothing of it: no stream, no place, no timer.
"""

import math
from collections.abc import Awaitable, Callable

import trio

from rawgrpc_proxy.client.messages import ReceivedMessages
from rawgrpc_proxy.client.places import Place, with_room
from rawgrpc_proxy.client.request import Home, context_of, request_headers
from rawgrpc_proxy.client.response import RequestSender, ResponseInbox
from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.errors import DeadlineExceeded, RpcError, StreamReset
from rawgrpc_proxy.grpc.messages import encode_message
from rawgrpc_proxy.grpc.metadata import Metadata
from rawgrpc_proxy.http2.frames import UNLIMITED
from rawgrpc_proxy.http2.headers import FixedHeaders, Headers, size_of
from rawgrpc_proxy.net.stream import Stream
from rawgrpc_proxy.net.timers import Timer

_NONE = FixedHeaders()


class Exchange:
    """A call. `open` it, and `close` it whatever happens."""

    __slots__ = (
        "_aborted",
        "_complete",
        "_deadline",
        "_fields",
        "_home",
        "_inbox",
        "_is_second",
        "_kept",
        "_messages",
        "_place",
        "_reopening",
        "_request_ended",
        "_scope",
        "_sender",
        "_stream",
        "_timeout",
        "_timer",
        "address",
        "error",
        "method",
        "over",
        "status",
        "status_message",
    )

    def __init__(self, home: Home, method: str, fields: Headers, timeout: float | None) -> None:
        """`fields` are the call's metadata; `timeout` begins with `open`."""
        self._home = home
        self.method = method
        self._fields = fields
        self._timeout = timeout
        self._deadline = math.inf
        self._timer: Timer | None = None
        self._scope: trio.CancelScope | None = None
        """In which a place is waited for."""
        self._stream: Stream | None = None
        self._inbox: ResponseInbox | None = None
        self._sender: RequestSender | None = None
        self._kept: bytes | None = None
        """The request so far, as long as it can be sent a second time."""
        self._request_ended = False
        self._is_second = False
        self._reopening: trio.Event | None = None
        self._messages = ReceivedMessages(home.max_message_bytes)
        self._complete = False
        """All of the response has been received, and its status is OK."""
        self._aborted: RpcError | None = None
        """Why the call was ended from here."""
        self.over = False
        self.error: RpcError | None = None
        """How it has failed, if it has."""
        self.status: Status | None = None
        self.status_message = ""
        self.address: str | None = None
        self._place: Place | None = None
        """Hears how the call ended; it may be given back by then."""

    @property
    def headers(self) -> Metadata | None:
        """The response headers, once they are here."""
        inbox = self._inbox
        return None if inbox is None or inbox.headers is None else Metadata(inbox.headers)

    @property
    def trailers(self) -> Metadata | None:
        """The trailers, once they are here."""
        inbox = self._inbox
        if inbox is None or not inbox.ended:
            return None
        return Metadata(inbox.trailers_received or _NONE)

    @property
    def failure(self) -> RpcError | None:
        """Why the call has failed, be that read or not; None if it has not, as far as is known."""
        inbox = self._inbox
        if self.error is not None or inbox is None:
            return self.error or self._aborted
        return inbox.outcome() if inbox.ended else inbox.error

    @property
    def has_ended_well(self) -> bool:
        """Whether the whole response is here, be it read or not, and its status is OK."""
        return self._inbox is not None and self._inbox.ended and self.failure is None

    # ------------------------------------------------------------------ beginning

    async def open(self, request: bytes | None) -> None:
        """Wait for a place, and send the request headers, with the only message of the request if there is but one.

        Raises the `RpcError` if none can be had; `close` has been called then.
        """
        self._home.enter(self)
        try:
            self._kept = b"" if request is None else encode_message(request)
            self._request_ended = request is not None
            if self._timeout is not None:
                self._deadline = trio.current_time() + self._timeout
                if self._timeout <= 0:
                    raise self._too_late()
                self._timer = self._home.call_at(self._deadline, self._expire)
            self._start(await self._take_place(self._first_place))
        except BaseException as error:
            self._fail(error)
            raise

    async def _take_place(self, take: Callable[[], Awaitable[Place]]) -> Place:
        """A place with room, unless the call is aborted meanwhile."""
        place = None
        with trio.CancelScope() as self._scope:
            place = await with_room(await take())
        self._scope = None
        if self._aborted is not None:
            if place is not None:
                place.give_back()
            raise self._aborted
        assert place is not None  # nobody else cancels this scope
        return place

    async def _first_place(self) -> Place:
        return await self._home.where.take_place(context_of(self.method, self._fields, self._deadline))

    def _start(self, place: Place) -> None:
        try:
            headers = request_headers(self._home, place, self.method, self._fields, self._deadline)
            limit = place.peer_max_header_list_bytes
            if limit < UNLIMITED and (size := size_of(headers)) > limit:
                raise RpcError(
                    Status.RESOURCE_EXHAUSTED,
                    f"the request headers have {size} bytes; {place.address} takes {limit}",
                    origin="proxy",
                )
            stream = place.open_stream(headers)
        except BaseException:
            place.give_back()
            raise
        inbox = ResponseInbox(stream.connection, stream.id, place)
        inbox.may_be_refused = not self._is_second
        stream.inbox = stream.sink = inbox
        self._stream, self._inbox, self._sender = stream, inbox, None
        self.address = place.address
        self._place = place
        if self._kept or self._request_ended:
            stream.send_data(self._kept or b"", end_stream=self._request_ended)

    # ------------------------------------------------------------------ once more

    def _may_reopen(self, inbox: ResponseInbox) -> bool:
        """Whether the server provably did not process the call, its request is still here, and it is the first one."""
        error = inbox.error
        return (
            error is not None
            and error.retry_safe
            and self._kept is not None
            and not self._is_second
            and inbox.headers is None
            and self._aborted is None
        )

    def _is_final(self, inbox: ResponseInbox) -> bool:
        """Whether the error that has come is the call's: it is not made once more, nor has it been."""
        return inbox is self._inbox and self._reopening is None and not self._may_reopen(inbox)

    async def _reopen(self, inbox: ResponseInbox) -> None:
        """Make the call once more; or wait until another task has tried."""
        if self._reopening is not None:
            await self._reopening.wait()
            return
        self._is_second = True
        self._reopening = trio.Event()
        try:
            assert inbox.place is not None  # it is kept for this
            place = await self._take_place(inbox.place.again)
            inbox.release()
            self._start(place)
        except trio.Cancelled:
            self._is_second = False  # another task may still try
            raise
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._reopening.set()
            self._reopening = None

    async def _settled(self) -> ResponseInbox:
        """The response's inbox, once a call that was refused is open again."""
        self._check_open()
        while True:
            inbox = self._inbox
            assert inbox is not None
            if self._reopening is None and not self._may_reopen(inbox):
                return inbox
            await self._reopen(inbox)
            self._check_open()

    def _check_open(self) -> None:
        if self.error is not None:
            raise self.error
        if self._stream is None:
            raise RuntimeError("the call is not open: use it inside `async with ... as call:`")
        if self.over and not self._complete:
            raise trio.ClosedResourceError("the call was left")

    # ------------------------------------------------------------------ the request

    async def send(self, payload: bytes) -> None:
        """Send one message; waits while more than 64 KiB are on their way. One task at a time."""
        if self._request_ended:
            raise trio.ClosedResourceError("the request has ended: done_sending was called")
        inbox = await self._settled()
        inbox.check_takes_requests()
        self._kept, inbox.may_be_refused = None, False
        assert self._stream is not None
        if self._sender is None:
            self._sender = RequestSender(self._stream, inbox)
        await self._sender.send(encode_message(payload))

    async def end_request(self) -> None:
        """No more messages will be sent. A second time nothing happens."""
        if not self._request_ended:
            self._check_open()
            assert self._stream is not None
            self._request_ended = True
            self._stream.send_data(b"", end_stream=True)
        await trio.lowlevel.checkpoint()

    # ------------------------------------------------------------------ the response

    async def receive_headers(self) -> None:
        """Wait for the response headers."""
        while True:
            inbox = await self._settled()
            try:
                await inbox.wait_for_headers()
                return
            except RpcError as error:
                if self._is_final(inbox):
                    raise self._fail(error) from None

    async def receive(self) -> bytes | None:
        """The next message of the response; None at its end.

        Raises the call's `RpcError` instead of None, if it has failed. Cancellation loses nothing.
        """
        if self._complete and self.error is None:
            return None
        try:
            return await self._receive()
        except RpcError as error:
            raise self._fail(error) from None

    async def only(self) -> bytes:
        """The one message of the response."""
        message = await self.receive()
        if message is None:
            raise self._fail(_broken("the response has status OK, and no message"))
        if await self.receive() is not None:
            raise self._fail(
                _broken("the response has more than one message, and the method answers with one")
            )
        return message

    async def _receive(self) -> bytes | None:
        self._check_open()
        messages = self._messages
        await messages.give_way()
        inbox = self._inbox
        assert inbox is not None
        while (message := messages.take(inbox)) is None:
            inbox = await self._settled()
            try:
                data = await inbox.receive()
            except RpcError:
                if self._is_final(inbox):
                    raise
                continue
            if data is None:
                self._end(inbox)
                return None
            self._kept = None
            messages.add(data, inbox)
        return message

    def _end(self, inbox: ResponseInbox) -> None:
        """The response has ended. Raises what it says, unless that is OK."""
        error = inbox.outcome()
        if error is not None:
            raise error
        if not self._messages.at_boundary:
            raise _broken("the response ends in the middle of a message")
        self._complete = True
        if self._place is not None:
            self._place.ended(None)
        self.close()

    # ------------------------------------------------------------------ the end

    def abort(self, error: RpcError) -> None:
        """End the call from here: whoever waits for something of it gets the error."""
        if self.over or self._aborted is not None:
            return
        self._aborted = error
        if self._scope is not None:
            self._scope.cancel()
        if self._stream is not None and self._inbox is not None:
            self._stream.reset(ErrorCode.CANCEL)
            self._inbox.failed(error)

    def close(self) -> None:
        """Leave nothing. A call that is not over is cancelled. A second time nothing happens."""
        if self.over:
            return
        self.over = True
        if self.status is None:
            self._note_status()
        self._home.leave(self)
        if self._timer is not None:
            self._timer.cancel()
        self._kept = None
        stream, inbox = self._stream, self._inbox
        if stream is None or inbox is None:
            return
        inbox.may_be_refused = False
        if inbox.is_closed:
            inbox.release()
        else:
            # Of a response that is complete nothing is taken back: the rest of the request is not wanted.
            stream.reset(ErrorCode.NO_ERROR if inbox.ended else ErrorCode.CANCEL)
            inbox.failed(RpcError(Status.CANCELLED, "the call was left", origin="proxy"))

    def _note_status(self) -> None:
        """Note what is known of how the call went. What nobody knows it was left for."""
        failure = self.failure
        if failure is not None:
            self.status, self.status_message = failure.status, failure.message
        else:
            self.status = Status.OK if self.has_ended_well else Status.CANCELLED

    def _fail(self, raised: BaseException) -> BaseException:
        """Note how the call has failed, and leave it. Answers what to raise."""
        if self.error is not None:
            return self.error
        if isinstance(raised, RpcError):
            if (
                isinstance(raised, StreamReset)
                and raised.error_code == ErrorCode.CANCEL
                and trio.current_time() >= self._deadline
            ):
                raised = self._too_late()  # a server that watches the deadline, too, cancels the stream then
            self.error, self.status, self.status_message = raised, raised.status, raised.message
            if self._place is not None and not self._complete:
                self._place.ended(raised)
        self.close()
        return raised

    def _expire(self) -> None:
        self.abort(self._too_late())

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the call took longer than its timeout of {self._timeout:g} s")


def _broken(message: str) -> RpcError:
    return RpcError(Status.INTERNAL, message, origin="proxy")
