"""What a worker is made of, by the settings."""

import io
from pathlib import Path

import pytest

from rawgrpc_proxy import CallContext, CallLog, CallPolicy, Metadata
from rawgrpc_proxy.command.assembly import process_of
from rawgrpc_proxy.command.settings_file import load, settings_of

ROUTES = """\
[[listeners]]
address = "127.0.0.1:0"
[clusters.a]
endpoints = ["127.0.0.1:1"]
[[routes]]
match = "/a.B/Watch"
cluster = "a"
idle_timeout = "5m"
[[routes]]
cluster = "a"
"""


@pytest.mark.parametrize(
    ("method", "policy"), [("/a.B/Watch", CallPolicy(idle_timeout_s=300)), ("/a.B/Get", None)]
)
def test_calls_of_a_route_are_treated_as_it_says(
    tmp_path: Path, method: str, policy: CallPolicy | None
) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text(ROUTES)
    process = process_of(settings_of([("proxy.toml", load(file))]), CallLog(file=io.StringIO()))
    answer = process.directors[0](CallContext(method=method, metadata=Metadata(), peer="127.0.0.1:9"), method)
    assert isinstance(answer, tuple)
    assert answer[0].policy == policy
