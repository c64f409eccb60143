"""A client that holds connections and calls open and does nothing with them.

It is told on standard input, in JSON, one line at a time:
  {"connect": N}  open N connections more
  {"open": N}     open N calls more, of which only the headers are sent, spread evenly over the connections
  {"finish": 0}   end all requests and wait for the answers
and answers each line with {"connections": N, "answered": N, "lost": N}, and "error" if it could not be done.

Before it answers, every connection has acknowledged a SETTINGS frame sent last: the proxy has read all before it.
A call is lost when its stream or connection ends before it was asked to, and answered when an answer of the right
length came. HTTP/2 is shared/frames.py, for a library would need more memory than the proxy.
"""

import asyncio
import json
import sys
from collections.abc import Callable

from interop.shared.frames import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    acknowledgement,
    frame,
    grpc_request,
    take_frames,
)

AT_ONCE = 50
SECONDS = 60.0


class Link(asyncio.Protocol):
    """One connection and the calls held on it."""

    def __init__(self, request: bytes, answer_bytes: int) -> None:
        self._request = request
        self._answer_bytes = answer_bytes
        self._buffer = bytearray()
        self._next_id = 1
        self._barriers: list[asyncio.Future[None]] = []
        self._finished = asyncio.Event()
        self.calls: dict[int, int] = {}
        self.finishing = False
        self.answered = 0
        self.lost = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(PREFACE)
        self.ready = self.barrier()

    def barrier(self) -> asyncio.Future[None]:
        """Done when the peer has read all that was sent."""
        reached = asyncio.get_running_loop().create_future()
        self._barriers.append(reached)
        self._transport.write(frame(SETTINGS, 0, 0))
        return reached

    def open(self, count: int) -> None:
        headers = []
        for _ in range(count):
            headers.append(frame(HEADERS, END_HEADERS, self._next_id, self._request))
            self.calls[self._next_id] = 0
            self._next_id += 2
        self._transport.write(b"".join(headers))

    async def finish(self) -> None:
        self.finishing = True
        self._transport.write(b"".join(frame(DATA, END_STREAM, stream_id) for stream_id in self.calls))
        if self.calls:
            await self._finished.wait()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        for received in take_frames(self._buffer):
            self._received(*received)

    def _received(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == SETTINGS and flags & ACK:
            self._barriers.pop(0).set_result(None)
        elif kind in (SETTINGS, PING) and not flags & ACK:
            self._transport.write(acknowledgement(kind, payload))
        elif kind == GOAWAY:
            self._transport.close()
        elif stream_id in self.calls:
            if kind == DATA:
                self.calls[stream_id] += len(payload)
            if kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
                length = self.calls.pop(stream_id)
                good = self.finishing and kind != RST_STREAM and length == self._answer_bytes
                self._count(good=good)

    def connection_lost(self, exc: Exception | None) -> None:
        for _ in range(len(self.calls)):
            self.calls.popitem()
            self._count(good=False)
        for reached in self._barriers:
            if not reached.done():
                reached.set_exception(
                    ConnectionError(f"the connection ended: {exc or 'closed by the proxy'}")
                )
        self._barriers.clear()

    def _count(self, *, good: bool) -> None:
        self.answered += good
        self.lost += not good
        if not self.calls:
            self._finished.set()


async def main(port: int, path: str, answer_bytes: int) -> None:
    loop = asyncio.get_running_loop()
    request = grpc_request(path, f"127.0.0.1:{port}")
    links: list[Link] = []
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        ((verb, count),) = json.loads(line).items()
        answer: dict[str, int | str] = {}
        try:
            async with asyncio.timeout(SECONDS):
                match verb:
                    case "connect":
                        await connect(links, port, count, lambda: Link(request, answer_bytes))
                    case "open":
                        await spread(links, count)
                    case _:
                        await asyncio.gather(*(link.finish() for link in links))
        except TimeoutError:
            answer["error"] = f"it was not done within {SECONDS:.0f} s"
        except OSError as error:
            answer["error"] = str(error)
        answer["connections"] = len(links)
        answer |= {name: sum(getattr(link, name) for link in links) for name in ("answered", "lost")}
        print(json.dumps(answer), flush=True)


async def connect(links: list[Link], port: int, count: int, make: Callable[[], Link]) -> None:
    loop = asyncio.get_running_loop()
    while count:
        batch = min(count, AT_ONCE)
        made = await asyncio.gather(*(loop.create_connection(make, "127.0.0.1", port) for _ in range(batch)))
        await asyncio.gather(*(link.ready for _, link in made))
        links.extend(link for _, link in made)
        count -= batch


async def spread(links: list[Link], count: int) -> None:
    # The links with the fewest calls first, so that all have about as many in the end.
    links.sort(key=lambda link: len(link.calls))
    total = sum(len(link.calls) for link in links) + count
    for number, link in enumerate(links):
        level = total // len(links) + (number < total % len(links))
        more = min(max(level - len(link.calls), 0), count)
        if more:
            link.open(more)
            await link.barrier()
            count -= more


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
