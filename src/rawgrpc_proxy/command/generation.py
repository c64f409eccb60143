"""What a supervisor runs, and where it has that from: generations, the workers of one reading of the settings each.

`serve.py` has both, made from settings; `supervisor.py` knows no more of them than this.
"""

import socket
from collections.abc import Sequence
from typing import Literal, Protocol

from rawgrpc_proxy.command.children import Child

Asked = Literal["reload", "upgrade", "stop"]
State = Literal["ready", "reloading", "stopping"]


class Generation(Protocol):
    """What the supervisor runs until the next reload."""

    count: int
    """Of its workers."""

    grace_s: float
    """How long a worker that was told to stop goes on at the most."""

    admin: object | None
    """Which admin process there is to be beside the workers. It is replaced if the next generation has another."""

    def work(self, number: int, channel: socket.socket) -> int:
        """A worker's whole life, in a process of its own; answers the exit code. What it raises is shown, code 1."""

    def run_admin(self, channel: socket.socket) -> int:
        """The admin process's whole life."""

    def retire(self, successor: "Generation | None") -> None:
        """It takes no more connections: its listeners close, but for those that its successor has, too."""

    def handed_over(self) -> dict[str, list[int]]:
        """The file descriptors of the listeners, for an upgrade."""


class Source(Protocol):
    """Where generations come from, and who is told of them. No method may wait."""

    def generation(self, present: Generation | None) -> Generation:
        """One with the settings as they are now. Raises `ConfigError`; nothing has changed then."""

    def say(self, text: str) -> None:
        """Tell the operator."""

    def state(self, state: State) -> None:
        """Tell whoever manages this service."""

    def reloaded(self, problems: Sequence[str]) -> None:
        """A reload is over; nothing has changed if there are problems."""

    def child_started(self, child: Child) -> None:
        """A process has begun."""

    def child_ended(self, child: Child) -> None:
        """It is over."""

    def heard(self, child: Child, data: bytes) -> Asked | None:
        """A process has said something; the answer is what there is to do."""

    def tick(self) -> float | None:
        """Do what is due; answer in how many seconds there is more, None if only when something happens."""
