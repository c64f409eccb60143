"""What the parser of the command line knows, read once: for completion in shells and for the man page.

argparse has no public way to ask it, so its private names are used here, and nowhere else but in `options.py`. What an
argument's value is, is told by its metavar: FILE and DIR are paths.
"""

import argparse
import re

import attrs


@attrs.frozen(kw_only=True)
class Argument:
    """An option, or, without names, an argument that has a place."""

    names: tuple[str, ...]
    value: str
    """What its value is called, "" if it takes none: FILE, DIR, N."""
    choices: tuple[str, ...]
    """What the value may be, if that is known."""
    repeats: bool
    about: str
    """Its whole help."""

    @property
    def summary(self) -> str:
        """The help up to where it goes into details."""
        return re.split(r"[;:(]|, (?=with|each|counted)", self.about, maxsplit=1)[0].strip()


@attrs.frozen(kw_only=True)
class Command:
    """A command, or the program itself."""

    name: str
    summary: str
    description: str
    groups: tuple[tuple[str, tuple[Argument, ...]], ...]
    """Titles, and what stands under them, in the order of `--help`."""

    @property
    def arguments(self) -> tuple[Argument, ...]:
        """All of them."""
        return tuple(argument for _, arguments in self.groups for argument in arguments)

    @property
    def options(self) -> tuple[Argument, ...]:
        """Those with names."""
        return tuple(argument for argument in self.arguments if argument.names)

    @property
    def places(self) -> tuple[Argument, ...]:
        """Those without."""
        return tuple(argument for argument in self.arguments if not argument.names)


def commands_of(parser: argparse.ArgumentParser) -> tuple[Command, tuple[Command, ...]]:
    """The program itself, and its commands."""
    commands = []
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001
            commands += [_command(name, helps.get(name, ""), below) for name, below in action.choices.items()]
    return _command("", "", parser), tuple(commands)


def _command(name: str, summary: str, parser: argparse.ArgumentParser) -> Command:
    groups = []
    for group in parser._action_groups:  # noqa: SLF001
        arguments = tuple(
            _argument(action)
            for action in group._group_actions  # noqa: SLF001
            if action.help != argparse.SUPPRESS and not isinstance(action, argparse._SubParsersAction)  # noqa: SLF001
        )
        if arguments:
            groups.append((group.title or "", arguments))
    return Command(name=name, summary=summary, description=parser.description or "", groups=tuple(groups))


def _argument(action: argparse.Action) -> Argument:
    choices = tuple(map(str, action.choices or ()))
    value = action.metavar if isinstance(action.metavar, str) else "|".join(choices) or action.dest.upper()
    return Argument(
        names=tuple(action.option_strings),
        value="" if action.nargs == 0 else value,
        choices=choices,
        repeats=isinstance(action, argparse._AppendAction),  # noqa: SLF001
        about=(action.help or "").replace("%%", "%"),
    )
