"""The man page is what the parser says, and what reads man pages finds nothing wrong with it."""

import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rawgrpc_proxy.command.arguments import commands_of
from rawgrpc_proxy.command.cli import make_parser

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "rawgrpc-proxy.1"


def output_of(*command: str) -> str:
    """All that it prints, or says is wrong."""
    path = shutil.which(command[0])
    if path is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([path, *command[1:]], capture_output=True, text=True, timeout=60, check=False)
    return done.stderr + done.stdout


def test_the_page_is_made_from_the_parser() -> None:
    made: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "make_man.py"))
    assert PAGE.read_text(encoding="utf-8") == made["page"](), "run python docs/make_man.py"


def test_groff_shows_every_command_and_option_with_its_help_and_warns_of_nothing() -> None:
    shown = output_of("groff", "-man", "-Tascii", "-ww", "-P-cbou", "-rLL=1000n", str(PAGE))
    assert "warning:" not in shown
    words = " ".join(shown.split())
    program, commands = commands_of(make_parser(whole=True))
    assert len(commands) > 4
    for command in (program, *commands):
        assert f"{command.name} {' '.join(command.description.split())}" in words
        for argument in command.arguments:
            if "-h" not in argument.names:
                named = " ".join(filter(None, [", ".join(argument.names), argument.value]))
                about = argument.about[:1].upper() + argument.about[1:]
                assert f" {named} {about}." in words, (command.name, argument)


def test_mandoc_has_nothing_to_say_against_it() -> None:
    # Without a date, on purpose: the page is that of a version, which it names.
    complaints = output_of("mandoc", "-T", "lint", "-W", "warning", str(PAGE)).splitlines()
    assert [line for line in complaints if "missing date" not in line] == []
