"""When a call that has failed is sent once more, and when a second copy of one is sent before it has: gRFC A6, pure.

    RetryPolicy      one attempt after the other, with pauses
    HedgingPolicy    several attempts at a time, of which the first good one counts
    RetryThrottling  the tokens of a cluster: where too much fails, neither makes it worse
    pushback_s       what an upstream says about it itself

Settings that gRPC's service config has are called as they are there (`retryableStatusCodes`), in the file, too.
What it does not do: wait, send, or throw dice: chance is an argument. It says nothing of calls that provably were not
processed, which are sent once more without any policy (`proxy/forwarding.py`).
"""

import re
from collections.abc import Collection, Iterable
from typing import Any

import attrs

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.validators import at_least, between

MOST_ATTEMPTS = 5
"""gRFC A6 takes no more of a service's word for it either: beyond it, retries are load and not help."""
LEAST_REPLAY_BYTES, MOST_REPLAY_BYTES = 4096, 4 * 1024 * 1024
PREVIOUS_ATTEMPTS = b"grpc-previous-rpc-attempts"
_PUSHBACK = b"grpc-retry-pushback-ms"
_NEVER = -1.0
_MILLISECONDS = re.compile(rb"(?:0|[1-9][0-9]{0,9})\Z")
_MOST_MS = 60_000
"""A call that waits keeps a task and its request, and no timeout of the proxy's ends that, while gRPC lets an upstream
ask for weeks. A caller who is to come back in more than a minute is better told so, and may wait without us."""
_MOST_TOKENS = 1000
_DAY_S = 86_400.0


def check_not_empty(_instance: object, attribute: "attrs.Attribute[Any]", value: Collection[object]) -> None:
    """A validator: statuses are named."""
    if not value:
        raise ConfigError(f"{attribute.name} is empty; name the statuses, like UNAVAILABLE")


def _check_statuses(instance: object, attribute: "attrs.Attribute[Any]", value: frozenset[Status]) -> None:
    check_not_empty(instance, attribute, value)
    for status in value:
        if not isinstance(status, Status):
            raise ConfigError(f"{attribute.name} has {status!r}; it takes statuses, like Status.UNAVAILABLE")
        if status is Status.OK:
            raise ConfigError(f"{attribute.name} has OK, with which a call has succeeded")


