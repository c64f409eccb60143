"""`serve` with TLS and mutual TLS on both sides, from a file and from options, in processes of its own."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from rawgrpc_proxy import Call, ConfigError, Pool, Server, Status
from rawgrpc_proxy.command.cli import main
from rawgrpc_proxy.errors import RpcError, UpstreamUnavailable
from rawgrpc_proxy.net.tls_files import listener_context, upstream_context
from tests.certificates import OF_A_WORKLOAD, issued_by
from tests.command.test_cli import answer_to, backend
from tests.processes import Program, program
from tests.proxy.raw_peers import start_client

trustme = pytest.importorskip("trustme")

ANY = "127.0.0.1:0"
HEALTH = "/grpc.health.v1.Health/Check"
PATIENCE_S = 30


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pairs of a proxy, a backend and a caller, and their authorities: ours, and a stranger's."""
    folder = tmp_path_factory.mktemp("pem")
    for name in ("ours", "stranger"):
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / f"{name}.ca"))
        for who in ("127.0.0.1", "backend.internal", "caller.test"):
            authority.issue_cert(who).private_key_and_cert_chain_pem.write_to_path(
                str(folder / f"{name}-{who}.pem")
            )
        if name == "ours":
            workload = issued_by(authority, OF_A_WORKLOAD, uris=["spiffe://shop.example/cart"])
            (folder / "ours-workload.pem").write_bytes(workload)
    return folder


def pair(pem: Path, who: str, name: str = "ours") -> str:
    return str(pem / f"{name}-{who}.pem")


def caller(pem: Path, name: str = "ours", *, trusts: str = "ours") -> ssl.SSLContext:
    own = pair(pem, "caller.test", name)
    return upstream_context(ca=str(pem / f"{trusts}.ca"), certificate=own, key=own)


@asynccontextmanager
async def secure_backend(pem: Path) -> AsyncIterator[str]:
    """It wants a certificate of the proxy, and has one for a name that is not its address."""
    own = pair(pem, "backend.internal")
    context = listener_context(own, own, client_ca=str(pem / "ours.ca"))
    async with trio.open_nursery() as nursery:
        server = backend("a")

        async def serve(task_status: trio.TaskStatus[str]) -> None:
            await server.serve(ANY, ssl_context=context, task_status=task_status)

        yield await nursery.start(serve)
        nursery.cancel_scope.cancel()


def file_for(pem: Path, upstream: str, **changes: str) -> str:
    own = {"me": pair(pem, "127.0.0.1"), "ca": str(pem / "ours.ca"), "name": "backend.internal", **changes}
    number = len(list(pem.glob("*.toml")))
    file = pem / f"{number}.toml"
    file.write_text(f"""
[[listeners]]
address = "127.0.0.1:0"
tls = {{ certificate = "{own["me"]}", key = "{own["me"]}", client_ca = "{own["ca"]}" }}
[[listeners]]
address = "unix:{pem}/{number}"
[clusters.orders]
endpoints = ["{upstream}"]
tls = {{ ca = "{own["ca"]}", server_name = "{own["name"]}", certificate = "{own["me"]}", key = "{own["me"]}" }}
[[routes]]
match = "/shop.Orders/*"
cluster = "orders"
""")
    return str(file)


async def plain_address(proxy: Program) -> str:
    return (await proxy.line(r"^listening on (unix:\S+)$", "stdout"))[1]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_call_goes_through_mutual_tls_on_both_sides(pem: Path, workers: str) -> None:
    async def main() -> None:
        async with (
            secure_backend(pem) as upstream,
            Pool() as client,
            program("serve", "--config", file_for(pem, upstream), "--workers", workers) as proxy,
        ):
            plain = await plain_address(proxy)
            secure = await proxy.address()
            for context, address in ((caller(pem), secure), (None, plain)):
                assert await answer_to(client, address, "/shop.Orders/Get", context) == b"a"
            for stranger in (None, caller(pem, "stranger"), caller(pem, trusts="stranger")):
                with pytest.raises(UpstreamUnavailable):
                    await answer_to(client, secure, "/shop.Orders/Get", stranger)
            assert await answer_to(client, plain, "/shop.Orders/Get") == b"a"

    trio.run(main)


