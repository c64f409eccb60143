"""What somebody wants to see of a running proxy: in the query of `GET /tap`, and in what a worker is asked.

The admin process and the supervisor import this whether anybody taps or not: no more of the laboratory than filters.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import attrs

from rawgrpc_proxy.errors import ConfigError, Side
from rawgrpc_proxy.lab.filters import Filter
from rawgrpc_proxy.lab.redact import Redactor

if TYPE_CHECKING:
    from rawgrpc_proxy.lab.rows import Mode

SIDES = {
    "downstream": (Side.DOWNSTREAM,),
    "upstream": (Side.UPSTREAM,),
    "both": (Side.DOWNSTREAM, Side.UPSTREAM),
}
_MODES = ("messages", "frames", "findings")
_KEYS = ("mode", "side", "filter", "redact", "payload")
_MANY = ("filter", "redact")
_MOST_CHARACTERS = 500
"""However they are escaped, a question to a worker has room for them."""


def default_side(mode: "Mode | Literal['findings']") -> str:
    """Which connections are shown where nobody says: frames are of connections, messages of calls."""
    return "downstream" if mode == "messages" else "both"


@attrs.frozen(kw_only=True)
class TapWishes:
    """As the options of `rawgrpc-proxy tap`. Checked when it is made: raises `ConfigError`."""

    mode: "Mode | Literal['findings']" = "messages"
    """What rows are about. "findings": what the linter finds, on all connections."""
    side: str = "downstream"
    filters: Sequence[str] = ()
    redact: Sequence[str] = ()
    payload: bool = False
    """Messages have their first bytes with them, to be decoded by who gets them."""

    def __attrs_post_init__(self) -> None:
        if self.mode not in _MODES:
            raise ConfigError(f"mode is {self.mode!r}; write one of {', '.join(_MODES)}")
        if self.side not in SIDES:
            raise ConfigError(f"side is {self.side!r}; write one of {', '.join(SIDES)}")
        if self.mode == "findings" and (self.filters or self.redact or self.payload or self.side != "both"):
            raise ConfigError(
                "findings are those of all connections: there is nothing else to say about them"
            )
        if sum(map(len, (*self.filters, *self.redact))) > _MOST_CHARACTERS:
            raise ConfigError(f"the filters and names have more than {_MOST_CHARACTERS} characters together")
        redactor = Redactor(more=self.redact)
        for name in {name for each in self.parsed_filters() for name in each.metadata}:
            if redactor.is_secret(name):
                raise ConfigError(
                    f"{name} is a secret: whoever could filter by it would find out its value, bit by bit"
                )

    def parsed_filters(self) -> list[Filter]:
        """The filters."""
        return [Filter.parse(text) for text in self.filters]

    @classmethod
    def of_query(cls, pairs: Iterable[tuple[str, str]]) -> "TapWishes":
        """Read what stands in a query, names and values. Raises `ConfigError`."""
        said: dict[str, list[str]] = {}
        for key, value in pairs:
            if key not in _KEYS:
                raise ConfigError(
                    f"{key[:40]!a} is nothing that can be said of a tap; there are {', '.join(_KEYS)}"
                )
            said.setdefault(key, []).append(value)
        twice = [key for key, values in said.items() if len(values) > 1 and key not in _MANY]
        if twice:
            raise ConfigError(f"{twice[0]} stands there more than once")
        filters, redact = said.get("filter", []), said.get("redact", [])
        mode: Any = said.get("mode", ["messages"])[0]
        payload = said.get("payload", ["0"])[0]
        if payload not in {"0", "1"}:
            raise ConfigError(f"payload is {payload[:40]!a}; write 1 or 0")
        return cls(
            mode=mode,
            side=said.get("side", [default_side(mode)])[0],
            filters=filters,
            redact=redact,
            payload=payload == "1",
        )

    def query(self) -> Sequence[tuple[str, str]]:
        """The same as names and values of a query."""
        return [
            ("mode", self.mode),
            ("side", self.side),
            *(("filter", text) for text in self.filters),
            *(("redact", name) for name in self.redact),
            ("payload", str(int(self.payload))),
        ]
