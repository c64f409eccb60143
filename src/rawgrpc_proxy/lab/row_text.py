"""Rows (`rows.py`) as lines for people. Whatever peers have sent, a line is one line, and commands no terminal.

What it does not do: leave out secrets; the rows have none.
"""

import json
import time
from collections.abc import Collection
from typing import Any

import attrs

from rawgrpc_proxy.lab.rows import Row
from rawgrpc_proxy.observe.words import beginning, printable

_METHOD, _VALUE, _DETAIL, _BODY = 60, 80, 200, 400
_OF_EVERY_CALL = (":method", ":scheme", ":path", ":authority", "te", "content-type")
_OF_WORKERS = ("attached", "detached")
_DIM, _BOLD, _RED, _GREEN, _CYAN, _YELLOW = "2", "1", "31", "32", "36", "33"


@attrs.frozen(kw_only=True)
class Style:
    """What the file can show."""

    colours: bool = False
    unicode: bool = True

    def coloured(self, text: str, colour: str) -> str:
        """In this colour, if there are any."""
        return f"\x1b[{colour}m{text}\x1b[0m" if self.colours else text


def json_of(row: Row) -> str:
    """A line of JSON Lines."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"


def missing_json(number: int) -> str:
    """The line that stands where so many are missing."""
    return json_of({"event": "dropped", "rows": number})


def missing_text(number: int) -> str:
    """The same for people."""
    return f"... {number} lines are missing here: they could not be written in time\n"


def text_of(row: Row, style: Style) -> str:
    """A line: when, whose, which way, what."""
    if row["event"] == "dropped":
        return missing_text(row["rows"])
    seconds = row["time"]
    clock = time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{int(seconds * 1000) % 1000:03}"
    if row["event"] in _OF_WORKERS:
        return (
            f"{style.coloured(clock, _DIM)} worker {row['worker']} (process {row['pid']}): {row['event']}\n"
        )
    stream = f".{row['stream']}" if row.get("stream") else ""
    where = f"{row['link']}{stream}"
    if row["side"] == "upstream" and row.get("call"):
        where = f"{row['call']}/{where}"
    if "worker" in row:
        where = f"{row['worker']}:{where}"
    what = _TEXTS.get(row["event"], _other)(row, style)
    parts = [style.coloured(clock, _DIM), f"{where:<7}", _way(row, style), what]
    return " ".join(parts).rstrip() + "\n"


def _way(row: Row, style: Style) -> str:
    arrow, back = ("→", "←") if style.unicode else ("->", "<-")
    if "from" not in row:
        # Of no direction: the two ends.
        return f"{row['side']:<{19 if style.unicode else 20}}"
    ends = {"caller": 0, "proxy": 1, "upstream": 2}
    first, second = row["from"], row["to"]
    if ends[first] < ends[second]:
        return f"{first:<8} {style.coloured(arrow, _CYAN)} {second:<8}"
    return f"{second:<8} {style.coloured(back, _YELLOW)} {first:<8}"


def _method(row: Row, style: Style) -> str:
    method = row.get("method")
    return style.coloured(_shown(method, _METHOD), _BOLD) + "  " if method else ""


def _shown(text: Any, length: int) -> str:
    return beginning(printable(str(text)), length)


def _headers(row: Row, *, without: Collection[str] = ()) -> str:
    shown = [
        f"{_shown(name, 64)}: {_shown(value, _VALUE)}"
        for name, value in row["headers"]
        if name not in without
    ]
    return "; ".join(shown)


def _frame(row: Row, style: Style) -> str:
    parts = [f"{style.coloured(row['frame'], _BOLD)} {row['length']} B", *row["flags"]]
    if "settings" in row:
        parts += [f"{name}={value}" for name, value in row["settings"].items()]
    if "increment" in row:
        parts.append(f"+{row['increment']}" + ("" if row["stream"] else " of the connection"))
    for key, name in (("last_stream", "last stream"), ("promised_stream", "promised stream")):
        if key in row:
            parts.append(f"{name} {row[key]}")
    if "error_code" in row:
        parts.append(style.coloured(row["error_code"], _RED))
    parts += [_shown(row[key], _DETAIL) for key in ("debug", "malformed") if row.get(key)]
    if "headers" in row:
        parts.append(f"{row['kind']}: {_headers(row)}")
    return " ".join(parts)


def _begin(row: Row, style: Style) -> str:
    begins = "is open" if row.get("joined") else "begins"
    return f"{_method(row, style)}{begins}  {_headers(row, without=_OF_EVERY_CALL)}"


def _message(row: Row, style: Style) -> str:
    parts = [f"{_method(row, style)}#{row['index']} {row['length']} B"]
    if "compressed" in row:
        parts.append(f"({_shown(row['compressed'], 32)})")
    if "undecoded" in row:
        parts.append(_shown(row["undecoded"], _DETAIL))
    if "text" in row:
        parts.append(_shown(row["text"], _BODY) + (" (cut)" if row.get("cut") else ""))
    return " ".join(parts)


def _end(row: Row, style: Style) -> str:
    status = row["status"]
    parts = [_method(row, style) + style.coloured(status, _GREEN if status == "OK" else _RED)]
    if row["detail"]:
        parts.append(f'"{_shown(row["detail"], _DETAIL)}"')
    parts.append(
        (f"{row['duration_ms']:.1f} ms, " if "duration_ms" in row else "")
        + f"{row['request_messages']} sent, {row['response_messages']} received;"
    )
    if row["ended_by"] == "link":
        parts.append("the connection has closed")
    else:
        parts.append(f"ended by {row['ended_by']}: {row['frame']}")
    if "error_code" in row:
        parts.append(row["error_code"])
    if "reset_by" in row:
        parts.append(f"(then RST_STREAM {row['reset_code']} by {row['reset_by']})")
    if "origin" in row:
        cause = f", {_shown(row['cause'], 64)}" if row["cause"] else ""
        parts.append(f"(status from {_shown(row['origin'], 64)}{cause})")
    return " ".join(parts)


def _other(row: Row, style: Style) -> str:
    match row["event"]:
        case "open":
            is_open = " is open" if row.get("joined") else ""
            return f"connection with {_shown(row['peer'], _VALUE)} {row['tls'] or 'plaintext'}{is_open}"
        case "close":
            return f"connection with {_shown(row['peer'], _VALUE)} closed"
        case "left_out":
            return f"{_method(row, style)}... {row['rows']} rows of this call were not held"
        case _:
            return style.coloured(f"unreadable ({row['what']}): {_shown(row['reason'], _DETAIL)}", _RED)


_TEXTS = {"frame": _frame, "begin": _begin, "message": _message, "end": _end}
