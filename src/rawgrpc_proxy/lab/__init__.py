"""The laboratory: who wants to see, in every frame and message, what passes. Costs nothing where nobody looks.

    server = Server(..., tap=Views(print))          # a tap of all connections: its events, one by one

What there is of it for users is here. A name is looked up where it lives when it is first asked for, so that whoever
wants one of these tools does not wait for the others.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rawgrpc_proxy.lab.call_status import status_seen
    from rawgrpc_proxy.lab.descriptors import by_descriptors
    from rawgrpc_proxy.lab.events import (
        Event,
        FrameSeen,
        HalfClosed,
        HeadersKind,
        HeadersSeen,
        LinkClosed,
        LinkOpened,
        MessageBegun,
        MessageSeen,
        Sender,
        Stream,
        StreamBegun,
        StreamEnded,
        Unreadable,
        who,
    )
    from rawgrpc_proxy.lab.faults import Fault, Faults, with_faults
    from rawgrpc_proxy.lab.filters import Facts, Filter
    from rawgrpc_proxy.lab.frame_details import details, flag_names, frame_name
    from rawgrpc_proxy.lab.late_views import LateViews
    from rawgrpc_proxy.lab.link_view import LinkView
    from rawgrpc_proxy.lab.lint.findings import Finding, Findings
    from rawgrpc_proxy.lab.lint.linter import Linter
    from rawgrpc_proxy.lab.protobuf_guess import guess
    from rawgrpc_proxy.lab.readable import guessed
    from rawgrpc_proxy.lab.recorder import Recorder
    from rawgrpc_proxy.lab.recording import RecordedLink, Recording
    from rawgrpc_proxy.lab.recording import read as read_recording
    from rawgrpc_proxy.lab.redact import Redactor
    from rawgrpc_proxy.lab.replaying import Played, play, play_to
    from rawgrpc_proxy.lab.row_text import json_of
    from rawgrpc_proxy.lab.rows import Rows
    from rawgrpc_proxy.lab.serve_recording import Answers
    from rawgrpc_proxy.lab.sinks import QueueSink, several
    from rawgrpc_proxy.lab.taps import several_taps
    from rawgrpc_proxy.lab.views import Views
    from rawgrpc_proxy.net.late_taps import current_late_taps
    from rawgrpc_proxy.net.tapped import Link, LinkTap, Tap

__all__ = [
    "Answers",
    "Event",
    "Facts",
    "Fault",
    "Faults",
    "Filter",
    "Finding",
    "Findings",
    "FrameSeen",
    "HalfClosed",
    "HeadersKind",
    "HeadersSeen",
    "LateViews",
    "Link",
    "LinkClosed",
    "LinkOpened",
    "LinkTap",
    "LinkView",
    "Linter",
    "MessageBegun",
    "MessageSeen",
    "Played",
    "QueueSink",
    "RecordedLink",
    "Recorder",
    "Recording",
    "Redactor",
    "Rows",
    "Sender",
    "Stream",
    "StreamBegun",
    "StreamEnded",
    "Tap",
    "Unreadable",
    "Views",
    "by_descriptors",
    "current_late_taps",
    "details",
    "flag_names",
    "frame_name",
    "guess",
    "guessed",
    "json_of",
    "play",
    "play_to",
    "read_recording",
    "several",
    "several_taps",
    "status_seen",
    "who",
    "with_faults",
]

_HOMES = {
    "lab.call_status": ("status_seen",),
    "lab.descriptors": ("by_descriptors",),
    "lab.events": (
        "Event",
        "FrameSeen",
        "HalfClosed",
        "HeadersKind",
        "HeadersSeen",
        "LinkClosed",
        "LinkOpened",
        "MessageBegun",
        "MessageSeen",
        "Sender",
        "Stream",
        "StreamBegun",
        "StreamEnded",
        "Unreadable",
        "who",
    ),
    "lab.faults": ("Fault", "Faults", "with_faults"),
    "lab.filters": ("Facts", "Filter"),
    "lab.frame_details": ("details", "flag_names", "frame_name"),
    "lab.late_views": ("LateViews",),
    "lab.link_view": ("LinkView",),
    "lab.lint.findings": ("Finding", "Findings"),
    "lab.lint.linter": ("Linter",),
    "lab.protobuf_guess": ("guess",),
    "lab.readable": ("guessed",),
    "lab.recorder": ("Recorder",),
    "lab.recording": ("RecordedLink", "Recording", "read_recording"),
    "lab.redact": ("Redactor",),
    "lab.replaying": ("Played", "play", "play_to"),
    "lab.row_text": ("json_of",),
    "lab.rows": ("Rows",),
    "lab.serve_recording": ("Answers",),
    "lab.sinks": ("QueueSink", "several"),
    "lab.taps": ("several_taps",),
    "lab.views": ("Views",),
    "net.late_taps": ("current_late_taps",),
    "net.tapped": ("Link", "LinkTap", "Tap"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_NAME_THERE = {"read_recording": "read"}


if not TYPE_CHECKING:  # for type checkers there are the imports above, and nothing else

    def __getattr__(name: str) -> object:
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        thing = getattr(import_module(f"rawgrpc_proxy.{home}"), _NAME_THERE.get(name, name))
        globals()[name] = thing
        return thing


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
