"""A proxy that counts which fields of messages are in use, without knowing any .proto.

    python examples/count_fields.py 127.0.0.1:8080 127.0.0.1:50051

When it is stopped it prints, for the requests and responses of each method, how many messages there were, and in how
many of them each field was set: whom would it hurt if field 7 was gone? It is a tap of one's own: a function that is
told what passes on callers' connections.
"""

import signal
import sys
from collections import Counter, defaultdict

import trio

from rawgrpc_proxy import CallContext, CallLog, Pool, Server, Target, transparent_handler
from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.lab import Event, MessageSeen, Sender, Views, guess

MESSAGE_BYTES = 64 * 1024
"""So much of each message is looked at."""


class FieldCounts:
    """By method and direction: how many messages, and how many with each field."""

    def __init__(self) -> None:
        self.messages: Counter[tuple[str, str]] = Counter()
        self.fields: defaultdict[tuple[str, str], Counter[int]] = defaultdict(Counter)

    # Called in the middle of the proxy's work: it is quick, and does not wait. If it raises it is told no more, and the
    # calls go on.
    def tell(self, event: Event) -> None:
        """Count a message; all other events are of no interest here."""
        if not isinstance(event, MessageSeen) or not event.is_whole or event.flag:
            return  # cut off, or compressed
        message = guess(event.payload or b"")
        if message is None:
            return  # no protobuf
        key = event.stream.method, "request" if event.sender is Sender.CLIENT else "response"
        self.messages[key] += 1
        self.fields[key].update({field.number for field in message.fields})

    def print(self) -> None:
        """A line for each method and direction."""
        for (method, direction), messages in sorted(self.messages.items()):
            counts = sorted(self.fields[method, direction].items())
            fields = ", ".join(f"field {number} in {count}" for number, count in counts)
            print(f"{method} {direction}s: {messages}, {fields or 'all empty'}", flush=True)


async def main(listen: str, upstream: str) -> None:
    """Serve until SIGTERM or SIGINT; running calls have half a minute then."""
    log, counts = CallLog(), FieldCounts()
    tap = Views(counts.tell, sides=[Side.DOWNSTREAM], payload_bytes=MESSAGE_BYTES)
    async with Pool(observer=log) as pool:
        target = pool.target(upstream)

        def director(context: CallContext, _method: str) -> tuple[CallContext, Target]:
            return context, target

        server = Server(unknown_service_handler=transparent_handler(director), observer=log, tap=tap)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                print("listening on", await nursery.start(server.serve, listen), flush=True)
                await anext(signals)
                server.stop(grace_s=30)
    counts.print()


if __name__ == "__main__":
    if len(sys.argv) <= 2:
        sys.exit(__doc__)
    trio.run(main, sys.argv[1], sys.argv[2])
