"""Plays the server of a recording to any client: each call gets the answer that a recorded call got.

    server = Server(unknown_service_handler=Answers(read("calls.jsonl").side(Side.DOWNSTREAM)).handle)

A real client frames its calls in its own way, so calls are matched, not bytes: the next recorded call of the same
method that has not been played yet and whose request has had the same messages so far. The answer goes through the
recorded steps: a message that came behind one of the request waits for it. `lenient` takes the next call of the method
whatever the request is, and the last one again when all have been played; otherwise such a call is FAILED_PRECONDITION,
with what differs in its message. Whoever wants the same bytes plays the connection (`replaying.play`).
"""

from collections.abc import Sequence

import trio

from rawgrpc_proxy.call import Call
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.grpc.messages import MessageReader, encode_message
from rawgrpc_proxy.lab.answers import CallSeen, HalfEnd, Header, Message, calls_of
from rawgrpc_proxy.lab.events import HeadersKind, Sender
from rawgrpc_proxy.lab.recording import RecordedLink
from rawgrpc_proxy.lab.replaying import passed_of
from rawgrpc_proxy.net.local_sender import LocalSender

_MAX_MESSAGE_BYTES = (1 << 32) - 1

_Sent = tuple[bool, bytes]
"""Whether it is compressed, and the payload."""


class Answers:
    """The recorded calls, and which of them have been played."""

    def __init__(self, links: Sequence[RecordedLink], *, lenient: bool = False) -> None:
        self._lenient = lenient
        self._calls: dict[str, list[CallSeen]] = {}
        """Those that have not been played, by method, in order."""
        self._last: dict[str, CallSeen] = {}
        self.refused: list[str] = []
        """What was asked and had no answer, in words; the last hundred."""
        for link in links:
            for call in calls_of(passed_of(link)):
                self._calls.setdefault(call.method, []).append(call)

    @property
    def left(self) -> int:
        """How many calls have not been played."""
        return sum(map(len, self._calls.values()))

    async def handle(self, call: Call) -> None:
        """The handler. Raises FAILED_PRECONDITION for a call that is not in the recording."""
        request = _Request(call)
        try:
            recorded = await self._find(call.context.method, request)
            await _Playing(call, recorded, request, lenient=self._lenient).run()
        except RpcError as error:
            if error.status is Status.FAILED_PRECONDITION:
                self.refused = [*self.refused[-99:], f"{call.context.method}: {error.message}"]
            raise

    async def _find(self, method: str, request: "_Request") -> CallSeen:
        """The call to play; it is taken once there is no other one that it may be."""
        if method not in self._calls:
            raise _differs("no call of this method was recorded")
        ended = False
        while True:
            # Looked at anew after each wait: other calls may have been answered meanwhile.
            left, asked = self._calls[method], len(request.seen)
            if not left:
                if self._lenient:
                    return self._last[method]
                raise _differs("all recorded calls of this method have been played")
            if self._lenient:
                return self._take(method, left[0])
            fit = [call for call in left if _begins_with(call, request.seen)]
            if not fit:
                raise _differs(f"message {asked - 1} of the request is in no recorded call of this method")
            if ended:
                fit = [call for call in fit if len(_asked(call)) == asked]
                if not fit:
                    raise _differs(f"the request ends after {asked} messages")
            if ended or len(fit) == 1 or not _goes_on_alike(fit, asked):
                return self._take(method, fit[0])
            # Which call it is depends on what is yet to come, and none of them had an answer before that.
            ended = not await request.has(asked)

    def _take(self, method: str, call: CallSeen) -> CallSeen:
        self._calls[method].remove(call)
        self._last[method] = call
        return call


def _asked(call: CallSeen) -> list[_Sent]:
    return [(bool(message.flag), message.payload) for message in call.messages(Sender.CLIENT)]


def _begins_with(call: CallSeen, seen: list[_Sent]) -> bool:
    return _asked(call)[: len(seen)] == seen


