"""`rawgrpc-proxy lint`: a proxy before one upstream that names the end that breaks a rule of HTTP/2 or gRPC.

One process, without a supervisor. Each kind of finding is a line when it is first seen, and a row of the table at the
end, with its count. What it finds is in `lab/lint/`; what can be done about it, in docs/lint.md.
"""

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import IO

import attrs
import trio

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.config import ENGINES, Http2Settings
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.lab.link_view import Views
from rawgrpc_proxy.lab.lint.findings import Counted, Finding, Findings
from rawgrpc_proxy.lab.lint.linter import Linter
from rawgrpc_proxy.lab.lint.rules import RULES, Severity
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.tls import TlsContext
from rawgrpc_proxy.net.tls_files import listener_context, upstream_context
from rawgrpc_proxy.observe.call_log import CallLog
from rawgrpc_proxy.observe.line_writer import LineWriter, unbuffered
from rawgrpc_proxy.observe.record import CallRecord
from rawgrpc_proxy.proxy.transparent import transparent_handler
from rawgrpc_proxy.server.server import Server
from rawgrpc_proxy.upstream.pool import Pool
from rawgrpc_proxy.upstream.target import Target

_FOUND = 1
_FAIL_ON = {"warning": Severity.WARNING, "error": Severity.ERROR, "never": None}
_HEAD = ("count", "severity", "rule", "whose", "side", "method", "section")


def add_lint(parser: argparse.ArgumentParser) -> None:
    """Add its options."""
    parser.description = (
        "Accept gRPC calls, forward them to one upstream, and name whoever breaks a rule of HTTP/2 or gRPC: a line for "
        "each finding when it is first seen, a table at the end. SIGINT or SIGTERM ends it; the exit code is 1 then if "
        "there were errors. docs/lint.md explains each rule."
    )
    add = parser.add_argument_group("where calls come from, and go").add_argument
    add(
        "--listen",
        default="127.0.0.1:0",
        metavar="ADDRESS",
        help="where to accept calls: HOST:PORT, :PORT or unix:PATH (default: a free port of this machine)",
    )
    add("--upstream", required=True, metavar="ADDRESS", help="where they go: HOST:PORT or unix:PATH")
    add("--tls-cert", metavar="FILE", help="the certificate that callers get (PEM)")
    add("--tls-key", metavar="FILE", help="its private key")
    add(
        "--upstream-tls", action="store_true", help="speak TLS to the upstream, with the system's authorities"
    )
    add(
        "--upstream-ca", metavar="FILE", help="speak TLS to the upstream, and trust these authorities instead"
    )
    add(
        "--engine",
        choices=ENGINES,
        default=Http2Settings().engine,
        help="which implementation of HTTP/2 to use",
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
    add("--json", metavar="FILE", help="write all findings there at the end, as one JSON object")
    parser.set_defaults(command=lint)


def lint(options: argparse.Namespace) -> int:
    """Run until a signal comes, and answer the exit code. Raises `ConfigError`."""
    unknown = [rule for rule in options.ignore if rule not in RULES]
    if unknown:
        raise ConfigError(f"--ignore: there is no rule {unknown[0]!r}; docs/lint.md has them all")
    writer = LineWriter(unbuffered(sys.stdout), _missing)
    findings = Findings(lambda finding: writer.add(_line(finding)))
    linter = Linter(findings, ignore=frozenset(options.ignore))
    with contextlib.ExitStack() as files:
        file = None if options.json is None else files.enter_context(_opened(options.json))
        log = _Log(file=unbuffered(sys.stderr))
        house = _House.of(options, Views(linter.tell), log)
        try:
            trio.run(_run, house, writer)
        finally:
            log.flush()
            for line in table(findings.counted):
                writer.add(f"{line}\n")
            writer.add(f"looked at {linter.streams_seen} streams on {linter.links_seen} connections\n")
            writer.flush()
        if file is not None:
            json.dump(as_json(findings.counted, linter), file, indent=1, ensure_ascii=False)
            file.write("\n")
    limit = _FAIL_ON[options.fail_on]
    worst = findings.worst
    return _FOUND if limit is not None and worst is not None and worst >= limit else 0


def table(counted: Sequence[Counted]) -> list[str]:
    """The findings in columns, with a head; one line that says so if there are none."""
    if not counted:
        return ["no findings"]
    rows = [_HEAD, *(_row(each) for each in counted)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return ["", *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows), _sum(counted)]


def as_json(counted: Iterable[Counted], linter: Linter) -> dict[str, object]:
    """The findings for programs: each with its count, and its first case."""
    return {
        "version": 1,
        "connections": linter.links_seen,
        "streams": linter.streams_seen,
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
    return (
        f"{at} {rule.severity.word} {rule.id}: the {finding.who} ({finding.side} {where}){method}: {finding.seen} "
        f"[{rule.section}]\n"
    )


def _missing(count: int) -> str:
    return f"{count} lines were not written in time\n"


def _opened(name: str) -> IO[str]:
    try:
        return Path(name).open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json: {name}: {error.strerror}") from None


class _Log(CallLog):
    """Says on standard error what goes wrong with connections; of calls there is nothing to say."""

    wants = frozenset()

    def call_ended(self, record: CallRecord) -> None:
        """It is no finding."""


@attrs.frozen(kw_only=True)
class _House:
    """What runs, checked; nothing is open yet."""

    listen: str
    server: Server
    pool: Pool
    log: CallLog
    listener_tls: TlsContext | None

    @classmethod
    def of(cls, options: argparse.Namespace, views: Views, log: CallLog) -> "_House":
        """By the options. Raises `ConfigError`."""
        if (options.tls_cert is None) != (options.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key go together")
        listener = None
        if options.tls_cert is not None:
            listener = listener_context(options.tls_cert, options.tls_key)
        upstream_tls = None
        if options.upstream_tls or options.upstream_ca is not None:
            upstream_tls = upstream_context(ca=options.upstream_ca)
        Address.parse(options.upstream)
        settings = Http2Settings(engine=options.engine)
        pool = Pool(settings=settings, observer=log, tap=views)
        target = pool.target(options.upstream, ssl_context=upstream_tls)

        def director(context: CallContext, _method: str) -> tuple[CallContext, Target]:
            return context, target

        server = Server(
            unknown_service_handler=transparent_handler(director), settings=settings, observer=log, tap=views
        )
        return cls(listen=options.listen, server=server, pool=pool, log=log, listener_tls=listener)


async def _run(house: _House, writer: LineWriter) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with house.pool, trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_signal, signals, nursery.cancel_scope)
            nursery.start_soon(house.log.run)
            serve = partial(house.server.serve, house.listen, ssl_context=house.listener_tls)
            address = await nursery.start(serve)
            print(f"listening on {address}", flush=True)
            nursery.start_soon(writer.run)


async def _cancel_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel()
