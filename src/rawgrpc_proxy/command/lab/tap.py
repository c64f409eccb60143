"""`rawgrpc-proxy tap`: a proxy before one upstream that shows each frame, or each message, while it passes.

Lines are written by a thread (`observe/line_writer.py`): a terminal or a disk that
is slow loses lines, which are counted where they are missing, and slows no call. Rows, and what is left out of them,
are made in `lab/rows.py`.
"""

import argparse
import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import IO

import attrs
import trio

from rawgrpc_proxy.client.client import Client
from rawgrpc_proxy.command.argument_types import checked
from rawgrpc_proxy.command.lab.one_upstream import (
    Links,
    OneUpstream,
    Pipe,
    add_one_upstream,
    cancel_on_signal,
    style_of,
    the_other_way,
    until_signal,
)
from rawgrpc_proxy.command.lab.tap_attach import AdminUrl, Lost, attached
from rawgrpc_proxy.command.lab.tap_wishes import SIDES, TapWishes, default_side
from rawgrpc_proxy.errors import ConfigError, RpcError
from rawgrpc_proxy.lab.descriptors import by_descriptors, check_protobuf, decoder_of
from rawgrpc_proxy.lab.filters import Filter
from rawgrpc_proxy.lab.late_views import LateViews
from rawgrpc_proxy.lab.readable import MAX_READABLE_BYTES, Decoder, guessed
from rawgrpc_proxy.lab.redact import Redactor
from rawgrpc_proxy.lab.reflection import reflected
from rawgrpc_proxy.lab.row_parts import decoded
from rawgrpc_proxy.lab.row_text import json_of, missing_json, missing_text, text_of
from rawgrpc_proxy.lab.rows import Mode, Row, Rows
from rawgrpc_proxy.net.late_taps import current_late_taps
from rawgrpc_proxy.observe.call_log import CallLog
from rawgrpc_proxy.observe.line_writer import LineFile, LineWriter, unbuffered
from rawgrpc_proxy.observe.record import CallRecord
from rawgrpc_proxy.observe.words import printable

_WRITE_EVERY_S = 0.01
_REFLECTION_TIMEOUT_S = 5.0
_STDOUT = "-"
_NOT_ATTACHED = {
    "--reflection": "the upstreams are not reached from here; a --descriptor-set is",
    "--show-secrets": "secrets do not leave the proxy",
}


def add_tap(parser: argparse.ArgumentParser) -> None:
    """Add its options."""
    parser.description = (
        "Accept gRPC calls, forward them to one upstream, and show what passes: each message, or each frame, while it "
        "passes, and who ended each call. Or show what passes in a proxy that runs already (--attach). Secrets in "
        "metadata are left out. SIGINT or SIGTERM ends it."
    )
    add_one_upstream(parser, required=False)
    parser.add_argument_group("a proxy that runs already").add_argument(
        "--attach",
        type=checked(AdminUrl.parse),
        metavar="ADMIN",
        help="show what passes in a running serve instead: its admin listener, HOST:PORT, unix:PATH or a URL; the "
        "settings have to allow it (tap = true in [admin])",
    )
    group = parser.add_argument_group("what is shown")
    how = group.add_mutually_exclusive_group()
    how.add_argument("--messages", action="store_true", help="a line for each message (this is the default)")
    how.add_argument("--frames", action="store_true", help="a line for each frame of HTTP/2")
    add = group.add_argument
    add(
        "--side",
        choices=tuple(SIDES),
        help="which connections to show: callers', the upstream's, or both (default: downstream for messages, both for "
        "frames)",
    )
    add(
        "--filter",
        action="append",
        default=[],
        metavar="WORDS",
        help="show only calls for which all of these hold: method=/pkg.Service/*, peer=10.0.*, metadata.NAME=VALUE, "
        "status=UNAVAILABLE; != for the opposite; repeat it for calls that match another one. By status a call is "
        "shown when it has ended",
    )
    add("--decode", action="store_true", help="show what is in messages, guessed without their schema")
    add(
        "--descriptor-set",
        type=Path,
        metavar="FILE",
        help="show what is in messages, by the schema in this file (of protoc --include_imports --descriptor_set_out)",
    )
    add(
        "--reflection",
        action="store_true",
        help="the same, by the schema that the upstream tells (gRPC server reflection); it is asked once, at the start",
    )
    add(
        "--redact",
        action="append",
        default=[],
        metavar="NAME",
        help="leave out the values of this metadata, too; repeat it for more (default: authorization, cookies, and "
        "names with words like token in them)",
    )
    add("--show-secrets", action="store_true", help="leave nothing out")
    add(
        "-o",
        "--output",
        metavar="FILE",
        help="write JSON Lines there as well; '-' writes them to standard output, in place of lines for people",
    )
    parser.set_defaults(command=partial(tap, parser=parser))


