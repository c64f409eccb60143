"""`rawgrpc-proxy lint`: names the end that breaks a rule of HTTP/2 or gRPC.

It looks at what passes a proxy of its own before one upstream, or a `serve` that runs, or at a recording. Each kind of
finding is a line when it is first seen, and a row of the table at the end, with its count. What it finds is in
`lab/lint/`; what can be done about it, in docs/lint.md.
"""

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, TextIO

import trio

from rawgrpc_proxy.command.argument_types import checked
from rawgrpc_proxy.command.lab.lint_attach import WISHES, Totals
from rawgrpc_proxy.command.lab.one_upstream import (
    Links,
    OneUpstream,
    Pipe,
    add_one_upstream,
    cancel_on_signal,
    the_other_way,
    until_signal,
)
from rawgrpc_proxy.command.lab.tap_attach import AdminUrl, Lost, attached
from rawgrpc_proxy.config_words import meant
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.lab.lint.findings import Counted, Finding, Findings
from rawgrpc_proxy.lab.lint.linter import Linter
from rawgrpc_proxy.lab.lint.rules import RULES, Severity
from rawgrpc_proxy.lab.recorded_views import tell_recorded
from rawgrpc_proxy.lab.recording import records
from rawgrpc_proxy.lab.views import Views
from rawgrpc_proxy.observe.call_log import CallLog
from rawgrpc_proxy.observe.line_writer import LineWriter, unbuffered
from rawgrpc_proxy.observe.record import CallRecord

_FOUND = 1
_NOT_ALL_SEEN = 2
_STDOUT = "-"
_FAIL_ON = {"warning": Severity.WARNING, "error": Severity.ERROR, "never": None}
_HEAD = ("count", "severity", "rule", "whose", "side", "method", "section")


def add_lint(parser: argparse.ArgumentParser) -> None:
    """Add its options."""
    parser.description = (
        "Accept gRPC calls, forward them to one upstream, and name whoever breaks a rule of HTTP/2 or gRPC: a line for "
        "each finding when it is first seen, a table at the end. SIGINT or SIGTERM ends it. Or look at what passes in "
        "a proxy that runs already (--attach), or at what `record` has written. The exit code is 0 if no errors were "
        "found (see --fail-on), 1 if there were some, 2 if it could not look, or not to the end. docs/lint.md explains "
        "each rule."
    )
    parser.add_argument(
        "recording",
        nargs="?",
        metavar="FILE",
        help="a recording: look at what is in it, instead of what passes",
    )
    add_one_upstream(parser, required=False)
    parser.add_argument_group("a proxy that runs already").add_argument(
        "--attach",
        type=checked(AdminUrl.parse),
        metavar="ADMIN",
        help="look at what passes in a running serve instead: its admin listener, HOST:PORT, unix:PATH or a URL; the "
        "settings have to allow it (tap = true in [admin])",
    )
    add = parser.add_argument_group("what counts").add_argument
    add(
        "--fail-on",
        choices=tuple(_FAIL_ON),
        default="error",
        help="how bad a finding must be for the exit code to be 1 (default: error)",
    )
    add(
        "--ignore",
        action="append",
        default=[],
        metavar="RULE",
        help="do not tell of this rule, for example user-agent-missing; repeat it for more",
    )
    add(
        "--json",
        metavar="FILE",
        help="write all findings there at the end, as one JSON object; '-' writes it to standard output, and the lines "
        "for people to standard error",
    )
    parser.set_defaults(command=partial(lint, parser=parser))


class Looked(Protocol):
    """What was looked at."""

    links_seen: int
    streams_seen: int


