"""The page on the admin listener says what is so."""

import re
import shlex
from pathlib import Path

import pytest

from tests.command.admin.house import PAGE, a_house, run

TEXT = (Path(__file__).parents[3] / "docs" / "admin.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(GET|POST|DELETE) (/\w*)` \| (.*) \|$", TEXT, re.MULTILINE)
COMMANDS = re.findall(r"^curl .*$", TEXT, re.MULTILINE)


def test_the_table_has_every_endpoint_and_each_is_one(tmp_path: Path) -> None:
    for name, content in PAGE.items():
        (tmp_path / name).write_bytes(content)

    async def main() -> None:
        async with a_house(tmp_path) as house:
            listed = re.findall(
                r"^  (GET|POST|DELETE) +(/\w*)", (await house.ask("/nothing")).text, re.MULTILINE
            )
            assert sorted(listed) == sorted((method, path) for method, path, _ in ROWS)
            for _, path, _ in ROWS:
                # HEAD of what is a GET is answered at once, and refused for all others.
                assert ((await house.ask(path, "HEAD")).status == 200) == (("GET", path) in listed)
            for path in re.findall(r"`(/[\w.]+)`", next(row for _, path, row in ROWS if path == "/")):
                assert (await house.ask(path)).status == 200

    run(main)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_ask_for_what_there_is(command: str) -> None:
    words = shlex.split(command)
    path = words[-1].removeprefix("http://127.0.0.1:9901")
    assert path.startswith("/")
    method = next((each for each in ("POST", "DELETE") if each in words), "HEAD" if "-N" in words else "GET")
    if "--data-binary" in words:
        method = "POST"

    async def main() -> None:
        async with a_house() as house:
            house.source.may_set_faults = True
            assert (await house.ask(path, method)).status in {200, 202}

    run(main)
