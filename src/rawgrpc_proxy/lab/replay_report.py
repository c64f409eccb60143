"""What came of a replay, as a table for people and as JUnit XML for CI. Pure."""

import math
import re
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as ET

from rawgrpc_proxy.lab.answers import CallSeen
from rawgrpc_proxy.lab.events import Sender
from rawgrpc_proxy.lab.replay import Verdict

_HEADINGS = ("link", "call", "outcome", "messages", "bytes", "ms", "")
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def table(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """A line for each call, recorded -> now where the two differ, and a line for each difference below it."""
    rows = [_row(verdict) for verdict in verdicts]
    widths = [max(len(row[n]) for row in [_HEADINGS, *rows]) for n in range(len(_HEADINGS))]
    for place, row in enumerate([_HEADINGS, *rows]):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        if place:
            yield from (f"      {each}" for each in verdicts[place - 1].differences)
    different = sum(bool(verdict.differences) for verdict in verdicts)
    calls = sum(verdict.before is not None for verdict in verdicts)
    yield f"{calls} calls replayed: " + ("all as recorded" if not different else f"{different} differ")


def _row(verdict: Verdict) -> tuple[str, ...]:
    mark = "DIFFERS" if verdict.differences else "same"
    before, now = verdict.before, verdict.now
    if before is None:
        return (str(verdict.link), verdict.name, "", "", "", "", mark)
    return (
        str(verdict.link),
        verdict.name,
        _both(before.outcome, None if now is None else now.outcome),
        _both(_count(before), None if now is None else _count(now)),
        _both(_bytes(before), None if now is None else _bytes(now)),
        _both(_milliseconds(before), None if now is None else _milliseconds(now)),
        mark,
    )


def _count(call: CallSeen) -> str:
    return str(len(call.messages(Sender.SERVER)))


def _bytes(call: CallSeen) -> str:
    return str(sum(len(message.payload) for message in call.messages(Sender.SERVER)))


def _milliseconds(call: CallSeen) -> str:
    return "-" if math.isinf(call.seconds) else f"{call.seconds * 1000:.0f}"


def _both(before: str, now: str | None) -> str:
    return f"{before} -> {now or 'none'}" if before != now else before


def junit(name: str, verdicts: Sequence[Verdict]) -> bytes:
    """The same as a test suite, with a case for each call, as CI servers read it."""
    suite = ET.Element(
        "testsuite",
        name=_xml(name),
        tests=str(len(verdicts)),
        failures=str(sum(bool(verdict.differences) for verdict in verdicts)),
    )
    for verdict in verdicts:
        case = ET.SubElement(suite, "testcase", classname=f"link {verdict.link}", name=_xml(verdict.name))
        if verdict.now is not None and not math.isinf(verdict.now.seconds):
            case.set("time", f"{verdict.now.seconds:.6f}")
        if verdict.differences:
            text = _xml("\n".join(verdict.differences))
            failure = ET.SubElement(case, "failure", message=_xml(verdict.differences[0]))
            failure.text = text
    xml: bytes = ET.tostring(suite, encoding="utf-8", xml_declaration=True)
    return xml + b"\n"


def _xml(text: str) -> str:
    """A peer's text may have characters that no XML document can hold."""
    return _NOT_IN_XML.sub("\ufffd", text)
