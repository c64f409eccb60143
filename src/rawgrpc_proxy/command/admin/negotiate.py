"""In which form somebody wants an answer (RFC 9110 §12). Pure.

Weights are read where they can be; what cannot be read is passed over, and who wants nothing that there is gets the
plain form all the same: a page that cannot be read tells more than a 406.
"""

import gzip
import re
from collections.abc import Iterator

_OPENMETRICS = "application/openmetrics-text"
_TEXT = "text/plain"
_WEIGHT = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_WORTH_GZIP_BYTES = 1024


def wants_openmetrics(accept: str | None) -> bool:
    """Whether Accept names OpenMetrics, with no less weight than plain text."""
    openmetrics = text = 0.0
    for media_type, weight in _weighted(accept):
        if media_type == _OPENMETRICS:
            openmetrics = max(openmetrics, weight)
        elif media_type == _TEXT:
            text = max(text, weight)
    return openmetrics > 0 and openmetrics >= text


def takes_gzip(accept_encoding: str | None) -> bool:
    """Whether Accept-Encoding names gzip, with a weight above zero."""
    return any(coding in {"gzip", "x-gzip"} and weight > 0 for coding, weight in _weighted(accept_encoding))


def gzipped(body: bytes) -> bytes:
    """The same bytes, always the same for the same ones."""
    return gzip.compress(body, compresslevel=5, mtime=0)


def is_worth_gzip(body: bytes) -> bool:
    """Whether packing saves more than it costs."""
    return len(body) >= _WORTH_GZIP_BYTES


def matches_etag(if_none_match: str | None, etag: str) -> bool:
    """Whether one of the tags is this one, as If-None-Match compares them: weakly (RFC 9110 §13.1.2)."""
    if if_none_match is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in tags or etag in tags


def _weighted(value: str | None) -> Iterator[tuple[str, float]]:
    """What is named, in lower case and without parameters, each with its weight."""
    for element in (value or "").lower().split(","):
        name, *parameters = (part.strip() for part in element.split(";"))
        weight = 1.0
        for parameter in parameters:
            key, _, text = parameter.partition("=")
            if key.strip() == "q":
                weight = float(text) if _WEIGHT.fullmatch(text.strip()) else 0.0
        if name:
            yield name, weight
