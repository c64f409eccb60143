"""What goes wrong with TLS, on either side of the proxy: what callers, the log and somebody else's calls say of it.

Each row is a fault, played with each library as caller, and as backend where the fault is there. Three promises: the
caller is told UNAVAILABLE, and why (a library that raises says what it has met); the log has one line of it, beside
those of calls, which says who has to do something; and a call of somebody else beside it goes through. Exit code 1 if
one is broken.
"""

from __future__ import annotations

import argparse
import fnmatch
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from interop.peers.catalogue import TLS_PEERS, left_out
from interop.shared.processes import Trouble
from interop.shared.progress import Progress
from interop.tls.files import write_files
from interop.tls.rows import ROWS, Row
from interop.tls.run import Cell, Site

#: What is shown of a text.
TEXT_LENGTH = 240


def main() -> int:
    """Play the rows; 0 if all promises were kept."""
    parser = argparse.ArgumentParser(prog="python -m interop.tls", description=__doc__)
    parser.add_argument("--engine", help="handed on to the proxy")
    parser.add_argument("--only", default="*", metavar="GLOB", help="rows, for example '*backend*'")
    given = parser.parse_args()
    rows = [row for row in ROWS if fnmatch.fnmatch(row.name, given.only)]
    if not rows:
        parser.error(f"no row is called {given.only}: {', '.join(row.name for row in ROWS)}")
    for name in TLS_PEERS:
        if reason := left_out(name):
            print(reason)
    libraries = [name for name in TLS_PEERS if not left_out(name)]
    start = time.monotonic()
    progress = Progress(len(rows))
    table: dict[str, dict[str, Cell]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        with Site(Path(folder), given.engine) as site, ThreadPoolExecutor(len(libraries)) as threads:
            for done, row in enumerate(rows):
                progress.show(done, row.name)
                table[row.name] = play(site, row, libraries, threads)
    progress.end()
    for name, cells in table.items():
        print_row(name, cells)
    broken = sum(bool(cell.problems) for cells in table.values() for cell in cells.values())
    kept = sum(map(len, table.values())) - broken
    print(f"{kept} kept, {broken} broken, {time.monotonic() - start:.0f} s")
    return 1 if broken else 0


def play(site: Site, row: Row, libraries: Sequence[str], threads: ThreadPoolExecutor) -> dict[str, Cell]:
    """The row with all libraries at once."""

    def cell(library: str) -> Cell:
        try:
            return site.play(row, library)
        except Trouble as trouble:
            return Cell("", problems=[str(trouble)])

    return dict(zip(libraries, threads.map(cell, libraries), strict=True))


def print_row(name: str, cells: Mapping[str, Cell]) -> None:
    """A row of the table, and under it what was said, and which promises were broken."""
    signs = "  ".join(f"{library} {'!' if cell.problems else '='}" for library, cell in cells.items())
    print(f"{name:46} {signs}")
    for library, cell in cells.items():
        print(f"    {library:8} {_shown(cell.caller)}")
    for line in dict.fromkeys(_shown(line) for cell in cells.values() for line in cell.lines):
        print(f"    log      {line}")
    for library, cell in cells.items():
        for problem in cell.problems:
            print(f"    ! {library}: {problem}")
    print()


def _shown(text: str) -> str:
    """In one line, and equal where it is equal but for ports and times."""
    text = re.sub(r"(127\.0\.0\.1:)\d+", r"\1…", text.replace("\n", " "))
    text = re.sub(r"\d\.\d s\)", "… s)", text)
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"


if __name__ == "__main__":
    sys.exit(main())
