"""Faults in a worker of `serve`: where its rules come from, and what the admin process may ask and tell it of them.

Each worker has rules of its own, and counts for itself. Imported only where faults are asked for.
"""

from typing import Any

from rawgrpc_proxy.command.lab.admin_faults import CLEAR, PUT, TELL
from rawgrpc_proxy.command.link import Answers
from rawgrpc_proxy.command.settings.model import ServeSettings
from rawgrpc_proxy.lab.faults.injector import Faults, Rule
from rawgrpc_proxy.lab.faults.reading import faults_of_file, faults_of_text
from rawgrpc_proxy.lab.faults.writing import written
from rawgrpc_proxy.lab.redact import REDACTED, Redactor


def faults_of_settings(serve: ServeSettings) -> Faults:
    """Those of a worker. Raises `SettingsError` for what is in the file."""
    if serve.faults is None:
        return Faults()
    read = faults_of_file(serve.faults)
    faults = Faults(seed=read.seed or 0)
    faults.put(read.faults)
    return faults


def answers_about(faults: Faults) -> Answers:
    """What the admin process may ask."""

    def rules(_: object) -> list[dict[str, Any]]:
        return [
            {
                "name": rule.name,
                "fitted": rule.counts.fitted,
                "struck": rule.counts.struck,
                "rule": _written(rule),
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

    return {TELL: rules, PUT: put, CLEAR: clear}


def _written(rule: Rule) -> dict[str, Any]:
    tree = {key: value for key, value in written(rule.fault).items() if key != "name"}
    if "metadata" in tree:
        # Whoever may look need not be who has set it.
        secret = Redactor().is_secret
        tree["metadata"] = {
            name: REDACTED if secret(name) else value for name, value in tree["metadata"].items()
        }
    return tree
