"""What can be set of retries, hedging, and the tokens that stop both."""

from typing import Literal

import attrs

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.command.settings.problems import Problems
from rawgrpc_proxy.grpc.retry_policy import (
    LEAST_REPLAY_BYTES,
    MOST_REPLAY_BYTES,
    HedgingPolicy,
    RetryPolicy,
    RetryThrottling,
    check_attempts,
    check_not_empty,
)
from rawgrpc_proxy.validators import at_least, between

StatusName = Literal[
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
]
_REPLAY = between(LEAST_REPLAY_BYTES, MOST_REPLAY_BYTES)


@attrs.frozen(kw_only=True)
class RetrySettings:
    """When a call that has failed is sent again: for methods that may run twice (`retry = {}` is all defaults)."""

    max_attempts: int = attrs.field(default=3, validator=check_attempts)
    """How often a call is sent at most, the first attempt included: 2 to 5."""

    retryable_status_codes: tuple[StatusName, ...] = attrs.field(
        default=("UNAVAILABLE",), validator=check_not_empty
    )
    """The statuses after which it is sent again, be they the upstream's, or what a reset or a lost connection is mapped
    to. An attempt that `per_attempt_timeout` has ended is followed by another one in any case."""

    initial_backoff_s: float = attrs.field(default=0.05, validator=between(0.001, 86_400))
    """The pause before the second attempt, 20 % shorter or longer by chance."""

    max_backoff_s: float = attrs.field(default=1.0, validator=between(0.001, 86_400))
    """The longest pause."""

    backoff_multiplier: float = attrs.field(default=2.0, validator=between(1.0, 100.0))
    """How much longer each pause is than the one before."""

    per_attempt_timeout_s: float | None = attrs.field(default=None, validator=at_least(0.001))
    """How long each attempt may take until its response begins."""

    max_replay_bytes: int = attrs.field(default=64 * 1024, validator=_REPLAY)
    """So much of a request is kept; a call with a longer one is not sent again."""

    @property
    def policy(self) -> RetryPolicy:
        """What it comes to."""
        return RetryPolicy(
            max_attempts=self.max_attempts,
            retryable_status_codes=[Status[name] for name in self.retryable_status_codes],
            initial_backoff_s=self.initial_backoff_s,
            max_backoff_s=self.max_backoff_s,
            backoff_multiplier=self.backoff_multiplier,
            per_attempt_timeout_s=self.per_attempt_timeout_s,
            max_replay_bytes=self.max_replay_bytes,
        )

    def problems(self) -> Problems:
        """What does not fit together."""
        if self.initial_backoff_s > self.max_backoff_s:
            yield "initial_backoff", f"is longer than max_backoff ({self.max_backoff_s:g} s); raise that, too"


@attrs.frozen(kw_only=True)
class HedgingSettings:
    """When copies of a call are sent that has no answer yet: for methods that may run twice, at the same time."""

    max_attempts: int = attrs.field(default=2, validator=check_attempts)
    """How many attempts there are at most, the first one included: 2 to 5."""

    hedging_delay_s: float = attrs.field(validator=between(0, 86_400))
    """How long nothing has come until the next attempt is sent; 0: all are sent at once."""

    non_fatal_status_codes: tuple[StatusName, ...] = attrs.field(
        default=("UNAVAILABLE",), validator=check_not_empty
    )
    """Statuses with which an attempt does not end the call: the next one is sent at once. Any other is the call's."""

    max_replay_bytes: int = attrs.field(default=64 * 1024, validator=_REPLAY)
    """So much of a request is kept for attempts to come; one that is longer goes on with its first attempt alone."""

    @property
    def policy(self) -> HedgingPolicy:
        """What it comes to."""
        return HedgingPolicy(
            max_attempts=self.max_attempts,
            hedging_delay_s=self.hedging_delay_s,
            non_fatal_status_codes=[Status[name] for name in self.non_fatal_status_codes],
            max_replay_bytes=self.max_replay_bytes,
        )


@attrs.frozen(kw_only=True)
class RetryThrottlingSettings:
    """Tokens that stop retries and hedging by policy where too much fails, as in gRPC: one set in each worker."""

    max_tokens: float = attrs.field(default=10.0, validator=between(1, 1000))
    """How many there are. Each failed attempt takes one; with half of them or less nothing is sent again."""

    token_ratio: float = attrs.field(default=0.1, validator=between(0.001, 1000))
    """How much of one each success gives back."""

    @property
    def throttling(self) -> RetryThrottling:
        """A set of these tokens."""
        return RetryThrottling(max_tokens=self.max_tokens, token_ratio=self.token_ratio)
