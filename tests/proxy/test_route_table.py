import gc
from typing import Any

import pytest
import trio

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import ConfigError, NoRoute
from rawgrpc_proxy.grpc.metadata import Metadata
from rawgrpc_proxy.proxy.route_table import RouteTable
from rawgrpc_proxy.upstream.pool import Pool

A, B, C = "127.0.0.1:1", "127.0.0.1:2", "unix:/run/c.sock"


@pytest.mark.parametrize(
    ("routes", "method", "address"),
    [
        ([("/p.A/*", A), ("/p.B/*", B)], "/p.A/Get", A),
        ([("/p.A/*", A), ("/p.B/*", B)], "/p.B/Get", B),
        ([("/p.A/*", A)], "/p.AB/Get", None),
        ([("/p.A/*", A)], "/q.p.A/Get", None),
        ([("/p.A/Get", A)], "/p.A/Get", A),
        ([("/p.A/Get", A)], "/p.A/GetAll", None),
        ([("/p.A/Get", A), ("/p.A/*", B)], "/p.A/Get", A),
        ([("/p.A/Get", A), ("/p.A/*", B)], "/p.A/Put", B),
        ([("/p.A/*", B), ("/p.A/Get", A)], "/p.A/Get", B),
        ([("/*", C), ("/p.A/*", A), ("/p.A/Get", B)], "/p.A/Get", C),
        ([("/p.A/*", A), ("/*", C)], "/p.B/Get", C),
        ([("/p.A/*", A), ("/p.A/*", B)], "/p.A/Get", A),
        ([("/NoPackage/*", A)], "/NoPackage/Get", A),
        ([("/api/*", A)], "/api/p.A/Get", A),
        ([("/api/*", A)], "/api/v1/p.A/Get", A),
        ([("/api/*", A)], "/api/Get", A),
        ([("/api/*", A)], "/apis/p.A/Get", None),
        ([("/api/*", A)], "/api", None),
        ([("/api/p.A/*", A), ("/api/*", B)], "/api/p.A/Get", A),
        ([("/api/*", B), ("/api/p.A/*", A)], "/api/p.A/Get", B),
        ([("/api/p.A/*", A), ("/api/*", B)], "/api/p.B/Get", B),
        ([("/api/p.A/Get", A), ("/api/*", B)], "/api/p.A/Get", A),
        ([("/a/b/c/M", A), ("/a/b/*", B)], "/a/b/c/M", A),
        ([("/a/b/c/M", A), ("/a/b/*", B)], "/a/b/c/N", B),
        ([("/Echo%20Service/*", A)], "/Echo%20Service/M", A),
        ([("/p.A/M;v=1", B)], "/p.A/M;v=1", B),
    ],
)
def test_the_first_route_that_matches_decides(
    routes: list[tuple[str, str]], method: str, address: str | None
) -> None:
    assert RouteTable(routes).find(method) == address


def test_the_default_comes_after_every_route() -> None:
    table = RouteTable([("/p.A/*", A)], default=B)
    assert table.find("/p.A/Get") == A
    assert table.find("/p.B/Get") == B
    assert RouteTable([("/*", A)], default=B).find("/p.B/Get") == A
    assert RouteTable(default=B).find("/p.B/Get") == B


def test_the_price_of_finding_a_route_does_not_grow_with_the_routes_or_with_a_path_made_up_by_a_caller() -> (
    None
):
    class Counted(dict[str, list[tuple[int, str]]]):
        looked_up = 0

        def __contains__(self, key: object) -> bool:
            self.looked_up += 1
            return super().__contains__(key)

        def get(self, key: str, default: Any = None) -> Any:
            self.looked_up += 1
            return super().get(key, default)

    table = RouteTable([*((f"/p.S{n}/*", A) for n in range(1000)), ("/a/b/*", B), ("/c/d/e/f/g/M", C)])
    table._table._entries = counted = Counted(table._table._entries)
    assert table.find("/p.S999/Get") == A
    assert table.find("/a/b" + "/c" * 30_000) == B
    assert table.find("/x" * 30_000) is None
    assert counted.looked_up <= 3 * 4


