"""The scripts of `rawgrpc-proxy completion`, run by the shells they are for, where those are installed."""

import os
import pty
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rawgrpc_proxy.command import cli
from rawgrpc_proxy.command.arguments import commands_of
from rawgrpc_proxy.command.completion import SHELLS, script

_TIMEOUT_S = 60
_ASK_BASH = """
eval "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_rawgrpc_proxy
[ ${#COMPREPLY[@]} -eq 0 ] || printf '%s\\n' "${COMPREPLY[@]}"
"""


def shell(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def run(*command: str, folder: Path) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, timeout=_TIMEOUT_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "proxy one.toml").touch()
    (tmp_path / "proxy*.toml").touch()
    (tmp_path / "prod").mkdir()
    return tmp_path


PATHS = ["prod", "proxy one.toml", "proxy*.toml"]
# The words of the line, of which the last is to be completed; and what it may become.
LINES = [
    (
        "",
        [
            "certs",
            "check",
            "completion",
            "demo",
            "faults",
            "lint",
            "record",
            "replay",
            "serve",
            "serve-recording",
            "tap",
        ],
    ),
    ("ch", ["check"]),
    ("--v", ["--version"]),
    ("serve --log", ["--log-format"]),
    ("serve --tls-c", ["--tls-cert", "--tls-client-ca"]),
    ("serve --log-format ", ["json", "none", "text"]),
    ("serve --listen :1 --engine r", ["relay"]),
    ("serve --listen ", []),
    ("serve --grace 1 --config pro", PATHS),
    ("check pro", PATHS),
    ("check --", ["--help"]),
    ("certs pro", ["prod"]),
    ("demo --s", ["--stay"]),
    ("completion ", ["bash", "fish", "zsh"]),
]


def in_bash(folder: Path, *words: str) -> list[str]:
    """What bash offers for the last of these words."""
    arguments = (
        "--norc",
        "--noprofile",
        "-c",
        _ASK_BASH,
        "bash",
        script("bash", cli.make_parser(whole=True)),
    )
    return sorted(run(shell("bash"), *arguments, "rawgrpc-proxy", *words, folder=folder).splitlines())


@pytest.mark.parametrize(("line", "offered"), LINES, ids=[line for line, _ in LINES])
def test_bash_offers_what_may_stand_there(folder: Path, line: str, offered: list[str]) -> None:
    assert in_bash(folder, *line.split(" ")) == offered


def test_bash_offers_values_behind_an_equals_sign_which_is_a_word_of_its_own_there(folder: Path) -> None:
    assert in_bash(folder, "serve", "--log-format", "=") == ["json", "none", "text"]
    assert in_bash(folder, "serve", "--log-format", "=", "j") == ["json"]
    assert in_bash(folder, "serve", "--config", "=", "prox") == PATHS[1:]


@pytest.mark.parametrize(("line", "offered"), LINES, ids=[line for line, _ in LINES])
def test_fish_offers_what_may_stand_there(folder: Path, line: str, offered: list[str]) -> None:
    ask = f"{script('fish', cli.make_parser(whole=True))}\ncomplete -C 'rawgrpc-proxy {line}'"
    lines = run(shell("fish"), "--no-config", "-c", ask, folder=folder).splitlines()
    assert sorted(line.split("\t")[0].rstrip("/").replace("\\", "") for line in lines) == offered


class Zsh:
    """An interactive zsh on a terminal, for nothing less completes."""

    def __init__(self, folder: Path) -> None:
        self._terminal, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [shell("zsh"), "-f", "-i"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env={"TERM": "dumb", "PS1": "", "HOME": str(folder)},
            start_new_session=True,
        )
        os.close(theirs)
        self._seen = ""

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)

    def type(self, text: str, until: str) -> str:
        """Type this, wait until that comes, and answer what has come."""
        os.write(self._terminal, text.encode())
        give_up_at = time.monotonic() + _TIMEOUT_S
        while until not in self._seen:
            left = give_up_at - time.monotonic()
            assert select.select([self._terminal], [], [], max(0, left))[0], (
                f"{until!r} never came: {self._seen}"
            )
            self._seen += os.read(self._terminal, 65536).decode(errors="replace")
        before, _, self._seen = self._seen.partition(until)
        return before


@pytest.fixture
def zsh(folder: Path) -> Iterator[Zsh]:
    (folder / "completion.zsh").write_text(script("zsh", cli.make_parser(whole=True)))
    terminal = Zsh(folder)
    try:
        # What is completed is not run but shown, between signs that were not typed.
        terminal.type(
            "unsetopt zle_bracketed_paste; autoload -Uz compinit; compinit -u -D; source ./completion.zsh\n"
            'show() { zle complete-word; print -r -- "<${(q)BUFFER}>"; BUFFER=; zle redisplay }\n'
            "zle -N show; bindkey '^X' show; zstyle ':completion:*' insert-tab false; print rea''dy\n",
            until="ready",
        )
        yield terminal
    finally:
        terminal.close()


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("ch", "check"),
        ("--v", "--version"),
        ("serve --log", "serve --log-format="),
        ("serve --log-format j", "serve --log-format json"),
        ("serve --listen :1 --engine=r", "serve --listen :1 --engine=relay"),
        ("check prod", "check prod/"),
        ("demo --s", "demo --stay"),
        ("completion f", "completion fish"),
    ],
)
def test_zsh_completes_what_may_stand_there(zsh: Zsh, line: str, completed: str) -> None:
    zsh.type(f"rawgrpc-proxy {line}\x18", until="<")
    assert zsh.type("", until=">").replace("\\", "").rstrip() == f"rawgrpc-proxy {completed}"


@pytest.mark.parametrize("name", SHELLS)
def test_every_command_and_option_is_in_the_script_that_is_printed(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["completion", name]) == 0
    printed = capsys.readouterr().out
    program, commands = commands_of(cli.make_parser(whole=True))
    assert len(commands) > 4
    for command in (program, *commands):
        assert command.name in printed
        for option in command.options:
            assert option.names[-1].removeprefix("--") in printed
