"""The link between a worker and the admin process: lines of JSON over a socket pair.

    {"id": 7, "ask": "report"}            a question, with an argument for some
    {"id": 7, "answer": {…}}              its answer, or "error" in words
    {"id": 0, "answer": {…}}              a worker's last report, unasked: it ends

What it does not do: know what the questions mean. The invariants: whoever asks waits for a bounded time; a side that
does not read costs the other no memory and no time, and loses nothing when it goes on: it is asked no more before it
has answered, and what was left of a line goes out before the next one.
"""

import contextlib
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

_LONGEST_QUESTION = 128 * 1024
"""Rules of faults, of which the admin listener takes 16 KiB, as JSON."""
_SEND_BUFFER_BYTES = 256 * 1024
"""Of the end that asks, so that the socket takes such a question at once. What it cannot have it has less of."""
_AT_ONCE = 64 * 1024
_LAST_WORDS_S = 1.0
_UNREADABLE = (ValueError, TypeError, KeyError)
"""What comes of a line that is none of ours."""

Answers = Mapping[str, Callable[[Any], Any]]
"""By question: what answers it, given the argument, or an awaitable of the answer. What takes long lets others run."""


class NoAnswer(Exception):
    """The other side is gone, or does not answer in time."""


async def answer(sock: socket.socket, answers: Answers) -> None:
    """Answer what comes over this link, until it ends or what comes cannot be read; then it is closed.

    Cancelled, the last report is sent first, if there is one.
    """
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    lines, unsent = _Lines(_LONGEST_QUESTION), bytearray()
    async with stream:
        try:
            while data := await stream.receive_some(_AT_ONCE):
                for line in lines.of(data):
                    unsent += await _answer_to(line, answers)
                    await _send(stream, unsent)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, *_UNREADABLE):
            return
        except trio.Cancelled:
            if "report" in answers:
                with (
                    trio.CancelScope(shield=True, deadline=trio.current_time() + _LAST_WORDS_S),
                    contextlib.suppress(OSError),
                ):
                    unsent += _line({"id": 0, "answer": await _result(answers["report"], None)})
                    await _send(stream, unsent)
            raise


async def _send(stream: trio.SocketStream, unsent: bytearray) -> None:
    """Send it, and take away from it what is sent: what is left when this is cancelled has to go out first."""
    while unsent:
        del unsent[: await stream.socket.send(bytes(unsent[:_AT_ONCE]))]


async def _answer_to(line: bytes, answers: Answers) -> bytes:
    question = json.loads(line)
    number, asked = question["id"], question["ask"]
    try:
        return _line({"id": number, "answer": await _result(answers[asked], question.get("argument"))})
    except Exception as error:  # noqa: BLE001  # whoever asked hears it; calls go on
        return _line({"id": number, "error": f"{type(error).__name__}: {error}"})


async def _result(answer_of: Callable[[Any], Any], argument: Any) -> Any:
    result = answer_of(argument)
    return await result if isinstance(result, Awaitable) else result


class Link:
    """The admin process's end. `run` has to run."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._waiting: dict[int, trio.Event] = {}
        self._answers: dict[int, dict[str, Any]] = {}
        self._owed: set[int] = set()
        """Questions that nobody waits for any more, and that are not answered yet."""
        self._paid = trio.Event()
        """Nothing is owed any more, or the worker is gone."""
        self._last_id = 0
        self.has_ended = False
        """The worker is gone, or has said what cannot be understood."""
        self.last_words: Any = None
        """What the worker has reported when it ended, or None if it did not come to that."""

    async def run(self) -> None:
        """Take answers, until the worker is gone, or says what cannot be understood."""
        lines = _Lines()
        async with self._stream:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, *_UNREADABLE):
                while data := await self._stream.receive_some(_AT_ONCE):
                    for line in lines.of(data):
                        self._take(json.loads(line))
        self.has_ended = True
        self._paid.set()
        for event in self._waiting.values():
            event.set()

    def _take(self, said: dict[str, Any]) -> None:
        number = said["id"]
        if number == 0:
            self.last_words = said["answer"]
        elif (event := self._waiting.get(number)) is not None:
            self._answers[number] = said
            event.set()
        else:
            self._owed.discard(number)
            if not self._owed:
                self._paid.set()
                self._paid = trio.Event()

    async def ask(self, question: str, argument: Any = None, *, timeout_s: float) -> Any:
        """Ask, and wait for the answer. A worker that owes earlier answers is asked when it has given them.

        Raises `NoAnswer`.
        """
        self._last_id += 1
        number, event = self._last_id, trio.Event()
        said = None
        with trio.move_on_after(timeout_s):
            if self._owed:
                await self._paid.wait()
            self._send({"id": number, "ask": question, "argument": argument})
            self._waiting[number] = event
            try:
                await event.wait()
            finally:
                del self._waiting[number]
                said = self._answers.pop(number, None)
                if said is None:
                    self._owed.add(number)
        if said is None:
            raise NoAnswer(f"no answer within {timeout_s:g} s")
        if "answer" not in said:
            raise NoAnswer(str(said.get("error")))
        return said["answer"]

    def tell(self, what: str, argument: Any = None) -> None:
        """Ask, and do not wait for the answer. A worker that is gone, or takes no questions, is not told."""
        self._last_id += 1
        with contextlib.suppress(NoAnswer):
            self._send({"id": self._last_id, "ask": what, "argument": argument})
            self._owed.add(self._last_id)

    def _send(self, message: dict[str, Any]) -> None:
        """Without waiting: of a few short questions at a time the socket takes each at once, whole."""
        line = _line(message)
        try:
            sent = self._sock.send(line)
        except OSError:
            # Its last words may wait to be read: `run` will see the end.
            raise NoAnswer("the worker is gone, or takes no questions") from None
        if sent != len(line):
            self._stream.socket.close()  # what came behind a part of a line would not be understood
            raise NoAnswer("the worker takes no questions")


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class _Lines:
    """Of bytes as they come."""

    def __init__(self, longest: int | None = None) -> None:
        self._longest = longest
        self._rest = bytearray()

    def of(self, data: bytes) -> list[bytes]:
        """The lines that end in this. Raises `ValueError` for one that is longer."""
        lines: list[bytes] = []
        self._rest += data
        if b"\n" in data:
            *lines, rest = bytes(self._rest).split(b"\n")
            self._rest = bytearray(rest)
        if self._longest is not None and len(self._rest) > self._longest:
            raise ValueError("a question is too long")
        return lines
