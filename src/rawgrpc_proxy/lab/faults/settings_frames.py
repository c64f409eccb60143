"""SETTINGS that say something else than their sender has said (RFC 9113 §6.5)."""

import struct
from collections.abc import Mapping

from rawgrpc_proxy.http2.frames import SETTINGS, Data, Setting, frame_header

_ENTRY = struct.Struct(">HL")


def changed(payload: Data, overrides: Mapping[Setting, int], window: int) -> bytes:
    """The frame with these values instead of, or behind, those in the payload.

    A window of streams is never said to be larger than it is; it is `window`, if the payload does not say it.
    """
    said = entries_of(payload)
    entries = [entry for entry in said if entry[0] not in overrides]
    most = {Setting.INITIAL_WINDOW_SIZE: dict(said).get(Setting.INITIAL_WINDOW_SIZE, window)}
    entries += [(setting, min(value, most.get(setting, value))) for setting, value in overrides.items()]
    return frame_header(SETTINGS, 0, 0, _ENTRY.size * len(entries)) + b"".join(
        _ENTRY.pack(*entry) for entry in entries
    )


def entries_of(payload: Data) -> list[tuple[int, int]]:
    """All that is in it, known or not; what is no whole entry is left out."""
    whole = len(payload) - len(payload) % _ENTRY.size
    return list(_ENTRY.iter_unpack(payload[:whole]))
