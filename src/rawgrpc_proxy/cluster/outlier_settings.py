"""What can be set of outlier detection: the fields and defaults of gRFC A50, and what a failure is.

What it does not do: find outliers (`outlier.py` does).
"""

import math
from collections.abc import Iterator

import attrs

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.validators import at_least, between, held_to

_MOST = 10**9


def _check_failures(names: tuple[str, ...]) -> None:
    if not names:
        raise ConfigError("is empty: nobody would ever be ejected; name statuses, like UNAVAILABLE")
    for name in names:
        if name not in Status.__members__ or name in ("OK", "CANCELLED"):
            able = ", ".join(status.name for status in Status if status > Status.CANCELLED)
            raise ConfigError(f"has {name!r}; what may be a failure: {able}")


@attrs.frozen(kw_only=True)
class SuccessRate:
    """Eject endpoints of which fewer calls end well than the rates of all endpoints let expect (gRFC A50)."""

    stdev_factor: int = attrs.field(default=1900, validator=between(0, _MOST))
    """An outlier is so many thousandths of the standard deviation below the mean rate: 1900 is 1.9 times."""

    enforcement: int = attrs.field(default=100, validator=between(0, 100))
    """The chance, in percent, that an outlier is ejected."""

    minimum_hosts: int = attrs.field(default=5, validator=between(1, _MOST))
    """So many endpoints must have the volume. One of n can never be more than √(n-1) standard deviations below the
    mean: with 1.9 of them, there is no outlier among fewer than five."""

    request_volume: int = attrs.field(default=100, validator=between(1, _MOST))
    """The calls that an endpoint must have had within `interval` to be looked at."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """What does not fit together."""
        most = math.sqrt(self.minimum_hosts - 1)
        if self.stdev_factor >= 1000 * most:
            text = (
                f"of {self.minimum_hosts} would never find an outlier with a stdev_factor of {self.stdev_factor}: of "
                f"so many endpoints none is more than {most:.2f} standard deviations below their mean. Take a smaller "
                "stdev_factor, or failure_percentage, which looks at each endpoint by itself"
            )
            yield "minimum_hosts", text


@attrs.frozen(kw_only=True)
class FailurePercentage:
    """Eject endpoints of which too many calls fail, however the others do (gRFC A50)."""

    threshold: int = attrs.field(default=85, validator=between(0, 100))
    """An outlier fails more than so many percent of its calls."""

    enforcement: int = attrs.field(default=100, validator=between(0, 100))
    """The chance, in percent, that an outlier is ejected."""

    minimum_hosts: int = attrs.field(default=5, validator=between(1, _MOST))
    """So many endpoints must have the volume."""

    request_volume: int = attrs.field(default=50, validator=between(1, _MOST))
    """The calls that an endpoint must have had within `interval` to be looked at."""


@attrs.frozen(kw_only=True)
class OutlierDetection:
    """Endpoints that answer badly get no calls for a while (gRFC A50); `outlier = {}` has its defaults.

    Each worker judges by the calls that it has passed on itself. For clusters of three or four endpoints, where A50's
    `minimum_hosts` of 5 lets its algorithms rest and only `consecutive_failures` looks:
    `outlier = { interval = "5s", failure_percentage = { threshold = 40, minimum_hosts = 3 } }`.
    """

    interval_s: float = attrs.field(default=10.0, validator=at_least(0.1))
    """The time between two sweeps, at which the algorithms look at what was counted since the last one, and endpoints
    come back whose time is over."""

    base_ejection_time_s: float = attrs.field(default=30.0, validator=at_least(0.1))
    """How long an endpoint is ejected the first time. Ejected again, it is for twice the time, then three times; each
    sweep in use takes one off."""

    max_ejection_time_s: float = attrs.field(default=300.0, validator=at_least(0))
    """It is never longer than this, or than `base_ejection_time` if that is more."""

    max_ejection_percent: int = attrs.field(default=10, validator=between(0, 100))
    """Once so many percent of the endpoints are ejected, no other one is. So one always may be, even of two; 0: none.
    `panic_threshold` holds, too."""

    success_rate: SuccessRate | None = attrs.field(factory=SuccessRate)
    """The first algorithm of A50; "none" turns it off."""

    failure_percentage: FailurePercentage | None = attrs.field(factory=FailurePercentage)
    """The second; "none" turns it off."""

    consecutive_failures: int | None = attrs.field(default=5, validator=at_least(1))
    """So many failures in a row, without a call in between that ended well, eject an endpoint at once, not only at the
    next sweep (Envoy's consecutive_5xx, and its default). "none" turns it off."""

    failures: tuple[str, ...] = attrs.field(
        default=("UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
        validator=held_to(_check_failures),
    )
    """The statuses that are failures; all others are calls that ended well. These are Envoy's 5xx but for
    UNIMPLEMENTED: what servers say in the course of business (NOT_FOUND), of a caller's quota (RESOURCE_EXHAUSTED) or
    of a method that there is not would let one caller have a sound endpoint ejected. A call that its caller has
    cancelled is neither."""

    least_deadline_s: float = attrs.field(default=0.1, validator=at_least(0))
    """A call that was given less time than this, and ends with DEADLINE_EXCEEDED, says nothing about its endpoint."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """What does not fit together."""
        if (
            self.success_rate is None
            and self.failure_percentage is None
            and self.consecutive_failures is None
        ):
            yield "consecutive_failures", 'is "none", and so are both algorithms: nothing would be looked at'
