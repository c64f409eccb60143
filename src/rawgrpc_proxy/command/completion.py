"""`rawgrpc-proxy completion`: scripts that complete the command line in bash, zsh and fish, made from its parser.

Commands, options, choices, and paths where a value is one; what no shell can know (an address, a number) is left to the
user. A script runs nothing of ours when it completes, so it is as fast as the shell; after an upgrade it has to be made
anew, which a shell that begins with `eval "$(…)"` does by itself.
"""

import argparse
import shlex
from collections.abc import Callable, Iterator

from rawgrpc_proxy.command.arguments import Argument, Command, commands_of
from rawgrpc_proxy.command.cli import make_parser

_PATHS = {"FILE": ":file", "DIR": ":folder"}
_BASH = """\
# Completes rawgrpc-proxy in bash. In ~/.bashrc: eval "$(rawgrpc-proxy completion bash)"
_rawgrpc_proxy() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command= wanted= line i
    # bash has taken --option=value apart.
    if [[ $cur == "=" ]]; then
        cur=
    elif [[ $prev == "=" ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        @COMMANDS@) command=${COMP_WORDS[i]} && break ;;
        esac
    done
    case "$command $prev" in
@VALUES@
    *)
        case "$command ${cur:0:1}" in
@WORDS@
        esac
        ;;
    esac
    COMPREPLY=()
    local -a how=(-W "$wanted")
    case $wanted in
    :value) return ;;
    :file) how=(-f) ;;
    :folder) how=(-d) ;;
    esac
    # macOS has a bash without compopt: there a folder gets no slash.
    [[ $wanted != :* ]] || compopt -o filenames 2>/dev/null
    while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen "${how[@]}" -- "$cur")
}
complete -F _rawgrpc_proxy rawgrpc-proxy
"""
_ZSH = """\
#compdef rawgrpc-proxy
# Completes rawgrpc-proxy in zsh. In ~/.zshrc, after compinit: eval "$(rawgrpc-proxy completion zsh)"
_rawgrpc_proxy() {
    local curcontext="$curcontext" state ret=1
    local -a line commands
    typeset -A opt_args
    _arguments -C \\
@OPTIONS@
        '1: :->command' \\
        '*:: :->argument' && ret=0
    case $state in
    command)
        commands=(
@COMMANDS@
        )
        _describe -t commands command commands && ret=0
        ;;
    argument)
        case $line[1] in
@ARGUMENTS@
        esac
        ;;
    esac
    return ret
}
if [[ $funcstack[1] == _rawgrpc_proxy ]]; then
    _rawgrpc_proxy "$@"
else
    compdef _rawgrpc_proxy rawgrpc-proxy
fi
"""


