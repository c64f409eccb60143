"""The programs in `examples/` do what they say, each in a process of its own."""

import json
import re
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any

import pytest
import trio

from rawgrpc_proxy import Client, RpcError, ServedCall, codec, unary_unary
from rawgrpc_proxy.call import Call
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.command.certs import write_certificates
from rawgrpc_proxy.grpc.messages import encode_message
from rawgrpc_proxy.server.server import Server
from tests.certificates import issued_by
from tests.processes import Program, program
from tests.proxy.raw_peers import Answer, RawPeer, message

EXAMPLES = Path(__file__).parent.parent / "examples"
GET = "/p.S/Get"


@asynccontextmanager
async def backend(name: str) -> AsyncIterator[str]:
    """Answers every method with its name and the metadata that the proxy has to do with; gives its address."""

    async def answer(call: Call) -> None:
        seen = [
            f"{key}={value!s}"
            for key, value in call.context.metadata
            if key in {"x-env", "x-user", "x-client-identity", "grpc-timeout"}
        ]
        call.send_headers([(b"server", b"secret/1.0"), (b"x-kept", b"1")])
        call.stream.send_data(encode_message(" ".join([name, *seen]).encode()))
        call.end(Status.OK, metadata=[(b"x-internal-shard", b"7"), (b"x-cost", b"3")])

    async with trio.open_nursery() as nursery:
        yield await nursery.start(Server(unknown_service_handler=answer).serve, "127.0.0.1:0")
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def example(name: str, *arguments: str) -> AsyncIterator[tuple[Program, str]]:
    """Run it, give it and its address, and have it end well at Ctrl-C."""
    async with program(python=[str(EXAMPLES / f"{name}.py"), *arguments]) as running:
        yield running, await running.address()
        running.signal(SIGINT)
        assert await running.exit_code() == 0, running.stderr
        assert not [line for line in running.stderr if "Traceback" in line or "Error" in line]


async def ask(
    address: str, path: str = GET, *metadata: tuple[bytes, bytes], context: ssl.SSLContext | None = None
) -> Answer:
    """A unary call through a connection of its own."""
    host, _, port = address.rpartition(":")
    transport: trio.abc.Stream = await trio.open_tcp_stream(host, int(port))
    if context is not None:
        transport = trio.SSLStream(transport, context, server_hostname=host, https_compatible=True)
    async with trio.open_nursery() as nursery:
        peer = await nursery.start(RawPeer(transport, client_side=True).run)
        stream = await peer.request(path, *metadata, body=message(b""))
        answer: Answer = await stream.answer()
        nursery.cancel_scope.cancel()
    return answer


def text_of(answer: Answer) -> str:
    return answer.body[5:].decode()


def test_calls_go_where_their_metadata_says() -> None:
    async def main() -> None:
        async with backend("a") as a, backend("b") as b:
            arguments = ("127.0.0.1:0", f"prod={a}", f"staging={b}")
            async with example("route_by_metadata", *arguments) as (_, proxy):
                assert text_of(await ask(proxy)) == "a"
                assert text_of(await ask(proxy, GET, (b"x-env", b"prod"))) == "a"
                assert text_of(await ask(proxy, GET, (b"x-env", b"staging"))) == "b"
                refused = await ask(proxy, GET, (b"x-env", b"moon"))
                assert refused.status == Status.INVALID_ARGUMENT
                assert refused.message == b"x-env is none of prod, staging"

    trio.run(main)


