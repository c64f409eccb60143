"""The page of the settings is what their docstrings say, and its example is one."""

import runpy
from pathlib import Path
from typing import Any

from rawgrpc_proxy.command.settings.file import settings_of
from rawgrpc_proxy.config_words import load

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_is_made_from_the_source() -> None:
    made: dict[str, Any] = runpy.run_path(str(DOCS / "make_settings.py"))
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == made["page"](), (
        "run python docs/make_settings.py"
    )


def test_every_setting_says_what_it_is() -> None:
    for line in (DOCS / "settings.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            assert len(line.split(" | ")[3]) > 15, line


def test_the_example_is_understood() -> None:
    serve = settings_of([("", load(DOCS / "proxy.toml"))]).serve
    assert serve.routes[0].cluster == "orders"