def add_completion(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `completion`."""
    parser.description = (
        "Print a script that completes these arguments. For bash and zsh: "
        'eval "$(rawgrpc-proxy completion bash)"; for fish: rawgrpc-proxy completion fish | source.'
    )
    parser.add_argument("shell", choices=SHELLS, help="which shell it is for")
    parser.set_defaults(command=_completion)


def _completion(options: argparse.Namespace) -> int:
    print(script(options.shell, make_parser(whole=True)), end="")
    return 0


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The script for this shell, one of `SHELLS`."""
    return _SCRIPTS[shell](*commands_of(parser))


def _values(argument: Argument) -> str:
    """What may stand for its value: words, or one of ":file", ":folder", ":value" (whatever the user likes)."""
    return " ".join(argument.choices) or _PATHS.get(argument.value, ":value")


def _words(program: Command, commands: tuple[Command, ...]) -> Iterator[tuple[str, str]]:
    """What may stand where no option's value does, by the command and what begins it, in order."""
    for command in (program, *commands):
        options = " ".join(name for option in command.options for name in option.names)
        others = "".join(_values(place) for place in command.places[:1])
        if command is program:
            others = " ".join(each.name for each in commands)
        if others:
            yield f'"{command.name} -"', options
        yield f'"{command.name} "*', others or options


# --------------------------------------------------------------------- bash


def _bash(program: Command, commands: tuple[Command, ...]) -> str:
    values: dict[str, list[str]] = {}
    for command in commands:
        for option in command.options:
            if option.value:
                keys = [f'"{command.name} {name}"' for name in option.names]
                values.setdefault(_values(option), []).extend(keys)
    words = [f"        {when}) wanted={shlex.quote(wanted)} ;;" for when, wanted in _words(program, commands)]
    return (
        _BASH.replace("@COMMANDS@", " | ".join(command.name for command in commands))
        .replace(
            "@VALUES@",
            "\n".join(
                f"    {' | '.join(keys)}) wanted={shlex.quote(wanted)} ;;" for wanted, keys in values.items()
            ),
        )
        .replace("@WORDS@", "\n".join(words))
    )


# ---------------------------------------------------------------------- zsh


def _zsh(program: Command, commands: tuple[Command, ...]) -> str:
    arguments = []
    for command in commands:
        specs = [*_zsh_options(command), *(shlex.quote(f"1:{_zsh_value(place)}") for place in command.places)]
        lines = " \\\n".join(f"                {spec}" for spec in specs)
        arguments.append(
            f"        {command.name})\n            _arguments \\\n{lines} && ret=0\n            ;;"
        )
    listed = ["            " + shlex.quote(f"{command.name}:{command.summary}") for command in commands]
    return (
        _ZSH.replace("@OPTIONS@", "\n".join(f"        {spec} \\" for spec in _zsh_options(program)))
        .replace("@COMMANDS@", "\n".join(listed))
        .replace("@ARGUMENTS@", "\n".join(arguments))
    )


def _zsh_options(command: Command) -> Iterator[str]:
    """A specification for `_arguments` of each option, quoted."""
    for option in command.options:
        about = _zsh_escaped(option.summary)
        for name in option.names:
            ends = name in {"-h", "--help", "--version"}
            front = "(- *)" if ends else "*" if option.repeats else ""
            value = f"=[{about}]:{_zsh_value(option)}" if option.value else f"[{about}]"
            yield shlex.quote(f"{front}{name}{value}")


def _zsh_value(argument: Argument) -> str:
    values = _values(argument)
    how = {":file": "_files", ":folder": "_files -/", ":value": " "}.get(values, f"({values})")
    return f"{_zsh_escaped(argument.value)}:{how}"


def _zsh_escaped(text: str) -> str:
    return "".join(f"\\{sign}" if sign in "\\[]:" else sign for sign in text)


# --------------------------------------------------------------------- fish


def _fish(program: Command, commands: tuple[Command, ...]) -> str:
    lines = [
        "# Completes rawgrpc-proxy in fish. In ~/.config/fish/config.fish: rawgrpc-proxy completion fish | source",
        "complete -c rawgrpc-proxy -f",
        *_fish_options(program, "__fish_use_subcommand"),
    ]
    for command in commands:
        about = shlex.quote(command.summary)
        lines.append(f"complete -c rawgrpc-proxy -n __fish_use_subcommand -a {command.name} -d {about}")
    for command in commands:
        here = f"__fish_seen_subcommand_from {command.name}"
        lines += _fish_options(command, here)
        lines += [
            f"complete -c rawgrpc-proxy -n {shlex.quote(here)} {_fish_value(place)}"
            for place in command.places
            if _values(place) != ":value"
        ]
    return "\n".join(lines) + "\n"


def _fish_options(command: Command, here: str) -> Iterator[str]:
    for option in command.options:
        names = " ".join(
            f"-l {name.removeprefix('--')}" if name.startswith("--") else f"-s {name.removeprefix('-')}"
            for name in option.names
        )
        value = f" -r {_fish_value(option)}" if option.value else ""
        about = shlex.quote(option.summary)
        yield f"complete -c rawgrpc-proxy -n {shlex.quote(here)} {names}{value} -d {about}"


def _fish_value(argument: Argument) -> str:
    values = _values(argument)
    return {":file": "-F", ":folder": "-f -a '(__fish_complete_directories)'", ":value": "-f"}.get(
        values, f"-f -a {shlex.quote(values)}"
    )


_SCRIPTS: dict[str, Callable[[Command, tuple[Command, ...]], str]] = {
    "bash": _bash,
    "zsh": _zsh,
    "fish": _fish,
}
SHELLS = tuple(_SCRIPTS)
