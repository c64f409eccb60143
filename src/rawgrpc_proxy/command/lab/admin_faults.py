"""What the admin process orders and hears of faults: in workers that are, and, as it keeps it, in those that come.

FaultOrders ──link──► each worker's rules (`worker_faults.py`) ──link──► `summed`
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from rawgrpc_proxy.command.admin.messages import Refused
from rawgrpc_proxy.config_words import SettingsError

TELL: Final = "faults"
PUT: Final = "put_faults"
CLEAR: Final = "clear_faults"
"""Questions to a worker."""
_MOST_ORDERS = 64


def summed(answers: Iterable[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rules of all workers, each once, with the sums of what has come of it."""
    rules: dict[str, dict[str, Any]] = {}
    for each in answers:
        for rule in each:
            known = rules.setdefault(rule["name"], {**rule, "fitted": 0, "struck": 0})
            known["fitted"] += rule["fitted"]
            known["struck"] += rule["struck"]
    return list(rules.values())


class FaultOrders:
    """What was ordered, in order. Rules that later ones have replaced, all of an order, are forgotten."""

    def __init__(self, orders: Iterable[Sequence[Any]] = ()) -> None:
        """Begin with what the last admin process had."""
        self.orders: list[tuple[str, Any]] = [(question, argument) for question, argument in orders]
        """Questions to a worker, with their arguments."""

    def put(self, toml: str) -> list[str]:
        """Order these rules, and answer what is wrong with them. Raises `Refused` if there are too many orders."""
        try:
            names = _names(toml)
        except SettingsError as error:
            return error.problems
        kept = [order for order in self.orders if order[0] != PUT or not _names(order[1]) <= names]
        if len(kept) >= _MOST_ORDERS:
            raise Refused(
                409, f"{_MOST_ORDERS} sets of faults are in force; DELETE /faults, and set all in one"
            )
        self.orders = [*kept, (PUT, toml)]
        return []

    def clear(self) -> None:
        """Order that there be none: not those of the settings either."""
        self.orders = [(CLEAR, None)]


def _names(toml: str) -> set[str]:
    """Of the rules in it, as `Faults.put` names them."""
    from rawgrpc_proxy.lab.faults.reading import faults_of_text  # noqa: PLC0415  # few who ask set any

    return {fault.name or f"fault-{place}" for place, fault in enumerate(faults_of_text(toml).faults, 1)}
