"""The `grpc-timeout` header: a duration in 1 to 8 digits and a unit.

This module knows durations, not deadlines: it reads no clock, and whoever forwards a call works out what
remains. The invariant: `parse_timeout(format_timeout(s)) <= s`, and a parsed duration formats and parses
back to itself. So a deadline never grows on its way, and a hop that takes no time does not shrink it.

Owns: "Timeout" of the gRPC over HTTP/2 specification.
"""

import math
import re

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_MOST = 99_999_999  # 8 digits

# unit → (numerator, denominator) of the unit in seconds, most precise first. Whole numbers, because 1e-9 is
# not a nanosecond: n / 10**9 is the float nearest to n nanoseconds, n * 1e-9 often is not.
_UNITS = {
    b"n": (1, 10**9),
    b"u": (1, 10**6),
    b"m": (1, 10**3),
    b"S": (1, 1),
    b"M": (60, 1),
    b"H": (3600, 1),
}


def parse_timeout(raw: bytes) -> float:
    """Read a timeout; answers seconds, from 0 to 99 999 999 hours. `ValueError` for anything else."""
    match = _TIMEOUT.fullmatch(raw)
    if match is None:
        raise ValueError(
            f"not a grpc-timeout: {raw[:32]!r}; it is 1 to 8 digits and one of H, M, S, m, u, n, like b'100m'"
        )
    numerator, denominator = _UNITS[match[2]]
    return int(match[1]) * numerator / denominator


def format_timeout(seconds: float) -> bytes:
    """Write a timeout in the most precise unit that 8 digits can hold, rounded down.

    No time left, zero or less, gives b"0n"; more than 99 999 999 hours, infinity included, gives that many.
    `ValueError` for NaN.
    """
    if math.isnan(seconds):
        raise ValueError("a timeout is a number of seconds, not NaN")
    if seconds <= 0:
        return b"0n"
    if seconds < _MOST * 3600:
        # The duration as a fraction, exactly: no rounding here could make it longer.
        ours, per = seconds.as_integer_ratio()
        for unit, (numerator, denominator) in _UNITS.items():
            count = ours * denominator // (per * numerator)
            # The float nearest to n units may lie just below n units; it was read from n and must be
            # written as n.
            if (count + 1) * numerator / denominator <= seconds:
                count += 1
            if count <= _MOST:
                return b"%d%b" % (count, unit)
    return b"%dH" % _MOST
