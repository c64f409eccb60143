"""The README's programs run, its commands are understood, and the names it promises exist."""

import contextlib
import re
import shlex
import signal
import tempfile
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import rawgrpc_proxy
from rawgrpc_proxy import Client, RpcError, ServedCall, codec, identity_codec, stream_stream, unary_unary
from rawgrpc_proxy.call import Call
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.command import cli
from rawgrpc_proxy.command.arguments import commands_of
from rawgrpc_proxy.command.settings.file import settings_of
from rawgrpc_proxy.grpc.health import SERVICE as HEALTH_SERVICE
from rawgrpc_proxy.grpc.messages import encode_message
from rawgrpc_proxy.grpc.status import decode_grpc_message, parse_status
from rawgrpc_proxy.http2.headers import Headers
from rawgrpc_proxy.proxy.route_table import RouteTable
from rawgrpc_proxy.server.server import Server
from rawgrpc_proxy.upstream.pool import Pool
from tests.http2.peer import PREFACE, settings
from tests.processes import program

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def program_with(text: str) -> str:
    """The one example with this text in it."""
    [code] = [code for code in blocks("python") if text in code]
    return code


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rgp") as name:
        yield Path(name)


@asynccontextmanager
async def running(code: str, addresses: dict[str, str]) -> AsyncIterator[None]:
    """Run the example's `main` with other addresses than it names, until the block ends."""
    for named, real in addresses.items():
        assert code.count(f'"{named}"') == 1, f"the README does not name {named} (once) any more"
        code = code.replace(f'"{named}"', f'"{real}"')
    namespace: dict[str, Any] = {"__name__": "readme"}
    exec(compile(code, str(README), "exec"), namespace)  # noqa: S102  # our own README
    main: Callable[[], Awaitable[None]] = namespace["main"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(main)
        await trio.testing.wait_all_tasks_blocked()
        yield
        nursery.cancel_scope.cancel()


async def run_backend(address: str, name: str) -> None:
    """Answer every method with this name."""

    async def answer(call: Call) -> None:
        call.send_headers()
        call.stream.send_data(encode_message(name.encode()))
        call.end(Status.OK)

    await Server(unknown_service_handler=answer).serve(address)


async def ask(client: Pool, address: str, path: str, authority: str) -> tuple[Status | None, str, bytes]:
    """The status, its message, and the DATA that come back from a call with this :authority."""
    headers: Headers = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", authority.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]
    conn = await client.get_conn(address)
    try:
        stream = conn.open_stream(headers)
        stream.send_data(encode_message(b""), end_stream=True)
        data = b""
        while (more := await stream.inbox.receive()) is not None:
            data += more
        trailers = dict(stream.inbox.trailers_received or ())
        message = decode_grpc_message(trailers.get(b"grpc-message", b""))
        return parse_status(trailers.get(b"grpc-status")), message, data[5:]
    finally:
        conn.close()


def test_the_director_of_the_readme_directs(folder: Path) -> None:
    proxy, staging, prod = (f"unix:{folder}/{name}" for name in ("proxy", "staging", "prod"))
    addresses = {
        "0.0.0.0:8080": proxy,
        "api-service.staging.svc.local:50051": staging,
        "api-service.prod.svc.local:50051": prod,
    }
    unknown = (Status.UNIMPLEMENTED, "unknown method", b"")

    async def main() -> None:
        async with trio.open_nursery() as nursery, Pool() as client:
            nursery.start_soon(run_backend, staging, "staging")
            nursery.start_soon(run_backend, prod, "prod")
            async with running(program_with("com.example.internal"), addresses):
                with trio.fail_after(60):
                    public, internal = "/com.example.Api/Get", "/com.example.internal.Api/Get"
                    assert await ask(client, proxy, public, "staging.api.example.com") == (
                        Status.OK,
                        "",
                        b"staging",
                    )
                    assert await ask(client, proxy, public, "api.example.com") == (Status.OK, "", b"prod")
                    assert await ask(client, proxy, public, "elsewhere.example.com") == unknown
                    assert await ask(client, proxy, internal, "api.example.com") == unknown
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_methods_of_its_own_beside_proxied_ones_as_in_the_readme(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrappers = pytest.importorskip("google.protobuf.wrappers_pb2")
    proxy, orders, others = (f"unix:{folder}/{name}" for name in ("proxy", "orders", "others"))
    addresses = {"127.0.0.1:8080": proxy, "127.0.0.1:50052": orders, "127.0.0.1:50051": others}

    async def main() -> None:
        async with trio.open_nursery() as nursery, Pool() as client:
            nursery.start_soon(run_backend, orders, "orders")
            nursery.start_soon(run_backend, others, "others")
            async with running(program_with("StringValue"), addresses):
                with trio.fail_after(60):
                    async with Client(client.target(proxy), codec=codec()) as caller:
                        request = wrappers.StringValue(value="bob")
                        call = caller.unary_unary("/com.example.Greeter/Hello", request, wrappers.StringValue)
                        assert (await call).value == "hello bob"
                        assert call.trailers is not None
                        assert call.trailers["x-served-by"] == "the proxy"
                        assert await caller.unary_unary(f"/{HEALTH_SERVICE}/Check", b"") == b"\x08\x01"
                    for path, name in (
                        ("/com.example.Orders/Get", b"orders"),
                        ("/com.example.Orders/List", b"orders"),
                        ("/com.example.Orders/Delete", b"others"),
                        ("/com.example.Users/Get", b"others"),
                    ):
                        assert await ask(client, proxy, path, "x") == (Status.OK, "", name)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_the_client_of_the_readme_makes_its_calls(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"unix:{folder}/backend"
    code = program_with("Client(")
    assert code.count("127.0.0.1:50051") == 1

    async def hello(request: bytes, call: ServedCall) -> bytes:
        call.trailing_metadata.append(("x-for", str(call.context.metadata["x-caller"])))
        return b"hello " + request

    async def talk(requests: AsyncIterator[bytes], _call: ServedCall) -> AsyncIterator[bytes]:
        async for request in requests:
            yield b"you asked: " + request
        yield b"bye"

    async def main() -> None:
        server = Server(codec=identity_codec())
        server.add_method("/com.example.Greeter/Hello", unary_unary(hello, bytes))
        server.add_method("/com.example.Greeter/Talk", stream_stream(talk, bytes))
        namespace: dict[str, Any] = {"__name__": "readme"}
        exec(compile(code.replace("127.0.0.1:50051", address), str(README), "exec"), namespace)  # noqa: S102  # our own README
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, address)
            with trio.fail_after(60):
                await namespace["main"]()
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert capsys.readouterr().out.splitlines() == [
        "b'hello bob' <Metadata grpc-status x-for>",
        "b'you asked: how are you?'",
        "b'bye'",
        "12 unknown method /com.example.Greeter/Nothing ()",
    ]


def test_calls_to_the_cluster_of_the_readme_are_shared_out_and_sent_again_where_its_policy_says_so(
    folder: Path,
) -> None:
    proxy, one, other = (f"unix:{folder}/{name}" for name in ("proxy", "one", "other"))
    addresses = {"0.0.0.0:8080": proxy, "10.0.0.7:50051": one, "10.0.0.8:50051": other}
    reached: list[tuple[str, str]] = []

    async def run_failing_at_first(address: str, name: str) -> None:
        async def answer(call: Call) -> None:
            if call.context.method.endswith("Health/Check"):
                raise RpcError(Status.UNIMPLEMENTED, "no such service")
            reached.append((name, call.context.method))
            if sum(method == call.context.method for _, method in reached) == 1:
                raise RpcError(Status.UNAVAILABLE, "not yet")
            call.send_headers()
            call.end(Status.OK)

        await Server(unknown_service_handler=answer).serve(address)

    async def main() -> None:
        async with trio.open_nursery() as nursery, Pool() as client:
            nursery.start_soon(run_failing_at_first, one, "one")
            nursery.start_soon(run_failing_at_first, other, "other")
            async with running(program_with("Cluster("), addresses):
                with trio.fail_after(60):
                    read, wrote = "/com.example.Catalogue/Get", "/com.example.Orders/Put"
                    assert (await ask(client, proxy, read, "x"))[0] is Status.OK
                    assert {name for name, _ in reached} == {"one", "other"}
                    assert (await ask(client, proxy, wrote, "x"))[0] is Status.UNAVAILABLE
                    assert sum(method == wrote for _, method in reached) == 1
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_director_that_changes_metadata_as_in_the_readme(folder: Path) -> None:
    upstream = f"unix:{folder}/upstream"
    code = program_with("x-forwarded-by").replace("127.0.0.1:50051", upstream)
    asked = rawgrpc_proxy.CallContext(
        method="/p.S/Get",
        metadata=rawgrpc_proxy.Metadata([(b"x-debug", b"1"), (b"x-kept", b"2")]),
        peer="unix:",
    )

    namespace: dict[str, Any] = {**vars(rawgrpc_proxy), "pool": Pool()}
    exec(compile(code, str(README), "exec"), namespace)  # noqa: S102  # our own README
    context, target = namespace["director"](asked, asked.method)
    assert list(context.metadata) == [("x-kept", "2"), ("x-forwarded-by", "edge-1")]
    assert target.address == upstream


def test_the_route_table_of_the_readme_is_one() -> None:
    namespace: dict[str, Any] = {"RouteTable": RouteTable, "pool": Pool()}
    exec(compile(program_with("default="), str(README), "exec"), namespace)  # noqa: S102  # our own README
    assert callable(namespace["director"])


def test_a_client_is_tested_as_in_the_readme() -> None:
    class MyClient:
        def __init__(self, target: str) -> None:
            self.target = target

        def get_order(self) -> None:
            trio.run(self._ask)

        async def _ask(self) -> None:
            async with Client(self.target, timeout=30) as client:
                while True:
                    with contextlib.suppress(RpcError):
                        await client.unary_unary("/shop.Orders/Get", b"7")
                        return

    exec(compile(program_with("ProxyInThread"), str(README), "exec"), {"my_client": MyClient})  # noqa: S102  # ours


async def connected(path: Path) -> trio.SocketStream:
    """A connection to this server, as soon as it is there."""
    while True:
        try:
            return await trio.open_unix_socket(path)
        except OSError:
            await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("text", "listens"),
    [
        ("staging.api.example.com", "0.0.0.0:8080"),
        ("StringValue", "127.0.0.1:8080"),
        ("Cluster(", "0.0.0.0:8080"),
    ],
)
def test_ctrl_c_ends_a_server_of_the_readme_without_a_word(folder: Path, text: str, listens: str) -> None:
    if text == "StringValue":
        pytest.importorskip("google.protobuf.wrappers_pb2")
    path = folder / "proxy"
    # A shell has what it runs in the background ignore Ctrl-C.
    first = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"

    async def main() -> None:
        code = first + program_with(text).replace(listens, f"unix:{path}")
        async with program(python=["-c", code]) as running:
            async with await connected(path) as caller:
                await caller.send_all(PREFACE + settings())
                assert await caller.receive_some(1)
                running.signal(signal.SIGINT)
                assert await running.exit_code() == 0, running.stderr
            assert running.stdout == []
            assert "Traceback" not in "\n".join(running.stderr)

    trio.run(main)


def test_every_python_example_of_the_readme_is_covered_by_a_test_above() -> None:
    assert len(blocks("python")) == 7


def test_every_command_of_the_readme_is_understood() -> None:
    commands = [
        shlex.split(line, comments=True)
        for block in blocks("sh")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("rawgrpc-proxy")
    ]
    assert len(commands) == 2
    for _, *arguments in commands:
        assert cli.make_parser().parse_args(arguments).command is not None


def test_every_option_of_serve_is_in_the_readme_or_on_the_page_of_settings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["serve", "--help"]) == 0
    options = set(re.findall(r"(?<![\w-])--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert len(options) > 8
    told = set(re.findall(r"`(--[a-z-]+)", TEXT))
    settings = (README.parent / "docs" / "settings.md").read_text(encoding="utf-8")
    assert told <= options
    assert options <= told | set(re.findall(r"Option: `(--[a-z-]+)`", settings))


def test_the_options_that_people_need_first_are_ten_and_all_others_are_in_the_man_page() -> None:
    table = re.findall(r"^\| (`--.*?) \|", TEXT, re.MULTILINE)
    assert len(re.findall("`--", "".join(table))) == 10
    man = (README.parent / "docs" / "rawgrpc-proxy.1").read_text(encoding="utf-8").replace("\\-", "-")
    _, commands = commands_of(cli.make_parser(whole=True))
    for command in commands:
        for option in command.options:
            assert option.names[-1] == "--help" or re.search(
                rf"^(\\fB-\w\\fR, )?\\fB{option.names[-1]}\\fR", man, re.MULTILINE
            ), option


def test_the_extras_of_the_readme_are_those_of_the_project() -> None:
    told = re.findall(r"^\| `(\w+)` \| ", TEXT[: TEXT.index("## As a library")], re.MULTILINE)
    project = tomllib.loads((README.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert told == list(project["optional-dependencies"])


def test_the_settings_files_of_the_readme_are_some() -> None:
    several, command = (settings_of([("README.md", tomllib.loads(each))]).serve for each in blocks("toml"))
    for serve in (several, command):
        assert serve.clusters["orders"].addresses == ("10.0.0.7:50051", "10.0.0.8:50051")
    assert several.clusters["orders"].health is not None
    assert several.clusters["orders"].outlier is not None
    assert [route.retry is not None for route in several.routes] == [True, False]


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make ([a-z]+)", "\n".join(blocks("sh")), re.MULTILINE))
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_name_of_the_table_exists() -> None:
    table = re.findall(r"^\| `[^`]+` \| `([^`]+)` \|", TEXT, re.MULTILINE)
    assert len(table) == 9
    for entry in table:
        owner, _, attribute = entry.removeprefix("await ").partition("(")[0].rpartition(".")
        home: object = {"": rawgrpc_proxy, "pool": Pool, "conn": rawgrpc_proxy.PoolConn}[owner]
        assert hasattr(home, attribute), entry
    for name in re.findall(r"`(\w+)`", TEXT[TEXT.index("Beside them: ") : TEXT.index("### The pool")]):
        assert name in rawgrpc_proxy.__all__, name


def headings(text: str) -> set[str]:
    """Those of a page, as links name them."""
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }


def test_files_and_headings_the_readme_links_to_exist() -> None:
    for target in re.findall(r"\]\(([^):]+)\)", TEXT):
        file, _, heading = target.partition("#")
        page = README.parent / file if file else README
        assert page.exists(), target
        if heading:
            assert heading in headings(page.read_text(encoding="utf-8")), target
