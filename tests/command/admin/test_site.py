"""What is answered to what, over real sockets, to Python's own client."""

import gzip
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
import trio

from rawgrpc_proxy.net.address import Address
from tests.command.admin.house import PAGE, TIMEOUT_S, Client, a_house, run


@pytest.fixture
def page(tmp_path: Path) -> Path:
    for name, content in PAGE.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_livez_is_200_whatever_the_state() -> None:
    async def main() -> None:
        async with a_house() as house:
            house.source.state = "draining"
            house.source.fault = RuntimeError("no worker answers")
            reply = await house.ask("/livez")
            assert (reply.status, reply.text) == (200, "alive\n")
            assert house.source.asked == 0

    run(main)


@pytest.mark.parametrize(("state", "status"), [("starting", 503), ("serving", 200), ("draining", 503)])
def test_readyz_says_the_state_and_whether_calls_may_come(state: str, status: int) -> None:
    async def main() -> None:
        async with a_house() as house:
            house.source.state = state
            reply = await house.ask("/readyz?verbose")
            assert (reply.status, reply.text) == (status, f"{state}\n")

    run(main)


PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "type_", "body"),
    [
        ("*/*", "text/plain; version=0.0.4; charset=utf-8", "text 2\n"),
        ("application/json", "text/plain; version=0.0.4; charset=utf-8", "text 2\n"),
        (PROMETHEUS, "application/openmetrics-text; version=1.0.0; charset=utf-8", "openmetrics 2\n# EOF\n"),
    ],
)
def test_metrics_come_in_the_form_that_is_asked_for(accept: str, type_: str, body: str) -> None:
    async def main() -> None:
        async with a_house() as house:
            reply = await house.ask("/metrics", Accept=accept)
            assert (reply.status, reply.fields["content-type"], reply.text) == (200, type_, body)
            assert "Accept" in reply.fields["vary"]

    run(main)


def test_metrics_are_packed_where_that_is_asked_for_and_pays() -> None:
    async def main() -> None:
        async with a_house() as house:
            assert "content-encoding" not in (await house.ask("/metrics", Accept_Encoding="gzip")).fields
            house.source.exposed = b"x" * 10_000
            reply = await house.ask("/metrics", Accept_Encoding="deflate, gzip;q=0.5")
            assert reply.fields["content-encoding"] == "gzip"
            assert len(reply.body) < 1000
            assert gzip.decompress(reply.body) == house.source.exposed
            assert (await house.ask("/metrics", Accept_Encoding="gzip;q=0")).body == house.source.exposed

    run(main)


def test_config_is_the_text_as_it_is() -> None:
    async def main() -> None:
        async with a_house() as house:
            reply = await house.ask("/config")
            assert reply.text == house.source.config
            assert reply.fields["content-type"] == "text/plain; charset=utf-8"

    run(main)


def test_clusters_have_their_endpoints() -> None:
    async def main() -> None:
        async with a_house() as house:
            a, b, c = ({"cluster": name, "address": f"{n}:1"} for name, n in (("x", 1), ("y", 2), ("x", 3)))
            house.source.sums["endpoints"] = [a, b, c]
            assert (await house.ask("/clusters")).json == {
                "clusters": [{"cluster": "x", "endpoints": [a, c]}, {"cluster": "y", "endpoints": [b]}],
                "look_ups": {"orders.internal:1": {"failing": 1}},
            }

    run(main)


def test_connections_are_those_of_the_source() -> None:
    async def main() -> None:
        async with a_house() as house:
            reply = await house.ask("/connections")
            assert reply.json == {"connections": [{"worker": 1, "side": "downstream"}]}
            assert reply.fields["content-type"] == "application/json"

    run(main)