def test_whoever_offers_no_http2_by_alpn_is_turned_away_and_the_log_says_so(pem: Path) -> None:
    async def main() -> None:
        own = pair(pem, "127.0.0.1")
        async with program(
            "serve", "--listen", ANY, "--upstream", "127.0.0.1:1", "--tls-cert", own, "--tls-key", own
        ) as proxy:
            host, _, port = (await proxy.address()).rpartition(":")
            context = ssl.create_default_context(cafile=str(pem / "ours.ca"))
            stream = await trio.open_ssl_over_tcp_stream(
                host, int(port), ssl_context=context, https_compatible=True
            )
            async with stream:
                assert await stream.receive_some() == b""
            await proxy.line("no TLS: the peer does not offer 'h2' by ALPN")

    trio.run(main)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "other.internal"}, "no TLS with .*CERTIFICATE_VERIFY_FAILED.*other.internal"),
        ({"ca": "stranger"}, "no TLS with .*CERTIFICATE_VERIFY_FAILED"),
    ],
)
def test_a_backend_that_is_not_the_right_one_gets_no_calls(
    pem: Path, changes: dict[str, str], says: str
) -> None:
    if "ca" in changes:
        changes = {"ca": str(pem / "stranger.ca")}

    async def main() -> None:
        async with (
            secure_backend(pem) as upstream,
            Pool() as client,
            program("serve", "--config", file_for(pem, upstream, **changes)) as proxy,
        ):
            with pytest.raises(RpcError, match=says):
                await answer_to(client, await plain_address(proxy), "/shop.Orders/Get")
            await proxy.line(says)

    trio.run(main)


@pytest.mark.parametrize("secure", [False, True])
def test_a_backend_that_hangs_up_before_its_first_word_is_told_with_what_may_be_missing(
    pem: Path, secure: bool
) -> None:
    async def main() -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(pair(pem, "127.0.0.1"))
        context.set_alpn_protocols(["h2"])

        async def hang_up(stream: trio.SocketStream) -> None:
            link = trio.SSLStream(stream, context, server_side=True) if secure else stream
            await link.receive_some()
            await stream.aclose()

        says = "before its first SETTINGS[:;] it " + (
            "wants a certificate of us, or another one"
            if secure
            else r"speaks TLS, perhaps \(--upstream-tls\)"
        )
        options = ("--upstream-ca", str(pem / "ours.ca")) if secure else ()
        async with trio.open_nursery() as nursery, Pool() as client:
            [listener] = await nursery.start(
                partial(trio.serve_tcp, hang_up, 0, host="127.0.0.1", handler_nursery=nursery)
            )
            upstream = f"127.0.0.1:{listener.socket.getsockname()[1]}"
            async with program("serve", "--listen", ANY, "--upstream", upstream, *options) as proxy:
                with pytest.raises(RpcError, match=says):
                    await answer_to(client, await proxy.address(), "/shop.Orders/Get")
                await proxy.line(f"upstream {upstream} .*{says}")
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_the_log_tells_of_callers_who_leave_after_the_handshake_and_not_of_health_checks_of_the_port(
    pem: Path,
) -> None:
    async def main() -> None:
        own = pair(pem, "127.0.0.1")
        async with program(
            "serve", "--listen", ANY, "--upstream", "127.0.0.1:1", "--tls-cert", own, "--tls-key", own
        ) as proxy:
            host, _, port = (await proxy.address()).rpartition(":")
            await (await trio.open_tcp_stream(host, int(port))).aclose()
            context = ssl.create_default_context(cafile=str(pem / "ours.ca"))
            context.set_alpn_protocols(["h2"])
            caller = await trio.open_ssl_over_tcp_stream(
                host, int(port), ssl_context=context, https_compatible=True
            )
            await caller.do_handshake()
            await caller.aclose()
            told = (await proxy.line("connection closed: (.*)"))[1]
            assert "after the TLS handshake, without a word: our certificate is for another name" in told

    trio.run(main)


