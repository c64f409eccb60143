"""A recording as events: what `Views` would have told while it was made.

tell_recorded(records("calls.jsonl"), linter.tell)
"""

from collections.abc import Iterable
from datetime import datetime

from rawgrpc_proxy.lab.link_view import LinkView, Tell
from rawgrpc_proxy.lab.recording import Bytes, Closed, Frame, Head, Lost, Opened, Record
from rawgrpc_proxy.net.tapped import Link


def tell_recorded(records: Iterable[Record], tell: Tell, *, payload_bytes: int = 0) -> None:
    """Tell of it with the times of its frames, in seconds since 1970.

    Of a connection of which the end is not there, since the file was cut or not all could be written, no end is told.
    What `tell` raises goes through, as does what reading the records raises.
    """
    views: dict[int, LinkView] = {}
    started = 0.0
    for record in records:
        match record:
            case Head(started=text):
                started = _seconds(text)
            case Opened(number, at, side, peer, tls):
                view = views[number] = LinkView(
                    Link(number=number, side=side, peer=peer, tls=tls), tell, payload_bytes=payload_bytes
                )
                view.open(started + at)
            case Frame(number, at, sender, raw) | Bytes(number, at, sender, raw):
                if number in views:
                    views[number].feed(sender, raw, started + at)
            case Lost(number):
                views.pop(number, None)
            case Closed(number, at):
                if number in views:
                    views.pop(number).close(started + at)
            case _:
                pass


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