def test_calls_of_all_workers_are_in_one_order_and_no_more_than_asked_for() -> None:
    async def main() -> None:
        async with a_house() as house:
            house.source.open_calls = [
                {"worker": n, "quiet_s": quiet} for n, quiet in ((1, 9), (1, 2), (2, 5))
            ]
            reply = await house.ask("/calls?limit=2")
            assert reply.json == {
                "calls": [{"worker": 1, "quiet_s": 9}, {"worker": 2, "quiet_s": 5}],
                "open": 5,
                "failed": {"lost": {"FIN": 3}},
                "last_failed": [{"worker": 2, "cause": "FIN"}],
            }
            await house.ask("/calls")
            assert house.source.limits == [2, 100]

    run(main)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("/calls?limit=0", "limit is a number from 1 to 1000, not '0'"),
        ("/calls?limit=1001", "1 to 1000"),
        ("/calls?limit=-1", "1 to 1000"),
        ("/calls?limit=%C2%B2", "1 to 1000"),
        ("/calls?limit=" + "9" * 1500, "1 to 1000"),
        ("/calls?limt=5", "/calls knows no 'limt'; it knows limit"),
        ("/calls?limit=1&limit=2", "limit stands there more than once"),
        ("/calls?" + "&".join("abcdefghijkl"), "more than 10 fields"),
    ],
)
def test_a_query_that_cannot_be_followed_is_400_and_says_why(target: str, words: str) -> None:
    async def main() -> None:
        async with a_house() as house:
            reply = await house.ask(target)
            assert reply.status == 400
            assert words in reply.text
            assert not house.source.limits

    run(main)


# ------------------------------------------------------------------ what changes something


def test_drain_drains_and_is_told() -> None:
    async def main() -> None:
        async with a_house() as house:
            reply = await house.ask("/drain", "POST")
            assert (reply.status, house.source.drains) == (202, 1)
            assert "draining" in reply.text
            [change] = house.changes
            assert re.fullmatch(r"drain, asked for by 127\.0\.0\.1:\d+", change)

    run(main)


def test_reload_says_that_it_is_done_or_what_is_wrong() -> None:
    async def main() -> None:
        async with a_house() as house:
            assert (await house.ask("/reload", "POST")).status == 200
            house.source.problems = ["proxy.toml: workers is 0", "proxy.toml: no listener"]
            reply = await house.ask("/reload", "POST")
            assert reply.status == 422
            assert reply.text.splitlines()[1:] == house.source.problems
            assert house.changes[0].endswith(": done")
            assert "nothing changed: proxy.toml: workers is 0; proxy.toml: no listener" in house.changes[1]

    run(main)


def test_one_reload_at_a_time() -> None:
    async def main() -> None:
        async with a_house() as house, await house.connect() as first:
            house.source.gate = trio.Event()
            await first.send(house.get("/reload", "Content-Length: 0", method="POST"))
            with trio.fail_after(TIMEOUT_S):
                while not house.source.reloads:  # noqa: ASYNC110  # a source tells nobody that it was asked
                    await trio.sleep(0.01)
            assert (await house.ask("/reload", "POST")).status == 409
            house.source.gate.set()
            assert (await first.reply()).status == 200
            assert (await house.ask("/reload", "POST")).status == 200
            assert house.source.reloads == 2

    run(main)


@pytest.mark.parametrize("level", ["all", "errors", "none"])
def test_the_log_level_is_set(level: str) -> None:
    async def main() -> None:
        async with a_house() as house:
            assert (await house.ask(f"/log?level={level}", "POST")).status == 200
            assert house.source.levels == [level]
            assert f"log level {level}, asked for by 127.0.0.1:" in house.changes[0]

    run(main)


@pytest.mark.parametrize("query", ["", "?level=", "?level=debug", "?level=ALL", "?lvl=all"])
def test_a_level_that_is_none_is_400_and_changes_nothing(query: str) -> None:
    async def main() -> None:
        async with a_house() as house:
            reply = await house.ask("/log" + query, "POST")
            assert reply.status == 400
            assert "level" in reply.text
            assert not house.source.levels
            assert not house.changes

    run(main)


# ------------------------------------------------------------------ faults


def test_faults_are_told_and_whether_they_may_be_set() -> None:
    async def main() -> None:
        async with a_house() as house:
            house.source.rules = [{"name": "cart", "fitted": 3, "struck": 2, "rule": {"do": "cut"}}]
            reply = await house.ask("/faults")
            assert reply.fields["content-type"] == "application/json"
            assert reply.json == {"may_be_set": False, "faults": house.source.rules}

    run(main)


