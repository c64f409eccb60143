"""The page of the call log is what the source says, and its examples are true."""

import io
import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.command.settings.file import settings_of
from rawgrpc_proxy.observe.call_log import CallLog
from rawgrpc_proxy.observe.record import CallRecord

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "call-log.md").read_text(encoding="utf-8")


def test_the_page_is_made_from_the_source() -> None:
    made: dict[str, Any] = runpy.run_path(str(DOCS / "make_call_log.py"))
    assert made["page"]() == PAGE, "run python docs/make_call_log.py"


def test_the_line_on_the_page_is_how_a_line_looks() -> None:
    [example] = re.findall(r"```text\n(.*)\n```", PAGE)
    file = io.StringIO()
    CallLog("text", file).call_ended(
        CallRecord(
            method="/shop.Orders/Get",
            peer="10.0.0.1:47",
            upstream="10.0.0.7:50",
            status=Status.OK,
            origin="upstream",
            request_bytes=12,
            request_messages=1,
            response_bytes=345,
            response_messages=1,
            duration_s=0.0123,
        )
    )
    assert file.getvalue().rstrip().split(" ", 1)[1] == example.split(" ", 1)[1]


def test_the_settings_on_the_page_are_understood() -> None:
    [example] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    rest: dict[str, Any] = {
        "listeners": [{"address": ":0"}],
        "clusters": {"c": {"endpoints": ["h:1"]}},
        "routes": [{"cluster": "c"}],
    }
    log = settings_of([("", rest | tomllib.loads(example))]).serve.log
    assert (log.format, log.sample, log.slow_s, log.start_after_s) == ("json", 0.01, 1.0, 5.0)
    assert len(log.fields) == 8
