"""Measures this project's proxy beside others: same backend, same load, in turns, medians of the rounds."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

from interop.bench import machine
from interop.bench.contenders.catalogue import all_contenders
from interop.bench.contenders.contender import Contender
from interop.bench.report import RESULTS, Results, markdown
from interop.bench.run import measured
from interop.shared.processes import Trouble
from interop.shared.programs import SYSTEM_PATH

INTERRUPTED = 130


def main() -> int:
    options = _options()
    os.environ["PATH"] = SYSTEM_PATH
    contenders = [
        contender
        for contender in all_contenders(options.pypy, options.before)
        if any(fnmatch.fnmatch(contender.name, glob) for glob in options.only)
    ]
    if options.list:
        return _list(contenders)
    if not contenders:
        print(
            f"no contender is called {' or '.join(options.only)}; --list tells their names", file=sys.stderr
        )
        return 2
    if reason := machine.missing_program():
        print(f"nothing can be measured: {reason}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    results, interrupted = measured(
        contenders, rounds=options.rounds, all_rounds=options.all_rounds, quick=options.quick
    )
    _write(results, options.out)
    if interrupted:
        return INTERRUPTED
    return int(
        any(
            results.troubles.get(contender.name) and results.values.get(contender.name)
            for contender in contenders
        )
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m interop.bench", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--only",
        action="append",
        metavar="GLOB",
        help="measure the contenders of these names alone; may be given again",
    )
    parser.add_argument(
        "--rounds", type=int, default=None, metavar="N", help="default: 3, and 1 with --quick"
    )
    parser.add_argument(
        "--all-rounds",
        action="store_true",
        help="make in every round what else is made once: many connections, open calls",
    )
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it works")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--pypy", default=os.environ.get("PYPY"), metavar="PATH",
        help="a PyPy 3.11 to run the proxy on as well (default: $PYPY)",
    )  # fmt: skip
    parser.add_argument(
        "--before", type=_checkout, metavar="DIR",
        help="another checkout of this project, whose proxies are measured as well, and compared with these",
    )  # fmt: skip
    parser.add_argument(
        "--list", action="store_true", help="tell the contenders and whether they can run here"
    )
    options = parser.parse_args()
    options.only = options.only or ["*"]
    if options.rounds is None:
        options.rounds = 1 if options.quick else 3
    return options


def _checkout(text: str) -> Path:
    folder = Path(text).resolve()
    if not (folder / "src" / "rawgrpc_proxy").is_dir():
        raise argparse.ArgumentTypeError(
            f"{folder} is no checkout of this project: it has no src/rawgrpc_proxy"
        )
    return folder


def _list(contenders: list[Contender]) -> int:
    for contender in contenders:
        try:
            print(f"{contender.name:18} {contender.version()}")
        except Trouble as trouble:
            print(f"{contender.name:18} cannot run: {trouble}")
    return 0


def _write(results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plots: list[str] = []
    if find_spec("matplotlib"):
        from interop.bench.plots import draw_all  # noqa: PLC0415 it is slow, and the benchmark can do without

        plots = draw_all(results, folder)
    else:
        results.facts["plots"] = "none, for matplotlib is not installed"
    text = markdown(results, plots)
    (folder / "results.json").write_text(results.as_json())
    (folder / "results.md").write_text(text)
    print(text)
    print(
        f"written to {folder}: results.json, results.md{''.join(f', {plot}' for plot in plots)}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(INTERRUPTED)
