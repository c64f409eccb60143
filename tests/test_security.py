"""SECURITY.md says what is so."""

from pathlib import Path

from rawgrpc_proxy import Http2Settings
from rawgrpc_proxy.http2.guard import DATA_SENT_POINTS, GOOD_STREAM_POINTS, PRICES

TEXT = (Path(__file__).parents[1] / "SECURITY.md").read_text()


def test_the_price_list_is_the_one_in_force() -> None:
    for price in PRICES:
        assert f"| {price.name} | {price.points:g} | {price.why} |\n" in TEXT


def test_the_budget_is_the_default_one() -> None:
    settings = Http2Settings()
    words = " ".join(TEXT.split())
    assert f"a budget of {settings.abuse_budget:,.0f} of them" in words
    assert f"{settings.abuse_budget_per_s:g} come back each second" in words
    assert (
        f"{GOOD_STREAM_POINTS:g} for each call that goes well, and {DATA_SENT_POINTS:g} for each DATA frame"
        in words
    )
