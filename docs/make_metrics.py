"""Makes `metrics.md` from the table of metrics: `python docs/make_metrics.py`. A test keeps it true."""

from pathlib import Path

from rawgrpc_proxy.observe.families import FAMILIES, Family
from rawgrpc_proxy.observe.metrics import BOUNDS_S, MOST_METHODS

PAGE = Path(__file__).with_name("metrics.md")
INTRODUCTION = """\
# Metrics

What Prometheus can read of `rawgrpc-proxy serve --admin 127.0.0.1:9901` at `/metrics`, in its text format or as
OpenMetrics. [`grafana-dashboard.json`](grafana-dashboard.json) and [`alerts.yml`](alerts.yml) are made for these names.

All workers are added up. What a worker had counted that has died stays in the sums, through reloads and upgrades and
when the admin process itself dies, so no counter goes down but when the proxy is started anew.

A caller can make up methods. So a method has its own `grpc_service` and `grpc_method` only if a route names it exactly,
if it is served here, or if an upstream has answered it with something other than UNIMPLEMENTED and it is one of the
first {most} of those; all others are `other`. Of `/api/pkg.Service/Method` the service is `api/pkg.Service`.
`grpc_code` is as grpc-go spells it: `OK`, `DeadlineExceeded`, `Canceled`. The buckets of the histograms end at, in
seconds, {bounds}.

`grpc_server_*` is what callers got; `grpc_client_*` are those of these calls that were to go to an upstream. Where the
proxy answers a call itself, as when nothing is there to dial, the difference between the two shows it.

This page is made from the source (`python docs/make_metrics.py`).
"""


def page() -> str:
    """The whole page."""
    bounds = ", ".join(f"{bound:g}" for bound in BOUNDS_S)
    head = INTRODUCTION.format(most=MOST_METHODS, bounds=bounds)
    sections = {
        "Calls": [family for family in FAMILIES if family.name.startswith("grpc_")],
        "The proxy": [family for family in FAMILIES if not family.name.startswith("grpc_")],
    }
    return head + "".join(_section(title, families) for title, families in sections.items())


def _section(title: str, families: list[Family]) -> str:
    lines = [
        f"| `{family.name}` | {family.kind} | {', '.join(f'`{label}`' for label in family.labels)} | {family.about} |\n"
        for family in families
    ]
    return f"\n## {title}\n\n| metric | kind | labels | |\n|---|---|---|---|\n" + "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
