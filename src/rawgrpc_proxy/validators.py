"""What settings are held to when they are made: validators for attrs, which raise `ConfigError` with the name."""

from collections.abc import Callable
from typing import Any

import attrs

from rawgrpc_proxy.errors import ConfigError

Validator = Callable[[object, "attrs.Attribute[Any]", Any], None]


def between(low: float, high: float) -> Validator:
    """From `low` to `high`, both included."""

    def check(_instance: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        if not low <= value <= high:  # NaN is not either
            raise ConfigError(f"{attribute.name} is {value!r}; it must be between {low:.10g} and {high:.10g}")

    return check


def at_least(low: float) -> Validator:
    """`low` or more; None is for none, and passes."""

    def check(_instance: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        if value is not None and not low <= value:
            raise ConfigError(f"{attribute.name} is {value!r}; it must be {low:g} or more")

    return check


def held_to(check: Callable[[Any], object]) -> Validator:
    """What `check` does not object to, with `ConfigError`, `TypeError` or `ValueError`."""

    def validate(_instance: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        try:
            check(value)
        except (TypeError, ValueError) as error:  # ConfigError is one
            raise ConfigError(f"{attribute.name}: {error}") from None

    return validate