def test_upstreams_are_told_whose_certificate_a_caller_has_and_some_methods_are_for_some(
    tmp_path: Path,
) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    write_certificates(tmp_path)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    (tmp_path / "server.key").write_bytes((tmp_path / "server.pem").read_bytes())

    def caller(*uris: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        context.set_alpn_protocols(["h2"])
        (tmp_path / "caller.pem").write_bytes(issued_by(authority, [("2.5.4.3", "x")], uris=uris))
        context.load_cert_chain(tmp_path / "caller.pem")
        return context

    admin, cart = "spiffe://shop.example/ns/ops/sa/admin", "spiffe://shop.example/ns/prod/sa/cart"
    method = "/com.example.Admin/Drop"

    async def main() -> None:
        async with (
            backend("a") as a,
            example("mutual_tls", "127.0.0.1:0", a, str(tmp_path), admin) as (_, proxy),
        ):
            lie = (b"x-client-identity", f"URI={admin}".encode())
            heard = await ask(proxy, GET, lie, context=caller(cart))
            assert text_of(heard) == f"a x-client-identity=URI={cart}"
            refused = await ask(proxy, method, lie, context=caller(cart))
            assert refused.status == Status.PERMISSION_DENIED
            assert (await ask(proxy, method, context=caller(admin))).status == Status.OK

    trio.run(main)


def test_prometheus_reads_the_metrics_of_a_program() -> None:
    def scrape(url: str) -> str:
        with urllib.request.urlopen(url) as answer:  # noqa: S310  # loopback
            text: str = answer.read().decode()
        return text

    async def main() -> None:
        async with backend("a") as a, example("metrics", "127.0.0.1:0", a, "0") as (running, proxy):
            url = (await running.line(r"^metrics: (\S+)$", "stdout"))[1]
            for _ in range(3):
                assert (await ask(proxy)).status == Status.OK
            text = await trio.to_thread.run_sync(scrape, url)
            count = re.search(r'^grpc_server_handled_total\{.*grpc_code="OK".*\} (\S+)$', text, re.MULTILINE)
            assert count is not None, text
            assert float(count[1]) == 3

    trio.run(main)


def test_responses_leave_the_edge_without_what_is_internal() -> None:
    async def main() -> None:
        async with backend("a") as a, example("change_responses", "127.0.0.1:0", a, "edge-7") as (_, proxy):
            answer = await ask(proxy)
            assert answer.status == Status.OK
            assert re.fullmatch(r"a grpc-timeout=\d+\w", text_of(answer))  # the deadline that it had not
            assert answer.headers is not None
            assert answer.trailers is not None
            assert answer.headers.get_all(b"x-served-by") == [b"edge-7"]
            assert answer.headers.get_all(b"x-kept") == [b"1"]
            assert answer.headers.get(b"server") is None
            assert answer.trailers.get(b"x-internal-shard") is None
            assert answer.trailers.get(b"x-cost") == b"3"

    trio.run(main)


def test_another_service_is_asked_before_a_call_goes_on() -> None:
    wrappers = pytest.importorskip("google.protobuf.wrappers_pb2")

    async def may(request: Any, call: ServedCall) -> Any:
        if request.value == "/p.S/Broken":
            raise RpcError(Status.INTERNAL, "secret")
        return wrappers.BoolValue(value=call.context.metadata.get("authorization") == "Bearer alice")

    async def main() -> None:
        access = Server(codec=codec())
        access.add_method("/com.example.Access/May", unary_unary(may, wrappers.StringValue))
        async with backend("a") as a, trio.open_nursery() as nursery:
            address = await nursery.start(access.serve, "127.0.0.1:0")
            async with example("ask_first", "127.0.0.1:0", address, a) as (_, proxy):
                alice = (b"authorization", b"Bearer alice")
                assert text_of(await ask(proxy, GET, alice)) == "a"
                refused = await ask(proxy, GET)
                assert refused.status == Status.PERMISSION_DENIED
                assert refused.message == b"/p.S/Get is not for you"
                unsaid = await ask(proxy, "/p.S/Broken", alice)
                assert unsaid.status == Status.UNAVAILABLE
                assert unsaid.message == b"nobody can say who may call this"
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_callers_are_known_by_their_tokens_and_upstreams_by_their_names_alone() -> None:
    async def main() -> None:
        async with (
            backend("a") as a,
            example("auth_director", "127.0.0.1:0", a, "alice=wonder", "bob=build") as (_, proxy),
        ):
            lie = (b"x-user", b"root")
            heard = await ask(proxy, GET, (b"authorization", b"Bearer wonder"), lie)
            assert text_of(heard) == "a x-user=alice"
            heard = await ask(proxy, GET, (b"authorization", b"Bearer build"))
            assert text_of(heard) == "a x-user=bob"
            for wrong in (
                (b"authorization", b"Bearer wonde"),
                (b"authorization", b"wonder"),
                (b"x-user", b"bob"),
            ):
                assert (await ask(proxy, GET, wrong)).status == Status.UNAUTHENTICATED
            assert text_of(await ask(proxy, "/grpc.health.v1.Health/Check", lie)) == "a"

    trio.run(main)


def test_a_canary_gets_the_same_users_each_time_and_whoever_asks_for_it() -> None:
    async def main() -> None:
        async with backend("a") as a, backend("b") as b:
            async with example("canary", "127.0.0.1:0", a, b, "30") as (_, proxy):
                users = [f"user-{n}".encode() for n in range(30)]
                first = [text_of(await ask(proxy, GET, (b"x-user", user))) for user in users]
                again = [text_of(await ask(proxy, GET, (b"x-user", user))) for user in users]
                assert [text[0] for text in first] == [text[0] for text in again]
                assert {"a", "b"} == {text[0] for text in first}
                assert text_of(await ask(proxy, GET, (b"x-canary", b"yes"))) == "b"
            async with example("canary", "127.0.0.1:0", a, b, "0") as (_, proxy):
                assert text_of(await ask(proxy)) == "a"
            async with example("canary", "127.0.0.1:0", a, b, "100") as (_, proxy):
                assert text_of(await ask(proxy)) == "b"

    trio.run(main)


def test_methods_of_its_own_are_answered_and_all_others_passed_on() -> None:
    wrappers = pytest.importorskip("google.protobuf.wrappers_pb2")

    async def main() -> None:
        async with backend("a") as a, example("own_methods", "127.0.0.1:0", a) as (_, proxy):
            async with Client(proxy, codec=codec(), timeout=30) as client:
                bob, greeter = wrappers.StringValue(value="bob"), "/com.example.Greeter"
                call = client.unary_unary(f"{greeter}/Hello", bob, wrappers.StringValue)
                assert (await call).value == "hello bob"
                with pytest.raises(RpcError, match="INVALID_ARGUMENT: who are you"):
                    await client.unary_unary(f"{greeter}/Hello", b"", wrappers.StringValue)
                async with client.unary_stream(f"{greeter}/Count", bob, wrappers.Int64Value) as counting:
                    assert [reply.value async for reply in counting] == [1, 2, 3]
                assert await client.unary_unary("/grpc.health.v1.Health/Check", b"") == b"\x08\x01"
            assert text_of(await ask(proxy)) == "a"

    trio.run(main)


def test_what_passes_becomes_lines_of_json_without_secrets() -> None:
    async def main() -> None:
        async with (
            backend("a") as a,
            program(python=[str(EXAMPLES / "tap_to_json.py"), "127.0.0.1:0", a]) as running,
        ):
            proxy = (await running.line(r"^listening on (\S+)$"))[1]
            await ask(proxy, GET, (b"authorization", b"Bearer hidden"), (b"x-env", b"prod"))
            await ask(proxy, "/grpc.health.v1.Health/Check")
            await running.line('"event": ?"end"', "stdout")
            running.signal(SIGTERM)
            assert await running.exit_code() == 0, running.stderr
            rows = [json.loads(line) for line in running.stdout]
            assert [row["event"] for row in rows] == ["begin", "message", "message", "end"]
            assert {row["method"] for row in rows} == {GET}
            assert ["x-env", "prod"] in rows[0]["headers"]
            assert rows[-1]["status"] == "OK"
            assert not any("hidden" in line for line in running.stdout)

    trio.run(main)


def test_fields_of_messages_are_counted() -> None:
    def protobuf(*fields: int) -> bytes:
        return b"".join(bytes([number << 3, 1]) for number in fields)

    async def main() -> None:
        async with backend("a") as a, example("count_fields", "127.0.0.1:0", a) as (running, proxy):
            async with Client(proxy, timeout=30) as client:
                for fields in ((1, 2), (1,), (1, 3)):
                    await client.unary_unary(GET, protobuf(*fields))
            running.signal(SIGTERM)
            assert await running.exit_code() == 0, running.stderr
            assert f"{GET} requests: 3, field 1 in 3, field 2 in 1, field 3 in 1" in running.stdout

    trio.run(main)


def test_a_recording_is_replayed_and_says_what_has_changed(tmp_path: Path) -> None:
    async def main() -> None:
        arguments = [str(EXAMPLES / "record_and_replay.py"), str(tmp_path / "calls.jsonl")]
        async with program(python=arguments) as running:
            assert await running.exit_code() == 0, running.stderr
            assert "the same version: no difference" in running.stdout
            changes = running.stdout[running.stdout.index("the next version:") + 1 :]
            assert len(changes) == 3
            assert "stream 3" in changes[0]
            assert "grpc-status 0 instead of grpc-status 5" in changes[1]

    trio.run(main)


@pytest.mark.parametrize("first", ["", "sys.modules['grpc'] = None; "], ids=["grpcio", "own client"])
def test_the_tests_of_a_client_that_retries_pass(first: str) -> None:
    arguments = ["-q", "-p", "pytest_rawgrpc_proxy", "-p", "no:cacheprovider"]
    arguments.append(str(EXAMPLES / "test_flaky_backend.py"))

    async def main() -> None:
        code = f"import sys; {first}import pytest; sys.exit(pytest.main({arguments!r}))"
        async with program(python=["-c", code]) as running:
            assert await running.exit_code() == 0, running.stdout
            assert re.search(r"^\d+ passed", running.stdout[-1]), running.stdout

    trio.run(main)


def test_every_example_says_how_to_run_it_when_it_is_not_told_enough() -> None:
    for file in EXAMPLES.glob("*.py"):
        if file.name.startswith("test_"):
            continue
        done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"python examples/{file.name}" in done.stderr
        assert "Traceback" not in done.stderr


def test_every_example_is_run_above_and_linked_from_the_readme() -> None:
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    tests = Path(__file__).read_text(encoding="utf-8")
    for file in EXAMPLES.glob("*.py"):
        assert f'example("{file.stem}"' in tests or f'EXAMPLES / "{file.name}"' in tests
        assert f"(examples/{file.name})" in readme
