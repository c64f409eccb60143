"""`rawgrpc-proxy faults`: a proxy before one upstream that breaks calls and connections on purpose, by rules.

Each time a fault is done is a line, and what has come of each rule a row of the table at the end. What faults do is in
`lab/faults/`; docs/faults.md says how they are written.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import trio

from rawgrpc_proxy.command.lab.one_upstream import (
    Links,
    OneUpstream,
    add_one_upstream,
    style_of,
    until_signal,
)
from rawgrpc_proxy.config_words import meant
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.lab.faults.injector import Counts, Faults, Struck
from rawgrpc_proxy.lab.faults.presets import PRESETS
from rawgrpc_proxy.lab.faults.pump import with_faults
from rawgrpc_proxy.lab.faults.reading import FaultsFile, faults_of_file
from rawgrpc_proxy.lab.faults.writing import in_words
from rawgrpc_proxy.lab.row_text import Style
from rawgrpc_proxy.observe.call_log import CallLog
from rawgrpc_proxy.observe.line_writer import LineWriter, unbuffered
from rawgrpc_proxy.observe.record import CallRecord
from rawgrpc_proxy.observe.words import beginning, printable

_METHOD = 60
_HEAD = ("rule", "fitted", "struck", "what")
_DIM, _RED = "2", "31"


def add_faults(parser: argparse.ArgumentParser) -> None:
    """Add its options."""
    parser.description = (
        "Accept gRPC calls, forward them to one upstream, and break some of them, or their connections, on purpose: a "
        "line each time, a table at the end. SIGINT or SIGTERM ends it. docs/faults.md has the rules, and what callers "
        "see of each preset."
    )
    add_one_upstream(parser)
    group = parser.add_argument_group("what goes wrong")
    which = group.add_mutually_exclusive_group(required=True)
    which.add_argument("--preset", metavar="NAME", help="faults by name; --list shows them")
    which.add_argument("--rules", type=Path, metavar="FILE", help="faults, in TOML")
    which.add_argument("--list", action=_List, help="show the presets, and end")
    group.add_argument(
        "--seed",
        type=_seed,
        metavar="N",
        help="whence chance comes: the same number, the same faults (default: what FILE says, or 0)",
    )
    parser.set_defaults(command=faults)


def faults(options: argparse.Namespace) -> int:
    """Run until a signal comes, and answer the exit code. Raises `ConfigError`."""
    read = _read(options)
    seed = options.seed if options.seed is not None else read.seed or 0
    injector = Faults(seed=seed)
    injector.put(read.faults)
    style = style_of(sys.stdout)
    writer = LineWriter(unbuffered(sys.stdout), _missing)
    injector.watch(lambda struck: writer.add(_line(struck, time.time(), style)))
    log = _Log(file=unbuffered(sys.stderr))
    house = OneUpstream(Links.of(options), log=log, wrap=with_faults(injector))
    try:
        trio.run(partial(_run, house, log, writer, f"seed {seed}, rules: {', '.join(injector.counts)}"))
    finally:
        log.flush()
        if house.has_begun:
            for line in table(injector.counts, {rule.name: in_words(rule.fault) for rule in injector.rules}):
                writer.add(f"{line}\n")
        writer.flush()
    return 0


def table(counts: Mapping[str, Counts], words: Mapping[str, str]) -> list[str]:
    """What has come of each rule, in columns with a head."""
    rows = [_HEAD] + [
        (printable(name), str(each.fitted), str(each.struck), printable(words[name]))
        for name, each in counts.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return ["", *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)]


class _List(argparse.Action):
    """Shows the presets, and ends: nothing else is needed then."""

    def __init__(self, option_strings: list[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **settings)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        width = max(map(len, PRESETS))
        for name, preset in PRESETS.items():
            print(f"{name.ljust(width)}  {preset.about}")
        parser.exit(0)


def _seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def _read(options: argparse.Namespace) -> FaultsFile:
    if options.rules is not None:
        return faults_of_file(options.rules)
    preset = PRESETS.get(options.preset)
    if preset is None:
        raise ConfigError(
            f"--preset: there is no {options.preset!r}{meant(options.preset, PRESETS)}; known: {', '.join(PRESETS)}"
        )
    return FaultsFile(faults=preset.faults, seed=None)


def _line(struck: Struck, now: float, style: Style) -> str:
    """One line, whatever the peer has sent."""
    link = struck.link
    at = style.coloured(time.strftime("%H:%M:%S", time.localtime(now)), _DIM)
    what = style.coloured(printable(in_words(struck.fault)), _RED)
    stream = f" stream {struck.stream_id}" if struck.stream_id else ""
    method = f" {beginning(printable(struck.method), _METHOD)}" if struck.method else ""
    return f"{at} {printable(struck.name)}: {what}{method} ({link.side.value} {link.peer}{stream})\n"


def _missing(count: int) -> str:
    return f"{count} lines were not written in time\n"


class _Log(CallLog):
    """Says on standard error what goes wrong with connections beside what is meant to; of calls, nothing."""

    wants = frozenset()

    def call_ended(self, record: CallRecord) -> None:
        """It may be one of those that were broken."""


async def _run(house: OneUpstream, log: CallLog, writer: LineWriter, about: str) -> None:
    async with until_signal(house, log) as nursery:
        print(f"listening on {await house.start(nursery)}", flush=True)
        print(about, flush=True)
        nursery.start_soon(writer.run)
