"""How calls are balanced: the settings of a cluster, and the balancer that they make."""

import random
import re
from collections.abc import Iterator
from typing import Any, Literal, Self, cast, get_args

import attrs
from attrs.validators import optional

from rawgrpc_proxy.cluster.balance import Balancer, LeastRequest, PickFirst, RingHash, RoundRobin
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.validators import at_least, between, held_to

Policy = Literal["round_robin", "least_request", "ring_hash", "pick_first"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
_HEADER = re.compile(r"[0-9a-z_.-]+")


def _check_header(header: str) -> None:
    if not _HEADER.fullmatch(header):
        raise ConfigError(f"{header!r} is no name of a header; write it in lower case, like x-user")


@attrs.frozen(kw_only=True)
class Balance:
    """Which endpoint of a cluster gets a call. `balance = "least_request"` is short for `{ policy = "least_request" }`.

    Each worker balances what it gets by itself.
    """

    policy: Policy = attrs.field(default="round_robin")
    """"round_robin": in turn, by the weights. "least_request": of two endpoints chosen by chance the one with fewer
    calls for its weight, so a slow one gets fewer. "ring_hash": calls with the same key go to the same endpoint, and
    when one of n leaves or joins, about one key in n moves. "pick_first": the first, and the next one only when that is
    gone."""

    header: str | None = attrs.field(default=None, validator=optional(held_to(_check_header)))
    """The header whose value is the key for "ring_hash". Without it, and for calls without it, that is the host of the
    caller; calls without either go anywhere."""

    bounded_load: float | None = attrs.field(default=1.25, validator=at_least(1.0))
    """For "ring_hash": no endpoint gets more than so many times its share of the calls that are open; the next one on
    the ring does. "none": keys never leave their endpoint, however busy that is."""

    choices: int = attrs.field(default=2, validator=between(2, 100))
    """For "least_request": how many endpoints are compared."""

    @policy.validator
    def _known_policy(self, _attribute: object, value: str) -> None:
        if value not in POLICIES:
            raise ConfigError(f"balance is {value!r}; it must be one of {', '.join(POLICIES)}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a policy's name, like "round_robin". Raises `ConfigError`."""
        return cls(policy=cast("Policy", text))

    def problems(self) -> Iterator[tuple[str, str]]:
        """What does not fit together."""
        if self.header is not None and self.policy != "ring_hash":
            yield "header", f'is for "ring_hash"; "{self.policy}" looks at no header'
        defaults = attrs.fields(Balance)
        if self.bounded_load != defaults.bounded_load.default and self.policy != "ring_hash":
            yield "bounded_load", f'is for "ring_hash", and the policy is "{self.policy}"'
        if self.choices != defaults.choices.default and self.policy != "least_request":
            yield "choices", f'is for "least_request", and the policy is "{self.policy}"'

    def make(self, rng: random.Random | None = None) -> "Balancer[Any]":
        """A balancer with this policy, without candidates yet. Raises `ConfigError` for what does not fit together."""
        for field, problem in self.problems():
            raise ConfigError(f"{field} {problem}")
        match self.policy:
            case "round_robin":
                return RoundRobin(rng)
            case "least_request":
                return LeastRequest(self.choices, rng)
            case "ring_hash":
                return RingHash(self.bounded_load, rng)
            case "pick_first":
                return PickFirst()
