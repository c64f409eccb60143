"""SETTINGS that say something else than their sender has said (RFC 9113 §6.5)."""

import struct
from collections.abc import Mapping

from rawgrpc_proxy.http2.frames import SETTINGS, Data, Setting, frame_header

_ENTRY = struct.Struct(">HL")


def changed(payload: Data, overrides: Mapping[Setting, int]) -> bytes:
    """The frame with these values instead of, or behind, those in the payload."""
    entries = [entry for entry in entries_of(payload) if entry[0] not in overrides]
    entries += overrides.items()
    return frame_header(SETTINGS, 0, 0, _ENTRY.size * len(entries)) + b"".join(
        _ENTRY.pack(*entry) for entry in entries
    )


def entries_of(payload: Data) -> list[tuple[int, int]]:
    """All that is in it, known or not; what is no whole entry is left out."""
    whole = len(payload) - len(payload) % _ENTRY.size
    return list(_ENTRY.iter_unpack(payload[:whole]))