def test_options_do_what_the_file_does(pem: Path) -> None:
    async def main() -> None:
        me, ca = pair(pem, "127.0.0.1"), str(pem / "ours.ca")
        async with (
            secure_backend(pem) as upstream,
            Pool() as client,
            program(
                *("serve", "--listen", ANY, "--upstream", upstream),
                *("--tls-cert", me, "--tls-key", me, "--tls-client-ca", ca, "--upstream-ca", ca),
                *("--upstream-cert", me, "--upstream-key", me, "--upstream-server-name", "backend.internal"),
            ) as proxy,
        ):
            assert await answer_to(client, await proxy.address(), "/p.S/M", caller(pem)) == b"a"

    trio.run(main)


def test_a_new_certificate_is_for_new_connections(pem: Path, tmp_path: Path) -> None:
    own, renewed = tmp_path / "own.pem", tmp_path / "renewed.pem"
    own.write_bytes(Path(pair(pem, "127.0.0.1")).read_bytes())
    renewed.write_bytes(Path(pair(pem, "127.0.0.1", "stranger")).read_bytes())
    old, new = (upstream_context(ca=str(pem / f"{name}.ca")) for name in ("ours", "stranger"))

    async def main_() -> None:
        async with trio.open_nursery() as nursery, Pool() as client:
            upstream = await nursery.start(backend("a").serve, ANY)
            async with program(
                "serve",
                "--listen",
                ANY,
                "--upstream",
                upstream,
                "--tls-cert",
                str(own),
                "--tls-key",
                str(own),
            ) as proxy:
                address = await proxy.address()
                assert await answer_to(client, address, "/p.S/M", old) == b"a"
                renewed.rename(own)
                with trio.fail_after(PATIENCE_S):
                    while True:  # it looks once a second, and a failed dial is followed by a pause
                        try:
                            assert await answer_to(client, address, "/p.S/M", new) == b"a"
                            break
                        except UpstreamUnavailable:
                            continue
                await proxy.line(f"read again: {own}")
                assert await answer_to(client, address, "/p.S/M", old) == b"a"  # on its connection
            nursery.cancel_scope.cancel()

    trio.run(main_)


def test_throw_away_certificates_are_good_for_a_call_and_nothing_is_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "certs"
    assert main(["certs", str(folder)]) == 0
    assert f"--tls-cert {folder}/server.pem --tls-key {folder}/server.key" in capsys.readouterr().out
    assert (folder / "client.key").stat().st_mode & 0o777 == 0o600
    before = (folder / "ca.pem").read_bytes()
    assert main(["certs", str(folder)]) == 2
    assert "is there already, and is left as it is" in capsys.readouterr().err
    assert (folder / "ca.pem").read_bytes() == before
    assert main(["certs", str(folder / "ca.pem" / "x")]) == 2
    assert "Not a directory" in capsys.readouterr().err
    context = upstream_context(
        ca=str(folder / "ca.pem"),
        certificate=str(folder / "client.pem"),
        key=str(folder / "client.key"),
    )

    async def main_() -> None:
        async with trio.open_nursery() as nursery, Pool() as client:
            upstream = await nursery.start(backend("a").serve, ANY)
            async with program(
                *("serve", "--listen", ANY, "--upstream", upstream, "--tls-cert", f"{folder}/server.pem"),
                *("--tls-key", f"{folder}/server.key", "--tls-client-ca", f"{folder}/ca.pem"),
            ) as proxy:
                assert await answer_to(client, await proxy.address(), "/p.S/M", context) == b"a"
            nursery.cancel_scope.cancel()

    trio.run(main_)


def test_a_unix_socket_needs_a_name_for_its_certificate(pem: Path) -> None:
    async def main() -> None:
        async with Pool() as client:
            with pytest.raises((ConfigError, UpstreamUnavailable)):
                await client.get_conn(f"unix:{pem}/none", ssl_context=caller(pem))

    trio.run(main)


def echo() -> Server:
    """Answers every call with its metadata, and says what callers need not know."""

    async def answer(call: Call) -> None:
        shown = [
            f"{key}=" + str(value)
            for key, value in call.context.metadata
            if str(key).startswith(("x-", "for"))
        ]
        call.send_headers([(b"server", b"1.2.3"), (b"x-told", "; ".join(shown).encode())])
        call.end(Status.OK, metadata=[(b"server", b"1.2.3"), (b"x-cost", b"1")])

    return Server(unknown_service_handler=answer)


