"""The link between a worker and the admin process: lines of JSON over a socket pair.

    {"id": 7, "ask": "report"}            a question, with an argument for some
    {"id": 7, "answer": {…}}              its answer, or "error" in words
    {"id": 0, "answer": {…}}              a worker's last report, unasked: it ends

What it does not do: know what the questions mean. Two invariants: whoever asks waits for a bounded time, and a worker
that is asked more than it can say never waits for who asks: it answers one question after the other.
"""

import contextlib
import json
import socket
from collections.abc import Callable, Mapping
from typing import Any

import trio

_LONGEST_QUESTION = 4096
_AT_ONCE = 64 * 1024
_LAST_WORDS_S = 1.0

Answers = Mapping[str, Callable[[Any], Any]]
"""By question: what answers it, given the argument. Must not wait."""


class LinkLost(Exception):
    """The other side is gone, or does not answer in time."""


async def answer(sock: socket.socket, answers: Answers) -> None:
    """Answer what comes over this link, until it ends; then it is closed. Cancelled, the last report is sent first."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    async with stream:
        try:
            async for line in _lines(stream, _LONGEST_QUESTION):
                await stream.send_all(_answer_to(line, answers))
        except (trio.BrokenResourceError, trio.ClosedResourceError, ValueError):
            return
        except trio.Cancelled:
            with (
                trio.CancelScope(shield=True, deadline=trio.current_time() + _LAST_WORDS_S),
                contextlib.suppress(trio.BrokenResourceError, trio.BusyResourceError),
            ):
                await stream.send_all(_line({"id": 0, "answer": answers["report"](None)}))
            raise


def _answer_to(line: bytes, answers: Answers) -> bytes:
    question = json.loads(line)
    try:
        return _line({"id": question["id"], "answer": answers[question["ask"]](question.get("argument"))})
    except Exception as error:  # noqa: BLE001  # whoever asked hears it; calls go on
        return _line({"id": question["id"], "error": f"{type(error).__name__}: {error}"})


class Link:
    """The admin process's end. `run` has to run."""

    def __init__(self, sock: socket.socket) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._waiting: dict[int, trio.Event] = {}
        self._answers: dict[int, dict[str, Any]] = {}
        self._last_id = 0
        self._sending = trio.Lock()
        self.last_words: Any = None
        """What the worker has reported when it ended, or None if it did not come to that."""

    async def run(self) -> None:
        """Take answers, until the worker is gone."""
        async with self._stream:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, ValueError):
                async for line in _lines(self._stream):
                    self._take(json.loads(line))
        for event in self._waiting.values():
            event.set()

    def _take(self, said: dict[str, Any]) -> None:
        if said["id"] == 0:
            self.last_words = said["answer"]
        elif (event := self._waiting.get(said["id"])) is not None:  # whoever asked may have given up
            self._answers[said["id"]] = said
            event.set()

    async def ask(self, question: str, argument: Any = None, *, timeout_s: float) -> Any:
        """Ask, and wait for the answer. Raises `LinkLost`."""
        self._last_id += 1
        number, event = self._last_id, trio.Event()
        self._waiting[number] = event
        try:
            with trio.move_on_after(timeout_s):
                async with self._sending:
                    await self._send({"id": number, "ask": question, "argument": argument})
                await event.wait()
            said = self._answers.pop(number, None)
        finally:
            del self._waiting[number]
        if said is None:
            raise LinkLost(f"no answer within {timeout_s:g} s")
        if "error" in said:
            raise LinkLost(said["error"])
        return said["answer"]

    async def _send(self, message: dict[str, Any]) -> None:
        try:
            await self._stream.send_all(_line(message))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise LinkLost("the worker is gone") from None
        except trio.Cancelled:
            # A part of the line may be out: what came behind it would not be understood.
            await trio.aclose_forcefully(self._stream)
            raise


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


async def _lines(stream: trio.SocketStream, longest: int | None = None) -> Any:
    """Raises `ValueError` for one that is longer."""
    rest = bytearray()
    while data := await stream.receive_some(_AT_ONCE):
        rest += data
        if b"\n" in data:
            *complete, left = bytes(rest).split(b"\n")
            for line in complete:
                yield line
            rest = bytearray(left)
        if longest is not None and len(rest) > longest:
            raise ValueError("a question is too long")
