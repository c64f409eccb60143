"""`serve` asked for its own health, and for its backends', by a gRPC library; and calls of server reflection."""

import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from rawgrpc_proxy import Health, Pool, ServingStatus
from rawgrpc_proxy.grpc.health import SERVICE, request_for
from tests.command.test_cli import answer_to, backend, backends
from tests.processes import Program, program

HOUSE = """
{more}
[[listeners]]
address = "127.0.0.1:0"
[clusters.a]
endpoints = ["{a}"]
[clusters.b]
endpoints = ["{b}"]
[[routes]]
cluster = "a"
"""


@contextlib.asynccontextmanager
async def serving(folder: Path, a: str, b: str, more: str = "") -> AsyncIterator[tuple[Program, str]]:
    file = folder / "proxy.toml"
    file.write_text(HOUSE.format(a=a, b=b, more=more))
    async with program("serve", "--config", str(file)) as proxy:
        yield proxy, await proxy.address()


@contextlib.asynccontextmanager
async def healthy_backend() -> AsyncIterator[str]:
    """It is SERVING, but for orders.Orders; and knows nothing of a proxy."""
    server, health = backend("a"), Health()
    health.set("orders.Orders", ServingStatus.NOT_SERVING)
    for path, method in health.methods().items():
        server.add_method(path, method)
    async with trio.open_nursery() as nursery:
        yield await nursery.start(server.serve, "127.0.0.1:0")
        nursery.cancel_scope.cancel()


def test_a_grpc_client_checks_and_watches_the_proxy_beside_its_backend(tmp_path: Path) -> None:
    grpc: Any = pytest.importorskip("grpc")

    def ask(address: str, drain: trio.lowlevel.TrioToken, proxy: Program) -> list[Any]:
        told: list[Any] = []
        with grpc.insecure_channel(address) as channel:
            check = channel.unary_unary(f"/{SERVICE}/Check")
            told.extend(
                check(request_for(name), timeout=30) for name in ("rawgrpc_proxy", "", "orders.Orders")
            )
            with pytest.raises(grpc.RpcError) as unknown:
                check(request_for("x.Y"), timeout=30)
            told.append(unknown.value.code())
            watch = channel.unary_stream(f"/{SERVICE}/Watch")(request_for("rawgrpc_proxy"), timeout=30)
            told.append(next(watch))
            drain.run_sync_soon(proxy.signal, signal.SIGTERM)
            told.append(next(watch))
            with pytest.raises(grpc.RpcError) as over:
                next(watch)
            told.append(over.value.code())
        return told

    async def main() -> None:
        async with (
            healthy_backend() as a,
            backends("127.0.0.1:0") as [b],
            serving(tmp_path, a, b) as (proxy, address),
        ):
            token = trio.lowlevel.current_trio_token()
            assert await trio.to_thread.run_sync(ask, address, token, proxy) == [
                b"\x08\x01",
                b"\x08\x01",
                b"\x08\x02",
                grpc.StatusCode.NOT_FOUND,
                b"\x08\x01",
                b"\x08\x02",
                grpc.StatusCode.UNAVAILABLE,
            ]
            assert await proxy.exit_code() == 0

    trio.run(main)


@pytest.mark.parametrize(
    ("setting", "of_proxy", "of_nobody"),
    [
        ("", b"\x08\x01", b"a"),
        ('health = ["", "edge"]', b"a", b"\x08\x01"),
        ("health = []", b"a", b"a"),
    ],
)
def test_the_setting_says_whose_health_is_the_proxy_s(
    tmp_path: Path, setting: str, of_proxy: bytes, of_nobody: bytes
) -> None:
    async def main() -> None:
        async with (
            backends("127.0.0.1:0", "127.0.0.1:0") as (a, b),
            Pool() as client,
            serving(tmp_path, a, b, setting) as (proxy, address),
        ):
            for name, answer in (("rawgrpc_proxy", of_proxy), ("", of_nobody)):
                assert (
                    await answer_to(client, address, f"/{SERVICE}/Check", request=request_for(name)) == answer
                )
            proxy.signal(signal.SIGTERM)
            assert await proxy.exit_code() == 0

    trio.run(main)


def test_server_reflection_goes_to_its_cluster_before_the_routes(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            backends("127.0.0.1:0", "127.0.0.1:0") as (a, b),
            Pool() as client,
            serving(tmp_path, a, b, 'reflection = "b"') as (proxy, address),
        ):
            for method, name in (
                ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", b"b"),
                ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", b"b"),
                ("/grpc.reflection.v1.Other/Get", b"a"),
                ("/p.A/Get", b"a"),
            ):
                assert await answer_to(client, address, method) == name, method
            proxy.signal(signal.SIGTERM)
            assert await proxy.exit_code() == 0

    trio.run(main)
