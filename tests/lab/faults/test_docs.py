"""docs/faults.md says what there is, and its examples can be used."""

import re
import shlex
from pathlib import Path

import pytest

from rawgrpc_proxy.lab.faults.actions import OF_MESSAGES
from rawgrpc_proxy.lab.faults.presets import PRESETS
from rawgrpc_proxy.lab.faults.reading import faults_of_text
from rawgrpc_proxy.lab.faults.vocabulary import ACTIONS, FAULT, PLACES

TEXT = (Path(__file__).parents[3] / "docs" / "faults.md").read_text(encoding="utf-8")
PARTS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))


def rows(part: str) -> list[str]:
    """The first cells of the table, which are code."""
    return re.findall(r"^\| `(.*?)` \|", PARTS[part], re.MULTILINE)


def words(part: str) -> list[str]:
    """The words in these: of { reset = 1 } and "reset" it is reset."""
    return [re.split(r"[ =]", cell.strip('{} "'))[0] for cell in rows(part)[1:]]


def test_all_keys_places_actions_and_presets_are_in_their_tables() -> None:
    assert rows("Rules") == [*FAULT, "where", "do"]
    assert words("Where") == list(PLACES)
    assert sorted(words("What")) == sorted(ACTIONS)
    assert rows("Presets") == list(PRESETS)


@pytest.mark.parametrize("cell", rows("What")[1:])
def test_each_action_can_be_written_as_it_stands_there(cell: str) -> None:
    spec = ACTIONS[re.split(r"[ =]", cell.strip('{} "'))[0]]
    where = "where = { message = 1 }\n" if spec.cls in OF_MESSAGES else ""
    (fault,) = faults_of_text(f"[[faults]]\n{where}do = {cell}\n").faults
    assert isinstance(fault.do[0], spec.cls)


@pytest.mark.parametrize("cell", rows("Where")[1:])
def test_each_place_can_be_written_as_it_stands_there(cell: str) -> None:
    (fault,) = faults_of_text(f'[[faults]]\nwhere = {cell}\ndo = "cut"\n').faults
    assert isinstance(fault.where, PLACES[re.split(r"[ =]", cell.strip('{} "'))[0]].cls)


def test_what_else_may_stand_in_a_table_is_told_in_its_row() -> None:
    for part, specs in (("Where", PLACES), ("What", ACTIONS)):
        for line in PARTS[part].splitlines():
            cell = re.match(r"\| `(.*?)` \|", line)
            if cell is None or cell[1] in {"where", "do"}:
                continue
            spec = specs[re.split(r"[ =]", cell[1].strip('{} "'))[0]]
            assert not [key for key in spec.more if f"`{key}" not in line and f"{key} = " not in line], line


def test_the_rules_and_the_program_on_the_page_work() -> None:
    (toml,) = re.findall(r"^```toml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert len(faults_of_text(toml).faults) == 3
    (program,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    exec(compile(program, "docs/faults.md", "exec"), {})  # noqa: S102  # our own page


def test_numbers_of_calls_on_the_page_can_be_read() -> None:
    (row,) = re.findall(r"^\| `calls` \|.*$", TEXT, re.MULTILINE)
    examples = re.findall(r"`(\"[^`]*\"|\d+)`", row)
    assert len(examples) == 7
    for example in examples:
        faults_of_text(f'[[faults]]\ncalls = {example}\ndo = "cut"\n')


def test_the_commands_on_the_page_name_options_and_presets_that_there_are() -> None:
    from rawgrpc_proxy.command.cli import make_parser  # noqa: PLC0415

    parser = make_parser()
    for line in re.findall(r"^rawgrpc-proxy (.*)$", TEXT, re.MULTILINE):
        if "--list" not in line.split():
            options = parser.parse_args(shlex.split(line))
            assert options.preset is None or options.preset in PRESETS