def test_faults_are_not_set_unless_the_settings_allow_it() -> None:
    async def main() -> None:
        async with a_house() as house:
            for method in ("POST", "DELETE"):
                reply = await house.ask("/faults", method, b"preset = 'ping'")
                assert reply.status == 403
                assert "write faults = true in [admin]" in reply.text
            assert (house.source.put, house.source.clears, house.changes) == ([], 0, [])

    run(main)


def test_faults_are_set_and_taken_away_and_the_log_says_by_whom() -> None:
    async def main() -> None:
        async with a_house() as house:
            house.source.may_set_faults = True
            assert (await house.ask("/faults", "POST", "preset = 'ping' # ü".encode())).status == 200
            assert house.source.put == ["preset = 'ping' # ü"]
            assert (await house.ask("/faults", "DELETE")).status == 200
            assert house.source.clears == 1
            first, second = house.changes
            assert first.startswith("faults were set by 127.0.0.1:")
            assert second.startswith("all faults were taken away by 127.0.0.1:")

    run(main)


def test_rules_that_are_wrong_change_nothing_and_every_mistake_is_told() -> None:
    async def main() -> None:
        async with a_house() as house:
            house.source.may_set_faults = True
            house.source.problems = ["faults[0].do is missing", "seeds is not known"]
            reply = await house.ask("/faults", "POST", b"seeds = 1")
            assert (reply.status, reply.text) == (
                422,
                "nothing changed, for this is wrong:\nfaults[0].do is missing\nseeds is not known\n",
            )
            reply = await house.ask("/faults", "POST", b"\xff")
            assert reply.status == 422
            assert "not UTF-8" in reply.text
            assert not house.changes

    run(main)


