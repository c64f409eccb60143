"""The matrix for people to read: signs by pair and case, why they are not `=`, and the sum of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from interop.matrix.cell import CANNOT, DIFFERS, EQUAL, FAILED, Cell

#: Cells by pair and case.
Rows = Mapping[str, Mapping[str, Cell]]


def print_matrix(rows: Rows) -> None:
    """The cells, and what the columns are."""
    columns = list(dict.fromkeys(case for row in rows.values() for case in row))
    width = max(map(len, rows))
    print(" " * width + "".join(f"{number:3}" for number in range(1, len(columns) + 1)))
    for pair, row in rows.items():
        print(f"{pair:{width}}" + "".join(f"{row[case].sign if case in row else ' ':>3}" for case in columns))
    print()
    for start in range(0, len(columns), 3):
        entries = [f"{start + at + 1:2} {name:32}" for at, name in enumerate(columns[start : start + 3])]
        print("".join(entries).rstrip())
    print()


def print_notes(rows: Rows) -> None:
    """Why cells are not `=`."""
    legend: dict[str, list[str]] = {}
    for pair, row in rows.items():
        for case, cell in row.items():
            if cell.sign == CANNOT:
                legend.setdefault(cell.notes[0], []).append(case)
            elif cell.sign == FAILED:
                print(f"{pair} {case}: equal, but " + ("known: " + cell.known if cell.known else "failed"))
                print("".join(f"    {note}\n" for note in cell.notes), end="")
            elif cell.sign == DIFFERS:
                print(f"{pair} {case}: differs")
                print("".join(f"    {note}\n" for note in cell.notes), end="")
    for reason, cases in legend.items():
        print(f"- {reason}: {', '.join(dict.fromkeys(cases))}")


def print_summary(rows: Rows, troubles: Sequence[str], seconds: float) -> None:
    """How many cells there are of each sign."""
    signs = Counter(cell.sign for row in rows.values() for cell in row.values())
    print(
        f"{signs[EQUAL]} equal, {signs[DIFFERS]} differ, {signs[FAILED]} fail alike, {signs[CANNOT]} impossible, "
        f"{len(troubles)} other troubles, {seconds:.0f} s"
    )