def test_a_director_does_not_remember_long_methods() -> None:
    tracemalloc = pytest.importorskip("tracemalloc")  # PyPy has none

    async def main() -> None:
        async with Pool() as pool:
            director = RouteTable([("/p.A/*", A)]).director(pool)
            gc.collect()
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            for n in range(200):
                method = f"/p.B/{n}".ljust(64_000, "x")
                with pytest.raises(NoRoute, match=r"no route for /p\.B/\d+x+…$") as refused:
                    director(context(method), method)
                assert len(refused.value.message) < 200
            del refused
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] - before < 1_000_000
            tracemalloc.stop()

    trio.run(main)


def test_a_literal_star_asked_for_by_a_caller_matches_nothing_but_what_its_service_matches() -> None:
    table = RouteTable([("/p.A/*", A), ("/p.B/Get", B)])
    assert table.find("/p.A/*") == A
    assert table.find("/p.B/*") is None
    assert table.find("/*") is None


def test_routes_are_read_as_they_are_written_on_the_command_line() -> None:
    table = RouteTable.parse(["/p.A/*=127.0.0.1:1", "/p.B/Get=unix:/run/a=b.sock", "/*=[::1]:3"])
    assert table.find("/p.A/Get") == A
    assert table.find("/p.B/Get") == "unix:/run/a=b.sock"
    assert table.find("/p.B/Put") == "[::1]:3"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("/p.A/*", "is no route; write '/pkg.Service/\\*=HOST:PORT'"),
        ("=127.0.0.1:1", "is no pattern; write '/pkg.Service/\\*'"),
        ("p.A/*=127.0.0.1:1", "is no pattern"),
        ("/p.A=127.0.0.1:1", "is no pattern"),
        ("/p.*/Get=127.0.0.1:1", "is no pattern"),
        ("/p.A/Get*=127.0.0.1:1", "is no pattern"),
        ("/p.A/../B=127.0.0.1:1", "is no pattern"),
        ("/p.A//*=127.0.0.1:1", "is no pattern"),
        ("/p A/B=127.0.0.1:1", "is no pattern"),
        ("/*/*=127.0.0.1:1", "is no pattern"),
        ("/p.A/*=127.0.0.1", "is no address; write HOST:PORT or unix:PATH"),
        ("/p.A/*=", "is no address"),
        ("/p.A/*=127.0.0.1:0", "has port 0"),
    ],
)
def test_a_bad_route_is_refused_with_what_to_write_instead(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RouteTable.parse([text])


def test_a_bad_default_and_a_table_without_routes_are_refused() -> None:
    with pytest.raises(ConfigError, match="is no address"):
        RouteTable(default="nowhere")
    with pytest.raises(ConfigError, match="no route at all"):
        RouteTable()


def context(method: str) -> CallContext:
    return CallContext(method=method, metadata=Metadata(), peer="127.0.0.1:9")


def test_the_director_answers_the_context_as_it_was_and_a_target_at_the_address() -> None:
    pool = Pool()
    director = RouteTable([("/p.A/*", A)]).director(pool)
    asked = context("/p.A/Get")
    assert director(asked, asked.method) == (asked, pool.target(A))
    assert not pool.stats()


def test_the_director_refuses_what_has_no_route_with_unimplemented() -> None:
    async def main() -> None:
        async with Pool() as pool:
            director = RouteTable([("/p.A/*", A)]).director(pool)
            with pytest.raises(NoRoute, match=r"no route for /p\.B/Get") as refused:
                director(context("/p.B/Get"), "/p.B/Get")
            assert refused.value.status is Status.UNIMPLEMENTED

    trio.run(main)