def _goes_on_alike(calls: list[CallSeen], index: int) -> bool:
    """Whether all of them waited for message `index` of the request, or its end, before they answered more."""
    return all(_waits_for(call, index) for call in calls)


def _waits_for(call: CallSeen, index: int) -> bool:
    asked = 0
    for step in call.steps:
        if step.sender is Sender.SERVER:
            return False
        if isinstance(step, Message):
            if asked == index:
                return True
            asked += 1
        elif isinstance(step, HalfEnd):
            return asked <= index
    return False


class _Request:
    """The messages of a call, as far as they were needed."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._reader = MessageReader(max_message_bytes=_MAX_MESSAGE_BYTES)
        self.seen: list[_Sent] = []
        self._ended = False

    async def has(self, index: int) -> bool:
        """Wait for this message; False if the request ends before it."""
        while len(self.seen) <= index and not self._ended:
            message = self._reader.take()
            if message is not None:
                self.seen.append(message)
                self._call.record.request_messages += 1
                continue
            data = await self._call.stream.inbox.receive()
            if data is None:
                self._ended = True
            else:
                self._call.record.request_bytes += len(data)
                self._reader.add(data)
        return len(self.seen) > index


class _Playing:
    """One call, along the steps of the recorded one."""

    def __init__(self, call: Call, recorded: CallSeen, request: _Request, *, lenient: bool) -> None:
        self._call, self._recorded, self._request, self._lenient = call, recorded, request, lenient
        self._sender = LocalSender(call.stream)
        self._asked = 0

    async def run(self) -> None:
        for step in self._recorded.steps:
            if step.sender is Sender.CLIENT:
                await self._hear(step)
            elif isinstance(step, Message):
                data = encode_message(step.payload, compressed=bool(step.flag))
                self._call.record.response_messages += 1
                self._call.record.response_bytes += len(data)
                await self._sender.send(data)
            elif isinstance(step, Header) and self._say(step):
                return
        await self._end_without_trailers()

    async def _hear(self, step: Message | Header | HalfEnd) -> None:
        if isinstance(step, Message):
            index, self._asked = self._asked, self._asked + 1
            if not await self._request.has(index):
                if not self._lenient:
                    raise _differs(f"the request ends after {index} messages")
            elif not self._lenient and self._request.seen[index] != (bool(step.flag), step.payload):
                raise _differs(f"message {index} of the request has other bytes")
        elif isinstance(step, HalfEnd) and await self._request.has(self._asked) and not self._lenient:
            raise _differs(f"the request goes on after {self._asked} messages")

    def _say(self, step: Header) -> bool:
        """Send a header list; answer whether it was the end."""
        if step.kind is HeadersKind.INFORMATIONAL:
            return False
        fields = list(step.fields)
        if step.ends:
            self._call.response_passed_on(headers=True, ended=True)
            self._call.record.status = _status_of(fields)
            self._call.stream.send_end(fields)
            self._call.stream.reset_after_end(0)
            return True
        self._call.response_passed_on(headers=True, ended=False)
        self._call.stream.send_headers(fields)
        return False

    async def _end_without_trailers(self) -> None:
        recorded = self._recorded
        if recorded.reset_by is Sender.CLIENT:
            # The recorded client has gone; this one will, or it waits as long as it likes.
            await trio.sleep_forever()
        if recorded.reset_by is Sender.SERVER and recorded.reset_code is not None:
            self._call.response_passed_on(headers=True, ended=True)
            self._call.stream.reset(recorded.reset_code)
            return
        raise RpcError(Status.UNAVAILABLE, "the recorded call has no end", origin="handler")


def _status_of(fields: Sequence[tuple[bytes, bytes]]) -> Status:
    try:
        return Status(int(dict(fields).get(b"grpc-status", b"2")))
    except ValueError:
        return Status.UNKNOWN


def _differs(what: str) -> RpcError:
    return RpcError(Status.FAILED_PRECONDITION, f"not as recorded: {what}", origin="handler")
