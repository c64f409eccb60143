"""docs/clusters.md says what is so."""

import re
import tomllib
from pathlib import Path
from typing import get_args

import attrs

from rawgrpc_proxy.cluster import cluster
from rawgrpc_proxy.cluster.balance_settings import POLICIES, Balance
from rawgrpc_proxy.cluster.cluster import PANIC
from rawgrpc_proxy.cluster.health_settings import HealthCheck
from rawgrpc_proxy.cluster.outlier_settings import OutlierDetection
from rawgrpc_proxy.command.settings.clusters import ClusterSettings
from rawgrpc_proxy.command.settings.file import settings_of
from rawgrpc_proxy.discovery import schedule
from rawgrpc_proxy.observe.endpoint_notices import EndpointNotices
from rawgrpc_proxy.observe.families import FAMILIES
from rawgrpc_proxy.observe.report import Standing

PAGE = Path(__file__).parent.parent / "docs" / "clusters.md"
TEXT = PAGE.read_text(encoding="utf-8")
WORDS = " ".join(TEXT.split())
REST = '[[listeners]]\naddress = "127.0.0.1:0"\n[[routes]]\ncluster = "orders"\n'


def test_its_example_is_one_and_the_other_settings_that_it_names_may_stand_there_too() -> None:
    [example] = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    orders = settings_of([("", tomllib.loads(REST + example))]).serve.clusters["orders"]
    assert orders.health is not None
    assert orders.outlier is not None
    names = {field.name.removesuffix("_s") for field in attrs.fields(ClusterSettings)}
    written = re.findall(r"`(\w+) = ", TEXT)
    assert {"dns", "srv", "weights", "slow_start", "min_idle"} <= set(written)
    assert set(written) - {"min_idle", "kind", "workers"} <= names


def test_the_numbers_that_it_gives_are_those_in_force() -> None:
    health, outlier = HealthCheck(), OutlierDetection()
    assert f"`grpc.health.v1.Health/Check` every {health.interval_s:g} s" in WORDS
    assert f"with a timeout of {health.timeout_s:g} s" in WORDS
    assert (health.unhealthy_threshold, health.healthy_threshold) == (3, 2)
    assert outlier.failure_percentage is not None
    assert outlier.success_rate is not None
    assert f"every {outlier.interval_s:g} s those are ejected" in WORDS
    assert f"more than {outlier.failure_percentage.threshold} % of their calls" in WORDS
    assert f"for {outlier.base_ejection_time_s:g} s the first time" in WORDS
    assert (outlier.max_ejection_percent, outlier.consecutive_failures) == (10, 5)
    assert outlier.success_rate.minimum_hosts == outlier.failure_percentage.minimum_hosts == 5
    assert f"(at least {schedule.DEFAULT_MIN_TTL_S:g} s, at most {schedule.DEFAULT_MAX_TTL_S:g} s)" in WORDS
    assert f"asked every {schedule.UNKNOWN_TTL_S:g} s" in WORDS
    assert f"calls wait, for {cluster._FIRST_LOOK_UP_S:g} s at the most" in WORDS
    assert f"(`panic_threshold`, {attrs.fields(ClusterSettings).panic_threshold.default:g};" in WORDS
    assert f"`{PANIC}`" in WORDS
    assert f"{Balance().bounded_load} times its share" in WORDS


def test_policies_standings_events_and_metrics_are_all_named_and_exist() -> None:
    assert all(f'"{policy}"' in TEXT for policy in POLICIES)
    assert all(f"`{standing}`" in TEXT for standing in get_args(Standing))
    events = {name for name in vars(EndpointNotices) if re.match(r"endpoint_|addresses_|look_up_", name)}
    assert len(events) > 6
    assert all(f"`{event}`" in TEXT for event in events)
    families = {family.name for family in FAMILIES} | {f"{family.name}_total" for family in FAMILIES}
    assert set(re.findall(r"`(rawgrpc_proxy_\w+)`", TEXT)) <= families


def test_pages_it_links_to_exist() -> None:
    for target in re.findall(r"\]\(([^):#]+)", TEXT):
        assert (PAGE.parent / target).exists(), target