def test_a_page_of_another_site_sets_no_faults() -> None:
    async def main() -> None:
        async with a_house() as house:
            house.source.may_set_faults = True
            for method in ("POST", "DELETE"):
                for fields in ({"Origin": "http://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
                    assert (await house.ask("/faults", method, b"preset = 'ping'", **fields)).status == 403
                assert (await house.ask("/faults", method, b"", Host="evil.example")).status == 421
            assert (house.source.put, house.source.clears) == ([], 0)

    run(main)


def test_faults_take_three_methods_and_no_other() -> None:
    async def main() -> None:
        async with a_house() as house:
            reply = await house.ask("/faults", "PUT")
            assert (reply.status, reply.fields["allow"]) == (405, "GET, HEAD, POST, DELETE")
            assert reply.text == "/faults takes GET, POST, DELETE\n"
            assert (await house.ask("/faults", "HEAD")).status == 200

    run(main)


# ------------------------------------------------------------------ methods and paths


@pytest.mark.parametrize("path", ["/drain", "/reload", "/log"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_what_changes_something_wants_post_and_says_so(path: str, method: str) -> None:
    async def main() -> None:
        async with a_house() as house:
            reply = await house.ask(path, method)
            assert (reply.status, reply.fields["allow"]) == (405, "POST")
            if method != "HEAD":
                assert f"use POST: curl -X POST 'http://{house.authority}{path}" in reply.text
            assert not house.changes
            assert (house.source.drains, house.source.reloads, house.source.levels) == (0, 0, [])

    run(main)


@pytest.mark.parametrize(
    "path",
    ["/", "/livez", "/readyz", "/metrics", "/config", "/clusters", "/connections", "/calls", "/events"],
)
def test_what_only_tells_wants_get(path: str, page: Path) -> None:
    async def main() -> None:
        async with a_house(page) as house:
            reply = await house.ask(path, "POST")
            assert (reply.status, reply.fields["allow"]) == (405, "GET, HEAD")
            assert "use GET" in reply.text

    run(main)


@pytest.mark.parametrize(
    "path", ["/", "/livez", "/metrics", "/config", "/clusters", "/calls", "/nothing", "/page.js"]
)
def test_head_is_get_without_the_content(path: str, page: Path) -> None:
    async def main() -> None:
        async with a_house(page) as house:
            get, head = await house.ask(path), await house.ask(path, "HEAD")
            assert head.body == b""
            assert get.body
            assert (head.status, int(head.fields["content-length"])) == (get.status, len(get.body))
            assert head.fields.keys() == get.fields.keys()

    run(main)


def test_a_path_that_is_none_is_404_and_lists_what_there_is() -> None:
    async def main() -> None:
        async with a_house() as house:
            for path in ("/metric", "/livez/", "//livez", "/%6civez", "/page/../livez", "/favicon.ico"):
                reply = await house.ask(path)
                assert reply.status == 404
                for known in ("/metrics", "/drain", "/events", "POST /reload"):
                    assert known in reply.text

    run(main)


def test_what_fails_on_our_side_is_500_told_and_no_secret() -> None:
    async def main() -> None:
        async with a_house() as house, await house.connect() as client:
            house.source.fault = RuntimeError("a secret")
            await client.send(house.get("/metrics"))
            reply = await client.reply()
            assert reply.status == 500
            assert "secret" not in reply.text
            assert house.forgive() == ["answering GET /metrics failed"]
            house.source.fault = None
            await client.send(house.get("/metrics"))
            assert (await client.reply()).status == 200

    run(main)


# ------------------------------------------------------------------ the page


def test_the_page_comes_with_its_types_and_again_only_if_it_has_changed(page: Path) -> None:
    async def main() -> None:
        async with a_house(page) as house:
            for path, name, type_ in (
                ("/", "index.html", "text/html; charset=utf-8"),
                ("/page.css", "page.css", "text/css; charset=utf-8"),
                ("/page.js", "page.js", "text/javascript; charset=utf-8"),
                ("/favicon.svg", "favicon.svg", "image/svg+xml"),
            ):
                reply = await house.ask(path)
                assert (reply.status, reply.body) == (200, PAGE[name])
                assert (reply.fields["content-type"], reply.fields["cache-control"]) == (type_, "no-cache")
                etag = reply.fields["etag"]
                for tags in (etag, f'"other", W/{etag}', "*"):
                    again = await house.ask(path, If_None_Match=tags)
                    assert (again.status, again.body, again.fields["etag"]) == (304, b"", etag)
                assert (await house.ask(path, If_None_Match='"other"')).status == 200

    run(main)


def test_without_its_files_all_but_the_page_works(tmp_path: Path) -> None:
    async def main() -> None:
        async with a_house(tmp_path / "nothing") as house:
            reply = await house.ask("/")
            assert reply.status == 404
            assert "index.html is missing" in reply.text
            assert (await house.ask("/livez")).status == 200

    run(main)


def test_every_response_has_the_fields_that_keep_foreign_pages_out(page: Path) -> None:
    async def main() -> None:
        async with a_house(page) as house:
            replies = [await house.ask(path) for path in ("/", "/livez", "/metrics", "/nothing", "/drain")]
            async with await house.connect() as client:
                await client.send(b"nonsense\r\n\r\n")
                replies.append(await client.reply())
            for reply in replies:
                policy = reply.fields["content-security-policy"]
                assert "default-src 'none'" in policy
                assert "frame-ancestors 'none'" in policy
                assert "unsafe" not in policy
                assert reply.fields["x-content-type-options"] == "nosniff"
                assert reply.fields["cache-control"] in {"no-store", "no-cache"}
                assert not [name for name in reply.fields if name.startswith("access-control-")]
            assert [reply.fields["cache-control"] for reply in replies].count("no-store") == 5

    run(main)


# ------------------------------------------------------------------ who may ask


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:9901", "localhost.evil.example", "127.0.0.1.evil.example", "a b", ""],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_name_that_a_stranger_may_have_made_lead_here_is_refused(host: str, method: str) -> None:
    async def main() -> None:
        async with a_house() as house:
            for path in ("/metrics", "/drain"):
                reply = await house.ask(path, method, Host=host)
                assert reply.status == 421
                assert "not known as" in reply.text
            assert house.source.asked == house.source.drains == 0

    run(main)


def test_an_absolute_target_counts_and_not_host() -> None:
    async def main() -> None:
        async with a_house() as house, await house.connect() as client:
            for authority, status in (("evil.example", 421), ("u@localhost", 421), ("localhost:1", 200)):
                await client.send(
                    f"GET http://{authority}/config HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
                )
                assert (await client.reply()).status == status

    run(main)


def test_names_that_it_was_told_are_its_own() -> None:
    async def main() -> None:
        async with a_house(names=["Proxy.Internal"]) as house:
            for host in ("proxy.internal", "PROXY.internal:9901", "localhost:1", "[::1]:9901", "10.0.0.7"):
                assert (await house.ask("/config", Host=host)).status == 200
            assert (await house.ask("/config", Host="proxy.external")).status == 421

    run(main)


def test_probes_are_answered_under_any_name() -> None:
    async def main() -> None:
        async with a_house() as house:
            assert (await house.ask("/livez", Host="lb.example")).status == 200
            assert (await house.ask("/readyz", Host="lb.example")).status == 200
            assert b" 200 " in await house.raw(b"GET /livez HTTP/1.0\r\n\r\n")

    run(main)


FOREIGN: list[Callable[[str], dict[str, str]]] = [
    lambda own: {"Origin": "http://evil.example"},
    lambda own: {"Origin": "null"},
    lambda own: {"Origin": f"http://{own}1"},
    lambda own: {"Origin": "http://" + own.rpartition(":")[0]},
    lambda own: {"Origin": f"http://{own}", "Sec_Fetch_Site": "cross-site"},
    lambda own: {"Sec_Fetch_Site": "cross-site"},
    lambda own: {"Sec_Fetch_Site": "same-site"},
    lambda own: {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"},
]


@pytest.mark.parametrize("path", ["/drain", "/reload", "/log?level=none"])
@pytest.mark.parametrize("fields", FOREIGN)
def test_a_foreign_page_changes_nothing(path: str, fields: Callable[[str], dict[str, str]]) -> None:
    async def main() -> None:
        async with a_house() as house:
            reply = await house.ask(path, "POST", b"x=1", **fields(house.authority))
            assert reply.status == 403
            assert not house.changes
            assert (house.source.drains, house.source.reloads, house.source.levels) == (0, 0, [])

    run(main)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "cors"},
        {"Sec_Fetch_Site": "none"},
    ],
)
@pytest.mark.parametrize("scheme", [None, "http", "HTTPS"])
def test_its_own_page_and_programs_may_change_something(scheme: str | None, fields: dict[str, str]) -> None:
    async def main() -> None:
        async with a_house() as house:
            own = {} if scheme is None else {"Origin": f"{scheme}://{house.authority}"}
            assert (await house.ask("/drain", "POST", **own, **fields)).status == 202

    run(main)


def test_a_foreign_page_takes_no_place_among_those_who_watch() -> None:
    async def main() -> None:
        async with a_house() as house:
            reply = await house.ask("/events", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="cors")
            assert reply.status == 403
            reply = await house.ask("/events", Origin="http://localhost:3000")
            assert reply.status == 403

    run(main)


def test_a_link_on_a_foreign_page_leads_here() -> None:
    async def main() -> None:
        async with a_house() as house:
            link = {
                "Sec_Fetch_Site": "cross-site",
                "Sec_Fetch_Mode": "navigate",
                "Sec_Fetch_Dest": "document",
            }
            assert (await house.ask("/config", **link)).status == 200
            assert (await house.ask("/config", **{**link, "Sec_Fetch_Dest": "iframe"})).status == 403
            assert (await house.ask("/events", **link)).status == 403

    run(main)


def test_on_a_unix_socket_any_name_will_do_and_a_foreign_page_still_not(tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "admin.sock")
        async with (
            a_house(address=Address(path=path)) as house,
            Client(await trio.open_unix_socket(path)) as client,
        ):
            await client.send(b"POST /drain HTTP/1.1\r\nHost: admin\r\n\r\n")
            assert (await client.reply()).status == 202
            assert house.changes == ["drain, asked for by unix:"]
            await client.send(b"POST /drain HTTP/1.1\r\nHost: admin\r\nOrigin: http://evil\r\n\r\n")
            assert (await client.reply()).status == 403

    run(main)


def test_the_page_of_the_package_is_where_it_is_looked_for() -> None:
    folder = files("rawgrpc_proxy.command.admin").joinpath("page")
    if not folder.is_dir():
        pytest.skip("there is no page")
    for name in PAGE:
        assert folder.joinpath(name).read_bytes()
