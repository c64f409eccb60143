"""Faults in `serve`: where their rules come from, and what the admin process orders and hears of them.

    settings file ──► `faults_of_settings` ──► a worker's `Faults` ◄── answers ◄──link── admin process (`FaultOrders`)

Each worker has rules of its own, and counts for itself. What was ordered over HTTP is kept, in order, for workers that
come later.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from rawgrpc_proxy.command.admin.messages import Refused
from rawgrpc_proxy.command.link import Answers
from rawgrpc_proxy.command.settings import ServeSettings
from rawgrpc_proxy.config_words import SettingsError
from rawgrpc_proxy.lab.faults.injector import Faults, Rule
from rawgrpc_proxy.lab.faults.reading import faults_of_file, faults_of_text
from rawgrpc_proxy.lab.faults.writing import written

_MOST_ORDERS = 64
_PUT, _CLEAR = "put_faults", "clear_faults"


def faults_of_settings(serve: ServeSettings) -> Faults:
    """Those of a worker. Raises `SettingsError` for what is in the file."""
    if serve.faults is None:
        return Faults()
    read = faults_of_file(serve.faults)
    faults = Faults(seed=read.seed or 0)
    faults.put(read.faults)
    return faults


def answers_about(faults: Faults) -> Answers:
    """What the admin process may ask a worker."""

    def rules(_: object) -> list[dict[str, Any]]:
        return [
            {
                "name": rule.name,
                "fitted": rule.counts.fitted,
                "struck": rule.counts.struck,
                "rule": _rule(rule),
            }
            for rule in faults.rules
        ]

    def put(toml: str) -> bool:
        read = faults_of_text(toml)
        faults.put(read.faults, seed=read.seed)
        return True

    def clear(_: object) -> bool:
        faults.clear()
        return True

    return {"faults": rules, _PUT: put, _CLEAR: clear}


def _rule(rule: Rule) -> dict[str, Any]:
    return {key: value for key, value in written(rule.fault).items() if key != "name"}


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
    """What was ordered, for workers that come later."""

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
        kept = [order for order in self.orders if order[0] != _PUT or not _names(order[1]) <= names]
        if len(kept) >= _MOST_ORDERS:
            raise Refused(
                409, f"{_MOST_ORDERS} sets of faults are in force; DELETE /faults, and set all in one"
            )
        self.orders = [*kept, (_PUT, toml)]
        return []

    def clear(self) -> None:
        """Order that there be none: not those of the settings either."""
        self.orders = [(_CLEAR, None)]


def _names(toml: str) -> set[str]:
    """Of the rules in it, as `Faults.put` names them."""
    return {fault.name or f"fault-{place}" for place, fault in enumerate(faults_of_text(toml).faults, 1)}
