"""Settings: what each may be, and what is said of what it may not be."""

import math
from typing import Any

import attrs
import pytest

from rawgrpc_proxy import ConfigError, Http2Settings
from rawgrpc_proxy.config import DOWNSTREAM_ONLY, UPSTREAM_ONLY

RANGES: dict[str, tuple[float, float]] = {
    "stream_window_bytes": (65_535, 2**31 - 1),
    "connection_window_bytes": (65_535, 2**31 - 1),
    "max_frame_bytes": (2**14, 2**24 - 1),
    "max_concurrent_streams": (1, 2**31 - 1),
    "max_header_list_bytes": (1024, 2**20),
    "max_open_header_bytes": (2**20, 2**31 - 1),
    "max_header_fields": (8, 10_000),
    "max_continuation_frames": (0, 64),
    "abuse_budget": (100, 10**9),
    "abuse_budget_per_s": (0, 10**9),
    "max_output_bytes": (2**14, 2**30),
    "max_owed_bytes": (1024, 2**30),
    "max_buffered_bytes": (2**20, 2**33),
    "send_timeout_s": (0.001, 3600),
    "upstream_keepalive_s": (10, math.inf),
    "downstream_keepalive_s": (10, math.inf),
    "keepalive_timeout_s": (0.001, 3600),
    "min_ping_interval_s": (0, 86_400),
    "max_ping_strikes": (1, 1000),
    "max_connection_age_s": (0.1, math.inf),
    "max_connection_age_grace_s": (0, math.inf),
    "max_connection_idle_s": (0.1, math.inf),
    "handshake_timeout_s": (0.001, 3600),
}


def changed(name: str, value: object) -> Http2Settings:
    settings: dict[str, Any] = {name: value}
    return Http2Settings(**settings)


def test_every_number_among_the_settings_has_its_range_here() -> None:
    numbers = {field.name for field in attrs.fields(Http2Settings) if field.type in (int, float)}
    assert numbers == set(RANGES)


@pytest.mark.parametrize("name", RANGES)
def test_a_setting_may_be_at_the_ends_of_its_range_and_not_beyond(name: str) -> None:
    low, high = RANGES[name]
    assert getattr(changed(name, low), name) == low
    assert getattr(changed(name, high), name) == high
    for beyond in (low * 0.99 if low else -1, high + 1 if high < math.inf else math.nan):
        with pytest.raises(
            ConfigError, match=rf"{name} is .*; it must be between {low:.10g} and {high:.10g}"
        ):
            changed(name, beyond)


def test_an_engine_is_one_of_two() -> None:
    with pytest.raises(ConfigError, match="engine is 'h3'; it must be one of relay, h2"):
        changed("engine", "h3")


def test_settings_are_named_and_do_not_change() -> None:
    with pytest.raises(TypeError):
        Http2Settings("h2")  # type: ignore[call-arg]
    settings = Http2Settings()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        settings.engine = "h2"  # type: ignore[misc]


def test_settings_of_one_side_are_settings() -> None:
    names = {field.name for field in attrs.fields(Http2Settings)}
    assert names > DOWNSTREAM_ONLY | UPSTREAM_ONLY
    assert not DOWNSTREAM_ONLY & UPSTREAM_ONLY