async def told(
    address: str, context: ssl.SSLContext | None, *extra: tuple[bytes, bytes], method: str = "/p.S/M"
) -> tuple[bytes | None, list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]]:
    """What the backend has seen of a call, and the headers and trailers of its response."""
    stream: trio.abc.Stream
    if address.startswith("unix:"):
        stream = await trio.open_unix_socket(address.removeprefix("unix:"))
    else:
        host, _, port = address.rpartition(":")
        stream = await trio.open_tcp_stream(host, int(port))
    if context is not None:
        stream = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
    async with trio.open_nursery() as nursery:
        client = await start_client(stream, nursery)
        answer = await (await client.request(method, *extra)).answer()
        await client.aclose()
    assert answer.headers is not None
    assert answer.trailers is not None
    return answer.headers.get(b"x-told"), answer.headers.fields, answer.trailers.fields


def test_each_listener_tells_who_calls_and_a_route_changes_what_the_caller_gets(
    pem: Path, tmp_path: Path
) -> None:
    own, ca = pair(pem, "127.0.0.1"), pem / "ours.ca"

    async def main_() -> None:
        async with trio.open_nursery() as nursery:
            upstream = await nursery.start(echo().serve, ANY)
            file = tmp_path / "proxy.toml"
            file.write_text(f"""
[[listeners]]
address = "{ANY}"
tls = {{ certificate = "{own}", key = "{own}", client_ca = "{ca}", client_certificate = "request" }}
identity_header = "x-client-identity"
forwarded = "x-forwarded-for"
trusted_proxies = ["127.0.0.0/8"]
[[listeners]]
address = "unix:{tmp_path}/socket"
identity_header = "x-client-identity"
forwarded = "forwarded"
[[listeners]]
address = "unix:{tmp_path}/open"
[clusters.backend]
endpoints = ["{upstream}"]
[[routes]]
cluster = "backend"
metadata = {{ x-client-identity = "URI=spiffe://shop.example/cart" }}
request_metadata = {{ set = {{ x-role = "cart" }} }}
[[routes]]
cluster = "backend"
response_metadata = {{ set = {{ x-edge = "1" }}, remove = ["server"] }}
""")
            lies = (
                (b"x-client-identity", b"URI=spiffe://shop.example/admin"),
                (b"x-forwarded-for", b"1.1.1.1"),
            )
            async with program("serve", "--config", str(file)) as proxy:
                secure = (await proxy.line(r"^listening on (\d\S+)$", "stdout"))[1]
                workload = str(pem / "ours-workload.pem")
                known = upstream_context(ca=str(ca), certificate=workload, key=workload)
                seen, headers, trailers = await told(secure, known, *lies)
                uri = b"URI=spiffe://shop.example/cart"
                assert seen == b"x-client-identity=%s; x-forwarded-for=1.1.1.1, 127.0.0.1; x-role=cart" % uri
                assert (b"server", b"1.2.3") in headers
                assert (b"server", b"1.2.3") in trailers
                seen, headers, trailers = await told(secure, upstream_context(ca=str(ca)), *lies)
                assert seen == b"x-forwarded-for=1.1.1.1, 127.0.0.1"
                assert (b"x-edge", b"1") in headers
                assert b"server" not in dict(headers)
                assert trailers == [(b"grpc-status", b"0"), (b"x-cost", b"1")]
                # Health of others than the proxy goes to the backends, too, and no other way.
                seen, _, _ = await told(secure, upstream_context(ca=str(ca)), *lies, method=HEALTH)
                assert seen == b"x-forwarded-for=1.1.1.1, 127.0.0.1"
                assert (await told(f"unix:{tmp_path}/socket", None, *lies))[0] == b"forwarded=for=unknown"
                untouched = b"x-client-identity=URI=spiffe://shop.example/admin; x-forwarded-for=1.1.1.1"
                assert (await told(f"unix:{tmp_path}/open", None, *lies))[0] == untouched
            nursery.cancel_scope.cancel()

    trio.run(main_)
