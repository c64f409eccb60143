"""What the admin listener asks, and of whom: a `Source`, which knows the workers.

Reports, calls and connections are plain dicts, as they came from the workers; what is in them is written down with
`/events`, `/calls` and `/connections` in docs/admin.md. Nothing here reads them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rawgrpc_proxy.command.admin.messages import Stream
from rawgrpc_proxy.command.lab.tap_wishes import TapWishes

Report = dict[str, Any]
"""What one worker says of itself, in numbers and words that JSON has."""


class Exposition(Protocol):
    """Makes the page that Prometheus reads."""

    def __call__(self, reports: Sequence[Any], /, *, openmetrics: bool) -> bytes:
        """Answer the metrics of all workers together: OpenMetrics 1.0, or the text format 0.0.4. Must not wait."""


class Merged(Protocol):
    """Sums up what the workers report."""

    def __call__(self, reports: Sequence[Any], /) -> Mapping[str, Any]:
        """Answer the sums (`calls`, `methods`, `endpoints`, …), `workers` and `stuck` as `/events` has them.

        Must not wait.
        """


class Source(Protocol):
    """A running `serve`, as the admin listener sees it.

    Whatever it raises costs the one request, which is answered with 500. Each method may be called again while an
    earlier call of it waits, but `reload`. One that takes more than 30 s is cancelled.
    """

    @property
    def config(self) -> str:
        """The settings in force, in TOML, each with where it comes from."""

    @property
    def engine(self) -> str:
        """Which implementation of HTTP/2 serves: `relay` or `h2`."""

    @property
    def state(self) -> str:
        """`starting`, `serving` or `draining`."""

    @property
    def started_at(self) -> float:
        """When `serve` was started, in seconds since 1970."""

    @property
    def exposition(self) -> Exposition:
        """Makes `/metrics` of reports."""

    @property
    def merged(self) -> Merged:
        """Makes what `/events`, `/clusters` and `/calls` say of all workers."""

    async def reports(self) -> list[Report]:
        """Ask each worker how it is. One that does not answer within a second is left out.

        What else `exposition` and `merged` understand may be among them, as the counters of workers that are gone.
        """

    async def calls(self, limit: int) -> list[dict[str, Any]]:
        """Answer open calls of all workers, at most `limit` of each, those that have been quiet for longest."""

    async def connections(self) -> list[dict[str, Any]]:
        """Answer the open connections of all workers, on both sides."""

    @property
    def may_set_faults(self) -> bool:
        """Whether the settings allow that faults are set over HTTP."""

    async def faults(self) -> list[dict[str, Any]]:
        """Answer the faults that are in force, with what has come of each in all workers together."""

    async def put_faults(self, toml: str) -> list[str]:
        """Add these rules, in the place of those of the same names, in workers that are and that come.

        Answers what is wrong with them, in words; nothing: it is done. Raises `Refused` for too many of them.
        """

    async def clear_faults(self) -> None:
        """Take all rules away, in workers that are and that come."""

    def tap(self, wishes: TapWishes) -> Stream:
        """What passes in all workers, as JSON Lines. Raises `Refused` where that may not be seen, or no more watch."""

    async def reload(self) -> list[str]:
        """Read the settings again, and take on what has changed. Answers what is wrong, in words; nothing: it is done.

        Never called again before it has ended.
        """

    def drain(self) -> None:
        """Accept nothing more, let calls finish, and end. Called again it does nothing."""

    async def set_log_level(self, level: str) -> None:
        """Have the call log write `all` calls, those that end with `errors`, or `none`."""
