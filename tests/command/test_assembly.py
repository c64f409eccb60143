"""What a worker is made of, by the settings."""

import io
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy import CallContext, CallLog, CallPolicy, HedgingPolicy, Metadata, RetryPolicy, Status
from rawgrpc_proxy.command.assembly import Process, process_of
from rawgrpc_proxy.command.settings.file import settings_of
from rawgrpc_proxy.config_words import load
from tests.proxy.raw_peers import connect

ROUTES = """\
status_origin_trailer = "x-origin"
[[listeners]]
address = "127.0.0.1:0"
[clusters.a]
endpoints = ["127.0.0.1:1"]
[[routes]]
match = "/a.B/Watch"
cluster = "a"
idle_timeout = "5m"
[[routes]]
match = "/a.B/Retried"
cluster = "a"
[routes.retry]
max_attempts = 4
retryable_status_codes = ["UNAVAILABLE", "ABORTED"]
initial_backoff = "10ms"
max_backoff = "2s"
backoff_multiplier = 3
per_attempt_timeout = "3s"
[[routes]]
match = "/a.B/Hedged"
cluster = "a"
hedging = { hedging_delay = "30ms", non_fatal_status_codes = ["INTERNAL"], max_replay = "1MiB" }
[[routes]]
cluster = "a"
"""
RETRY = RetryPolicy(
    max_attempts=4,
    retryable_status_codes=[Status.UNAVAILABLE, Status.ABORTED],
    initial_backoff_s=0.01,
    max_backoff_s=2,
    backoff_multiplier=3,
    per_attempt_timeout_s=3,
)
HEDGING = HedgingPolicy(
    hedging_delay_s=0.03, non_fatal_status_codes=[Status.INTERNAL], max_replay_bytes=2**20
)


def made_of(folder: Path) -> Process:
    file = folder / "proxy.toml"
    file.write_text(ROUTES)
    return process_of(settings_of([("proxy.toml", load(file))]), CallLog(file=io.StringIO()))


@trio_test
async def test_callers_are_told_who_has_made_their_status_where_the_settings_say_so(tmp_path: Path) -> None:
    process = made_of(tmp_path)
    async with trio.open_nursery() as nursery:
        address = await nursery.start(process.server.serve, "127.0.0.1:0")
        client = await connect(address, nursery)
        answer = await (await client.request()).answer()
        assert answer.get(b"x-origin") == b"proxy: no_route"
        await client.aclose()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("method", "policy"),
    [
        ("/a.B/Watch", CallPolicy(idle_timeout_s=300)),
        ("/a.B/Retried", CallPolicy(retry=RETRY)),
        ("/a.B/Hedged", CallPolicy(hedging=HEDGING)),
        ("/a.B/Get", None),
    ],
)
def test_calls_of_a_route_are_treated_as_it_says(
    tmp_path: Path, method: str, policy: CallPolicy | None
) -> None:
    process = made_of(tmp_path)
    answer = process.directors[0](CallContext(method=method, metadata=Metadata(), peer="127.0.0.1:9"), method)
    assert isinstance(answer, tuple)
    assert answer[0].policy == policy


def test_a_cluster_has_tokens_if_its_settings_say_so(tmp_path: Path) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text(
        ROUTES.replace(
            "[[routes]]", "retry_throttling = { max_tokens = 20, token_ratio = 0.5 }\n[[routes]]", 1
        )
        + '[clusters.b]\nendpoints = ["127.0.0.1:2"]\n'
    )
    process = process_of(settings_of([("proxy.toml", load(file))]), CallLog(file=io.StringIO()))
    throttles = {cluster.name: cluster.retry_throttling for cluster in process.clusters}
    assert throttles["a"] is not None
    assert throttles["a"].tokens == 20
    assert throttles["b"] is None
