"""The :path of a call, which names its method: what it may look like to be passed on.

A path is its server's business: most split it at the last slash, some have services below a prefix, some decode percent
escapes. The proxy passes on what RFC 9113 §8.3.1 and RFC 3986 §3.3 allow as it came, and compares nothing but whole
paths and whole segments. It refuses what one reader on the way could take for another path than the next one does, and
a director for a path that it does not guard: `.`, `..` and empty segments, escaped or not; control characters; a
backslash; a fragment; and a query, which HTTP servers cut off before they look for the method, and gRPC's own do not.
"""

import re
from urllib.parse import unquote_to_bytes

# Neither empty nor dots in any segment, and nothing that needs a second look.
_PLAIN = re.compile(rb"(?:/(?!\.{1,2}(?:/|\Z))[!\"$&-.0->@-\[\]-~]+)+\Z")
_ALLOWED = re.compile(rb"/(?:[!\"$&->@-\[\]-~]|%[0-9a-fA-F]{2})*\Z")
_SLASHES = re.compile(rb"[/\\]")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_SHOWN = 128
"""Characters of a path that a message repeats: a caller knows what it sent."""


def path_problem(path: bytes) -> str | None:
    """What keeps this :path from naming a method, None if nothing does."""
    if _PLAIN.match(path) or (_ALLOWED.match(path) and _is_plain(unquote_to_bytes(path))):
        return None
    return malformed(path.decode("latin-1"))


def malformed(method: str) -> str:
    """The problem of a path that names no method."""
    return f"malformed method name: {shortened(method)!r}"


def shortened(method: str) -> str:
    """The method for a message."""
    return method if len(method) <= _SHOWN else f"{method[:_SHOWN]}…"


def _is_plain(decoded: bytes) -> bool:
    """Whether the path means the same to those who decode it once more than others."""
    segments = _SLASHES.split(decoded)[1:]
    return not _CONTROL.search(decoded) and not any(segment in {b"", b".", b".."} for segment in segments)