def tap(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Run until a signal comes, and answer the exit code. Raises `ConfigError`."""
    attaches = the_other_way(options, parser, "attach", "--attach")
    if attaches and (options.reflection or options.show_secrets):
        option = "--reflection" if options.reflection else "--show-secrets"
        raise ConfigError(f"{option} does not go with --attach: {_NOT_ATTACHED[option]}")
    decode: Decoder | None = guessed if options.decode or options.reflection else None
    if options.descriptor_set is not None:
        decode = by_descriptors(options.descriptor_set)
    if options.reflection:
        check_protobuf()
    mode: Mode = "frames" if options.frames else "messages"
    with contextlib.ExitStack() as files:
        outputs = list(_outputs(options.output, files))

        def write(row: Row) -> None:
            for each in outputs:
                each.writer.add(each.line(row))

        side = options.side or default_side(mode)
        if attaches:
            wishes = TapWishes(
                mode=mode,
                side=side,
                filters=options.filter,
                redact=options.redact,
                payload=decode is not None,
            )
            try:
                return trio.run(_watch, AdminUrl.parse(options.attach), wishes, decode, write, outputs)
            finally:
                _flush(outputs)
        rows = Rows(
            write,
            mode=mode,
            filters=[Filter.parse(text) for text in options.filter],
            redactor=Redactor(more=options.redact, show_all=options.show_secrets),
            decode=decode,
            hears_records=True,
        )
        views = LateViews(
            rows.tell,
            sides=SIDES[side],
            payload_bytes=0 if decode is None else MAX_READABLE_BYTES,
        )
        log = _Log(rows)
        links = Links.of(options)
        house = OneUpstream(links, log=log)
        asks = Client(links.upstream, ssl_context=links.upstream_tls) if options.reflection else None
        tell = partial(print, file=sys.stderr if options.output == _STDOUT else sys.stdout, flush=True)
        try:
            trio.run(_run, house, views, log, rows, outputs, asks, tell)
        finally:
            rows.settle(math.inf)
            log.flush()
            _flush(outputs)
    return 0


def _flush(outputs: Iterable["_Output"]) -> None:
    for each in outputs:
        each.writer.flush()
    dropped = sum(each.writer.dropped_lines for each in outputs)
    if dropped:
        print(f"rawgrpc-proxy: {dropped} lines were not written in time", file=sys.stderr)


async def _watch(
    url: AdminUrl,
    wishes: TapWishes,
    decode: Decoder | None,
    write: Callable[[Row], None],
    outputs: Iterable["_Output"],
) -> int:
    """Show what a running proxy tells, until a signal comes, or it has ended. Answers the exit code.

    Raises `BrokenPipeError`, in a group, if nobody reads what is shown: it would only cost the proxy.
    """
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with attached(url, wishes) as rows, trio.open_nursery() as nursery:
            nursery.start_soon(cancel_on_signal, signals, nursery.cancel_scope)
            for each in outputs:
                nursery.start_soon(partial(each.writer.run, interval_s=_WRITE_EVERY_S))
            try:
                async for row in rows:
                    if any(each.pipe.is_broken for each in outputs):
                        raise BrokenPipeError
                    with contextlib.suppress(KeyError, TypeError, ValueError):  # a row of another version's
                        write(row if decode is None else decoded(row, decode))
            except Lost:
                print(
                    "rawgrpc-proxy: the admin listener tells nothing more: its proxy has ended",
                    file=sys.stderr,
                )
                nursery.cancel_scope.cancel()
                return 1
    return 0


@attrs.frozen
class _Output:
    pipe: Pipe
    writer: LineWriter
    line: Callable[[Row], str]

    @classmethod
    def to(
        cls, file: LineFile | IO[str], missing: Callable[[int], str], line: Callable[[Row], str]
    ) -> "_Output":
        pipe = Pipe(file)
        return cls(pipe, LineWriter(pipe, missing), line)


def _outputs(output: str | None, files: contextlib.ExitStack) -> Iterable[_Output]:
    """Where rows are written, and how."""
    if output != _STDOUT:
        style = style_of(sys.stdout)
        yield _Output.to(unbuffered(sys.stdout), missing_text, partial(text_of, style=style))
    if output is not None:
        yield _Output.to(_opened(output, files), missing_json, json_of)


def _opened(output: str, files: contextlib.ExitStack) -> LineFile | IO[str]:
    if output == _STDOUT:
        return unbuffered(sys.stdout)
    try:
        return files.enter_context(Path(output).open("w", encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--output: {output}: {error.strerror}") from None


class _Log(CallLog):
    """Says on standard error what goes wrong with connections; of calls the rows tell."""

    wants = frozenset({"extras"})

    def __init__(self, rows: Rows) -> None:
        super().__init__(file=unbuffered(sys.stderr))
        self.wants = frozenset({"extras"})
        self._rows = rows

    def call_ended(self, record: CallRecord) -> None:
        self._rows.call_ended(record)


async def _run(
    house: OneUpstream,
    views: LateViews,
    log: CallLog,
    rows: Rows,
    outputs: list[_Output],
    asks: Client | None,
    tell: Callable[[str], None],
) -> None:
    """`asks` is to ask the upstream for its schema, on a connection that nobody sees; `tell` where it listens."""
    async with until_signal(house, log) as nursery:
        if asks is not None:
            rows.decode = await _schema_by(asks)
        for _ in current_late_taps().attach(views):
            pass  # there is no connection yet
        tell(f"listening on {await house.start(nursery)}")
        nursery.start_soon(_settle, rows)
        for each in outputs:
            nursery.start_soon(partial(each.writer.run, interval_s=_WRITE_EVERY_S))


async def _schema_by(asking: Client) -> Decoder:
    """A decoder by what the upstream tells of itself; one that guesses if it tells nothing, which is said."""
    problem = f"no answer within {_REFLECTION_TIMEOUT_S:g} s"
    with trio.move_on_after(_REFLECTION_TIMEOUT_S):
        try:
            async with asking as client:
                return decoder_of(await reflected(client), "the upstream's reflection")
        except (RpcError, ConfigError) as error:
            problem = str(error)
    print(
        f"rawgrpc-proxy: no schema by reflection, messages are guessed: {printable(problem)}", file=sys.stderr
    )
    return guessed


async def _settle(rows: Rows) -> None:
    while True:
        await trio.sleep(_WRITE_EVERY_S)
        rows.settle(time.time() - _WRITE_EVERY_S)
