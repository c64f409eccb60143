"""How often a caller may send PING while nothing else goes on: gRPC's own rule (gRFC A8 and A9), for those who want it.

    PING, sooner than allowed after the one before ──► a strike ──► one strike too many ──► GOAWAY "too_many_pings"
    DATA or HEADERS of ours in between ──► no strikes

Every PING costs its price (`guard.py`), which is what protects this process. This rule is about something else: clients
that keep machines and links awake for nothing. A client of gRPC that hears "too_many_pings" doubles its interval.

What it does not do: count the PINGs of upstreams, or end the connection; it says when to. Pure, time as an argument.
"""

import math
from typing import Self

from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.errors import PeerAbuse

TOO_MANY_PINGS = "too_many_pings"
"""What gRPC's clients look for in a GOAWAY, as a whole."""
_WITHOUT_STREAM_S = 7200.0
"""gRPC's: what TCP waits for until it asks by itself (RFC 1122 §4.2.3.6)."""


class PingPolicy:
    """Judges the PINGs of one caller."""

    __slots__ = ("_answered", "_last_at", "_settings", "_strikes")

    def __init__(self, settings: Http2Settings) -> None:
        self._settings = settings
        self._last_at = -math.inf
        self._strikes = 0
        self._answered = 0

    @classmethod
    def of(cls, settings: Http2Settings) -> Self | None:
        """That of a connection with these settings; None if it has none."""
        return cls(settings) if settings.min_ping_interval_s else None

    def received(self, now: float, *, answered: int, has_streams: bool) -> None:
        """A PING has come. `answered` counts what was sent of calls: it differs if there was anything in between.

        Raises `PeerAbuse` if it is one too many.
        """
        last_at, self._last_at = self._last_at, now
        if answered != self._answered:
            # As grpc-go has it: the first one after an answer is free, whenever it comes.
            self._answered = answered
            self._strikes = 0
            return
        settings = self._settings
        interval_s = settings.min_ping_interval_s
        if not (has_streams or settings.permit_without_stream):
            interval_s = max(interval_s, _WITHOUT_STREAM_S)
        if now - last_at >= interval_s:
            return
        self._strikes += 1
        if self._strikes > settings.max_ping_strikes:
            raise PeerAbuse(
                f"{self._strikes} PINGs came sooner than {interval_s:g} s after the one before, with nothing of a call "
                "sent in between (min_ping_interval_s, permit_without_stream, max_ping_strikes)",
                limit="min_ping_interval_s",
                told=TOO_MANY_PINGS,
            )
