"""What a supervisor hands over to the program that takes its process over (`supervisor.py`): files and children.

It goes through the environment, under one name, and is taken out of it at once. The numbers of file descriptors and
processes stay the same across `execve`.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence

import attrs

from rawgrpc_proxy.errors import ConfigError

_VARIABLE = "_RAWGRPC_PROXY_HANDOVER"
_FORM = 1
"""Raised when what is handed over changes: programs that do not understand each other say so in the trial."""


@attrs.frozen(kw_only=True)
class InheritedChild:
    """A process of the program before."""

    pid: int
    number: int
    descriptor: int
    """Of the channel to it."""
    told_to_stop: bool
    grace_s: float = math.inf
    ends_by: float = math.inf
    """On the monotonic clock, which goes on."""


@attrs.frozen(kw_only=True)
class Handover:
    """Open listeners, by the address in the settings, and running children."""

    listeners: Mapping[str, Sequence[int]]
    children: Sequence[InheritedChild]
    kept: Sequence[int] = ()
    """What else is to stay open."""
    is_trial: bool = False
    """Nothing is handed over yet: the program shall only see whether it could run."""

    def descriptors(self) -> list[int]:
        """All file descriptors that the next program has to find open."""
        return [
            *(descriptor for several in self.listeners.values() for descriptor in several),
            *(child.descriptor for child in self.children),
            *self.kept,
        ]

    def environment(self, *, trial: bool = False) -> dict[str, str]:
        """The environment for the next program."""
        fields = attrs.asdict(attrs.evolve(self, is_trial=trial))
        return {**os.environ, _VARIABLE: json.dumps({"form": _FORM, **fields})}


def taken_over() -> Handover | None:
    """What this process was handed over; None if it was started by itself. Raises `ConfigError`."""
    text = os.environ.pop(_VARIABLE, None)
    if text is None:
        return None
    try:
        fields = json.loads(text)
        if fields.pop("form") != _FORM:
            raise ValueError("it is of another form")
        children = [InheritedChild(**child) for child in fields.pop("children")]
        return Handover(children=children, **fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"what the running program hands over ({_VARIABLE}) cannot be understood: {error}; start anew instead"
        ) from None