def check_attempts(_instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    """A validator: as many attempts as gRPC has."""
    if not isinstance(value, int) or not 2 <= value <= MOST_ATTEMPTS:  # noqa: PLR2004  # the first, and another one
        raise ConfigError(
            f"{attribute.name} is {value!r}; it must be between 2 and {MOST_ATTEMPTS}, the first attempt included: "
            "gRPC has this bound, so that a failing upstream does not get a multiple of its load"
        )


def _statuses(value: Iterable[Status] | str) -> frozenset[Status]:
    if isinstance(value, str):
        raise ConfigError(f"statuses are a list: write [{value!r}]")
    return frozenset(value)


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """A call that fails is sent once more, if nothing of its response has reached the caller and its request is here.

    A failed attempt may have done its work all the same, so this is for methods that may run twice. Raises
    `ConfigError` for a value out of range.
    """

    max_attempts: int = attrs.field(default=3, validator=check_attempts)
    """How often the call is sent at most, the first attempt included: 2 to 5."""

    retryable_status_codes: frozenset[Status] = attrs.field(
        default=frozenset({Status.UNAVAILABLE}), converter=_statuses, validator=_check_statuses
    )
    """The statuses after which it is sent again, whether the upstream said them, or a reset or a lost connection is
    mapped to them. An attempt that `per_attempt_timeout_s` has ended is followed by another whatever is here."""

    initial_backoff_s: float = attrs.field(default=0.05, validator=between(0.001, _DAY_S))
    """The pause before the second attempt."""

    max_backoff_s: float = attrs.field(default=1.0, validator=between(0.001, _DAY_S))
    """The longest pause, before chance."""

    backoff_multiplier: float = attrs.field(default=2.0, validator=between(1.0, 100.0))
    """How much longer each pause is than the one before."""

    jitter: float = attrs.field(default=0.2, validator=between(0.0, 1.0))
    """The share of a pause by which chance makes it shorter or longer: 0.2, as in gRPC, for 80 to 120 %."""

    per_attempt_timeout_s: float | None = attrs.field(default=None, validator=at_least(0.001))
    """How long an attempt may take until its response begins (its first message, or its end). The last attempt, too:
    it then ends the call with DEADLINE_EXCEEDED. None: as long as the call's deadline lets it."""

    max_replay_bytes: int = attrs.field(
        default=64 * 1024, validator=between(LEAST_REPLAY_BYTES, MOST_REPLAY_BYTES)
    )
    """So much of a request is kept; a call with a longer one is not sent again. What is kept takes memory for as long
    as the response has not begun, and counts towards `max_buffered_bytes`."""

    def backoff_s(self, retry: int, chance: float) -> float:
        """The pause before the retry of this number, from 1; `chance` is between 0 and 1."""
        pause_s = min(self.initial_backoff_s * self.backoff_multiplier ** (retry - 1), self.max_backoff_s)
        return pause_s * (1 - self.jitter + 2 * self.jitter * chance)


@attrs.frozen(kw_only=True)
class HedgingPolicy:
    """Copies of a call are sent while it has no answer, to other endpoints if there are some.

    The first good answer counts. The upstreams may run the call as often as there are attempts, so this is for methods
    that may run twice, at the same time. Raises `ConfigError` for a value out of range.
    """

    max_attempts: int = attrs.field(default=2, validator=check_attempts)
    """How many attempts there are at most, the first one included: 2 to 5."""

    hedging_delay_s: float = attrs.field(validator=between(0.0, _DAY_S))
    """How long nothing has come until the next attempt is sent. What most calls take less than is a good choice: at
    the 95th percentile of a method's time, hedging costs a twentieth more load. 0: all are sent at once."""

    non_fatal_status_codes: frozenset[Status] = attrs.field(
        default=frozenset({Status.UNAVAILABLE}), converter=_statuses, validator=_check_statuses
    )
    """Statuses that an attempt may have without ending the call: the next attempt is sent at once. Any other is the
    call's."""

    max_replay_bytes: int = attrs.field(
        default=64 * 1024, validator=between(LEAST_REPLAY_BYTES, MOST_REPLAY_BYTES)
    )
    """So much of a request is kept for attempts to come; beyond it the call goes on with its first attempt alone."""


class RetryThrottling:
    """The tokens of one cluster: while there are not more than half, nothing is sent again and nothing is hedged.

    Each attempt that failed so that it may be repeated takes one, each success gives back a part. Counted in
    thousandths, so that there is no rounding. Calls without a policy do not count.
    """

    __slots__ = ("_most", "_ratio", "_tokens")

    def __init__(self, *, max_tokens: float = 10, token_ratio: float = 0.1) -> None:
        """Raise `ConfigError` unless there are 1 to 1000 tokens, and a ratio of 0.001 to 1000."""
        if not 1 <= max_tokens <= _MOST_TOKENS:
            raise ConfigError(f"max_tokens is {max_tokens!r}; it must be between 1 and {_MOST_TOKENS}")
        if not 0.001 <= token_ratio <= _MOST_TOKENS:  # noqa: PLR2004  # three decimals, as A6 says
            raise ConfigError(f"token_ratio is {token_ratio!r}; it must be between 0.001 and {_MOST_TOKENS}")
        self._most = self._tokens = round(max_tokens * 1000)
        self._ratio = round(token_ratio * 1000)

    @property
    def tokens(self) -> float:
        """How many there are."""
        return self._tokens / 1000

    @property
    def allows(self) -> bool:
        """Whether calls may be sent again."""
        return 2 * self._tokens > self._most

    def failed(self) -> None:
        """An attempt has failed with a status of its policy, or with a pushback that forbids another one."""
        self._tokens = max(0, self._tokens - 1000)

    def succeeded(self) -> None:
        """One has succeeded."""
        self._tokens = min(self._most, self._tokens + self._ratio)


def pushback_s(fields: Headers) -> float | None:
    """How long the upstream asks to wait before another attempt: negative, if there shall be none; None: it is silent.

    What cannot be read asks for none, as gRFC A6 says. Who asks for more than a minute does so, too.
    """
    values = [value for name, value in fields if name == _PUSHBACK]
    if not values:
        return None
    if len(values) > 1 or not _MILLISECONDS.match(values[0]) or int(values[0]) > _MOST_MS:
        return _NEVER
    return int(values[0]) / 1000
