"""docs/running.md says what is so."""

import re
from pathlib import Path

import attrs

from rawgrpc_proxy.command import children, serve, supervisor
from rawgrpc_proxy.command.settings.model import ServeSettings
from rawgrpc_proxy.descriptors import DescriptorPlan
from rawgrpc_proxy.memory_limit import default_max_buffered_bytes
from rawgrpc_proxy.observe import line_writer
from rawgrpc_proxy.observe.families import FAMILIES
from rawgrpc_proxy.observe.flags import FLAGS

DOCS = Path(__file__).parent.parent / "docs"
TEXT = (DOCS / "running.md").read_text(encoding="utf-8")
WORDS = " ".join(TEXT.split())


def test_the_signals_are_those_that_the_supervisor_hears() -> None:
    rows = re.findall(r"^\| ((?:SIG\w+(?:, )?)+) \|", TEXT, re.MULTILINE)
    told = {name for row in rows for name in row.split(", ")}
    assert told == {number.name for number in children._SIGNALS} - {"SIGCHLD"}
    man = (DOCS / "rawgrpc-proxy.1").read_text(encoding="utf-8")
    assert all(name in man for name in told)


def test_the_times_and_sizes_are_those_in_force() -> None:
    assert f"(`grace`, {attrs.fields(ServeSettings).grace_s.default:g} s)" in WORDS
    assert f"it is replaced in {supervisor._RESTART_FIRST_S:g} s" in WORDS
    assert f"lives for less than a second ever later, up to {supervisor._RESTART_MAX_S:g} s" in WORDS
    assert supervisor._STEADY_AFTER_S == 1
    assert f"do not serve within {supervisor._READY_WITHIN_S:g} s" in WORDS
    assert serve._BEATS == 4
    assert "`WATCHDOG=1` four times in each `WatchdogSec=`" in WORDS
    assert f"{line_writer._MAX_WAITING >> 20} MiB wait in each process" in WORDS
    assert line_writer._FLUSH_TIMEOUT_S == 1
    assert "the end waits for a second" in WORDS
    plan = DescriptorPlan.of(3064)
    assert (plan.downstream, plan.upstream) == (2000, 1000)
    assert "a reserve of 64 two thirds are for callers, one third for upstreams" in WORDS
    assert "32 to 512 MiB" in WORDS
    assert 32 << 20 <= default_max_buffered_bytes() <= 512 << 20


def test_metrics_flags_and_pages_that_it_names_exist() -> None:
    families = {family.name for family in FAMILIES} | {f"{family.name}_total" for family in FAMILIES}
    named = re.findall(r"`((?:rawgrpc_proxy|grpc_server)_\w+)`", TEXT)
    assert len(named) > 5
    assert set(named) <= families
    flags = re.findall(r"`([A-Z]{2})`", TEXT)
    assert len(flags) > 8
    assert set(flags) <= set(FLAGS)
    for target, anchor in re.findall(r"\]\(([^):#]+)(?:#([\w-]+))?\)", TEXT):
        page = DOCS / target
        assert page.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, target


def test_what_it_asks_of_the_admin_listener_is_answered() -> None:
    answered = (DOCS / "admin.md").read_text(encoding="utf-8")
    asked = set(re.findall(r"`((?:GET|POST) /\w+)", TEXT))
    assert len(asked) > 4
    assert all(f"| `{each}` |" in answered for each in asked)