def lint(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Run until a signal comes, or to the end of a recording; answer the exit code. Raises `ConfigError`."""
    attaches = options.attach is not None
    if attaches and options.recording is not None:
        raise ConfigError("there is a recording to look at, and --attach: one of them")
    name, option = ("attach", "--attach") if attaches else ("recording", "a recording, or --attach ADMIN")
    is_own = not the_other_way(options, parser, name, option)
    unknown = [rule for rule in options.ignore if rule not in RULES]
    if unknown:
        raise ConfigError(
            f"--ignore: there is no rule {unknown[0]!r}{meant(unknown[0], RULES)}; docs/lint.md has them all"
        )
    people = sys.stderr if options.json == _STDOUT else sys.stdout
    pipe = Pipe(unbuffered(people))
    writer = LineWriter(pipe, _missing)
    findings = Findings(lambda finding: writer.add(_line(finding)))
    looked: Looked
    with contextlib.ExitStack() as files:
        file = None if options.json is None else files.enter_context(_opened(options.json))
        if attaches:
            looked, is_complete = _look_on(options, findings, writer, pipe)
        else:
            looked, is_complete = _look(options, findings, writer, people, is_own=is_own), True
        if file is not None:
            json.dump(as_json(findings.counted, looked), file, indent=1, ensure_ascii=False)
            file.write("\n")
    limit = _FAIL_ON[options.fail_on]
    worst = findings.worst
    if limit is not None and worst is not None and worst >= limit:
        return _FOUND
    return 0 if is_complete else _NOT_ALL_SEEN


def _look(
    options: argparse.Namespace, findings: Findings, writer: LineWriter, people: TextIO, *, is_own: bool
) -> Looked:
    """At a recording, or at what passes a proxy of its own. Raises `ConfigError`."""
    linter = Linter(findings, ignore=frozenset(options.ignore))
    log = _Log(file=unbuffered(sys.stderr))
    house = OneUpstream(Links.of(options), Views(linter.tell), log) if is_own else None
    if house is None:
        tell_recorded(records(options.recording), linter.tell)
    try:
        if house is not None:
            trio.run(_run, house, log, writer, people)
    finally:
        log.flush()
        if house is None or house.has_begun:
            _sum_up(findings, linter, writer)
        writer.flush()
    return linter


def _look_on(
    options: argparse.Namespace, findings: Findings, writer: LineWriter, pipe: Pipe
) -> tuple[Looked, bool]:
    """At what passes in a running proxy; answer as well whether it was looked at to the end. Raises `ConfigError`."""
    totals = Totals(findings, lambda text: writer.add(f"{text}\n"), ignore=frozenset(options.ignore))
    is_complete = trio.run(_attach, AdminUrl.parse(options.attach), totals, writer, pipe)
    _sum_up(findings, totals, writer)
    writer.flush()
    if not is_complete:
        print(
            "rawgrpc-proxy: the admin listener tells nothing more: its proxy has ended, and what passed last was not "
            "looked at",
            file=sys.stderr,
        )
    return totals, is_complete


def _sum_up(findings: Findings, looked: Looked, writer: LineWriter) -> None:
    for line in table(findings.counted):
        writer.add(f"{line}\n")
    writer.add(f"looked at {looked.streams_seen} streams on {looked.links_seen} connections\n")


def table(counted: Sequence[Counted]) -> list[str]:
    """The findings in columns, with a head; one line that says so if there are none."""
    if not counted:
        return ["no findings"]
    rows = [_HEAD, *(_row(each) for each in counted)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return ["", *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows), _sum(counted)]


def as_json(counted: Iterable[Counted], looked: Looked) -> dict[str, object]:
    """The findings for programs: each with its count, and its first case."""
    return {
        "version": 1,
        "connections": looked.links_seen,
        "streams": looked.streams_seen,
        "findings": [
            {
                "rule": each.first.rule.id,
                "severity": each.first.rule.severity.word,
                "section": each.first.rule.section,
                "text": each.first.rule.text,
                "who": each.first.who,
                "side": each.first.side,
                "method": each.first.method or None,
                "count": each.count,
                "first": {
                    "time": each.first.at,
                    "peer": each.first.link.peer,
                    "connection": each.first.link.number,
                    "stream": each.first.stream_id,
                    "seen": each.first.seen,
                    **({} if each.first.worker is None else {"worker": each.first.worker}),
                },
            }
            for each in counted
        ],
    }


def _row(each: Counted) -> tuple[str, ...]:
    finding, rule = each.first, each.first.rule
    method = finding.method or "(connection)"
    return str(each.count), rule.severity.word, rule.id, finding.who, finding.side, method, rule.section


def _sum(counted: Sequence[Counted]) -> str:
    numbers = {
        severity: sum(each.count for each in counted if each.first.rule.severity is severity)
        for severity in reversed(Severity)
    }
    words = ", ".join(f"{count} {severity.word}{'s' * (count != 1)}" for severity, count in numbers.items())
    return f"{words}; docs/lint.md says what to do"


def _line(finding: Finding) -> str:
    rule = finding.rule
    at = time.strftime("%H:%M:%S", time.localtime(finding.at))
    where = f"{finding.link.peer} stream {finding.stream_id}" if finding.stream_id else finding.link.peer
    method = f" {finding.method}" if finding.method else ""
    worker = "" if finding.worker is None else f"worker {finding.worker}, "
    return (
        f"{at} {rule.severity.word} {rule.id}: the {finding.who} ({worker}{finding.side} {where}){method}: "
        f"{finding.seen} [{rule.section}]\n"
    )


def _missing(count: int) -> str:
    return f"{count} lines were not written in time\n"


def _opened(name: str) -> contextlib.AbstractContextManager[TextIO]:
    if name == _STDOUT:
        return contextlib.nullcontext(sys.stdout)
    try:
        return Path(name).open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json: {name}: {error.strerror}") from None


class _Log(CallLog):
    """Says on standard error what goes wrong with connections; of calls there is nothing to say."""

    wants = frozenset()

    def call_ended(self, record: CallRecord) -> None:
        """It is no finding."""


async def _run(house: OneUpstream, log: CallLog, writer: LineWriter, people: TextIO) -> None:
    async with until_signal(house, log) as nursery:
        print(f"listening on {await house.start(nursery)}", file=people, flush=True)
        nursery.start_soon(writer.run)


async def _attach(url: AdminUrl, totals: Totals, writer: LineWriter, pipe: Pipe) -> bool:
    """Sum up what a running proxy finds, until a signal comes (True), or it has ended (False).

    Raises `ConfigError`, and `BrokenPipeError` in a group if nobody reads what is shown: it would only cost the proxy.
    """
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with attached(url, WISHES) as rows, trio.open_nursery() as nursery:
            nursery.start_soon(cancel_on_signal, signals, nursery.cancel_scope)
            nursery.start_soon(writer.run)
            try:
                async for row in rows:
                    if pipe.is_broken:
                        raise BrokenPipeError
                    with contextlib.suppress(KeyError, TypeError, ValueError):  # a row of another version's
                        totals.take(row)
            except Lost:
                nursery.cancel_scope.cancel()
                return False
    return True
