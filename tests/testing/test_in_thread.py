"""A proxy in a thread, for tests that are no trio programs: what it sees, answers, and how it begins and ends."""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio

from rawgrpc_proxy import CallContext, Client, ConfigError, Pool, RpcError, Status, StreamDirector, Target
from rawgrpc_proxy.net.tapped import Link, LinkTap
from rawgrpc_proxy.testing import Keeps, ProxyInThread
from rawgrpc_proxy.testing.loop_thread import LoopThread

GET, LIST = "/shop.Orders/Get", "/shop.Orders/List"


def ask(
    where: str,
    method: str = GET,
    request: bytes = b"7",
    *,
    context: ssl.SSLContext | None = None,
    **more: Any,
) -> bytes:
    """A unary call by our own client, from a thread without a loop."""

    async def main() -> bytes:
        async with Client(where, ssl_context=context, timeout=10) as client:
            return await client.unary_unary(method, request, **more)

    return trio.run(main)


def ask_in_vain(where: str, method: str = GET, **more: Any) -> RpcError:
    with pytest.raises(RpcError) as failed:
        ask(where, method, **more)
    return failed.value


# ------------------------------------------------------------------------------ what is seen


def test_a_call_is_seen_with_all_that_its_caller_said_and_got() -> None:
    with ProxyInThread() as backend, ProxyInThread(backend.target) as proxy:
        backend.answer(GET, [b"an order"], metadata={"x-first": "1"}, trailers={"x-last-bin": b"\xff"})
        assert ask(proxy.target, metadata={"x-user": "bob"}) == b"an order"
        # No waiting: whoever has its status finds it here.
        [call] = proxy.calls
        assert call.method == GET
        assert call.status is Status.OK
        assert call.metadata["x-user"] == "bob"
        assert call.metadata[":path"] == GET
        assert call.request_messages == [b"7"]
        assert call.response_messages == [b"an order"]
        assert call.response_metadata is not None
        assert call.response_metadata["x-first"] == "1"
        assert call.trailers is not None
        assert call.trailers["x-last-bin"] == b"\xff"
        assert call.upstream == backend.target
        assert call.peer.startswith("127.0.0.1:")
        assert call.duration_s is not None
        assert 0 < call.duration_s < 10
        assert call.left_out == 0


def test_the_status_is_the_one_that_the_caller_got() -> None:
    with ProxyInThread() as backend, ProxyInThread(backend.target) as proxy:
        backend.answer(GET, status="NOT_FOUND", message="no order 7: ä")
        assert ask_in_vain(proxy.target).status is Status.NOT_FOUND
        assert ask_in_vain(proxy.target, LIST).status is Status.UNIMPLEMENTED
        first = proxy.calls[0]
        assert (first.status, first.message) == (Status.NOT_FOUND, "no order 7: ä")
        assert proxy.calls[1].status is Status.UNIMPLEMENTED
        assert GET in proxy.calls[1].message  # which answers there are


def test_an_upstream_that_is_down_is_unavailable_and_the_cause_is_told() -> None:
    with ProxyInThread("127.0.0.1:1") as proxy:
        assert ask_in_vain(proxy.target).status is Status.UNAVAILABLE
        assert proxy.calls[0].status is Status.UNAVAILABLE
        with pytest.raises(AssertionError, match=r"the connection to 127\.0\.0\.1:1 failed"):
            proxy.wait_for(status="OK", timeout_s=0)


def test_several_upstreams_are_a_cluster() -> None:
    with ProxyInThread() as a, ProxyInThread() as b:
        a.answer(GET, [b"a"])
        b.answer(GET, [b"b"])
        with ProxyInThread([a.target, b.target], cluster={"balance": "round_robin"}) as proxy:
            assert sorted(ask(proxy.target) for _ in range(4)) == [b"a", b"a", b"b", b"b"]
            assert {call.upstream for call in proxy.calls} == {a.target, b.target}


def test_a_director_of_the_test_s_own_directs() -> None:
    with ProxyInThread() as backend:
        backend.answer(GET, [b"there"])

        def make(pool: Pool) -> StreamDirector:
            def director(context: CallContext, method: str) -> tuple[CallContext, Target]:
                if method != GET:
                    raise RpcError(Status.PERMISSION_DENIED, "not for you")
                return context, pool.target(backend.target)

            return director

        with ProxyInThread(director=make) as proxy:
            assert ask(proxy.target) == b"there"
            assert ask_in_vain(proxy.target, LIST).status is Status.PERMISSION_DENIED


def test_what_a_director_raises_is_told_to_the_test() -> None:
    def make(_pool: Pool) -> StreamDirector:
        def director(_context: CallContext, _method: str) -> NoReturn:
            raise KeyError("oops")

        return director

    with ProxyInThread(director=make) as proxy:
        assert ask_in_vain(proxy.target).status is Status.INTERNAL
        assert "has raised KeyError: 'oops'" in proxy.in_words()


def test_tls_on_both_sides(tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()

    def server() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["h2"])
        authority.issue_cert("127.0.0.1").configure_cert(context)
        return context

    client = ssl.create_default_context()
    client.set_alpn_protocols(["h2"])
    authority.configure_trust(client)
    with (
        ProxyInThread(tls=server()) as backend,
        ProxyInThread(backend.target, tls=server(), upstream_tls=client) as proxy,
    ):
        backend.answer(GET, [b"secret"])
        assert ask(proxy.target, context=client) == b"secret"
        assert proxy.calls[0].response_messages == [b"secret"]
        # A client without TLS: no call, and the reason is told.
        assert ask_in_vain(proxy.target).status is Status.UNAVAILABLE
        with pytest.raises(AssertionError, match="no TLS"):
            proxy.wait_for(count=2, timeout_s=1)


def test_what_is_kept_is_bounded() -> None:
    keeps = Keeps(calls=2, messages=2, message_bytes=100, total_bytes=150)
    with ProxyInThread(keeps=keeps) as proxy:
        proxy.answer(GET, [b"a", b"b", b"c", b"x" * 101])
        proxy.answer(LIST, [b"y" * 90])

        async def stream() -> int:
            async with Client(proxy.target) as client, client.unary_stream(GET, b"") as call:
                return sum([len(reply) async for reply in call])

        assert trio.run(stream) == 104
        [call] = proxy.calls
        assert call.response_messages == [b"a", b"b"]
        assert call.left_out == 2
        for _ in range(3):
            ask(proxy.target, LIST)
        assert [len(call.response_messages) for call in proxy.calls] == [1]  # 2 × 90 are more than 150
        assert "(3 calls before these are not kept)" in proxy.in_words()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the tap that raises
def test_taps_of_one_s_own_see_the_connections_as_well() -> None:
    class Counting:
        def __init__(self) -> None:
            self.links: list[Link] = []
            self.bytes = 0

        def link(self, link: Link) -> LinkTap:
            self.links.append(link)
            return self

        def received(self, data: Any) -> None:
            self.bytes += len(data)

        def sent(self, data: Any) -> None:
            raise ValueError("a bug in a tap")

        def closed(self) -> None:
            pass

    tap = Counting()
    with ProxyInThread() as backend, ProxyInThread(backend.target, taps=[tap]) as proxy:
        backend.answer(GET, [b"x"])
        assert ask(proxy.target) == b"x"
        assert proxy.calls[0].status is Status.OK
        assert {link.side.value for link in tap.links} == {"downstream", "upstream"}
        assert tap.bytes > 24


# ------------------------------------------------------------------------------ waiting


def test_wait_for_answers_calls_that_come_later() -> None:
    with ProxyInThread() as proxy:
        proxy.answer(GET, status="UNAVAILABLE", times=1)
        proxy.answer(LIST, [b"l"])
        callers = [threading.Thread(target=ask, args=(proxy.target, LIST)) for _ in range(2)]
        for caller in callers:
            caller.start()
        found = proxy.wait_for(method="/shop.Orders/*", status=Status.OK, count=2, timeout_s=30)
        assert [call.method for call in found] == [LIST, LIST]
        for caller in callers:
            caller.join()
        ask_in_vain(proxy.target)
        assert len(proxy.wait_for(method=GET, status=14)) == 1
        assert len(proxy.wait_for(count=3)) == 3
        proxy.clear()
        assert proxy.calls == ()


def test_wait_for_says_what_was_seen_instead() -> None:
    with ProxyInThread() as proxy:
        with pytest.raises(AssertionError, match=r"there are 0\. Seen was:\nno call at all"):
            proxy.wait_for(timeout_s=0)
        proxy.answer(GET, status="NOT_FOUND", message="gone")
        ask_in_vain(proxy.target, metadata={"authorization": "Bearer hidden"})
        with pytest.raises(AssertionError) as failed:
            proxy.wait_for(method=GET, status="OK", count=2, timeout_s=0)
        text = str(failed.value)
        assert f"2 calls of {GET} with status OK within 0 s: there are 0" in text
        assert f"{GET}: NOT_FOUND 'gone', messages: 1 out, 0 back" in text
        assert "hidden" not in text


def test_wait_for_a_call_that_is_open() -> None:
    with ProxyInThread() as proxy:
        proxy.answer(GET, delay_s=3600)
        caller = threading.Thread(target=ask_in_vain, args=(proxy.target,))
        caller.start()
        [call] = proxy.wait_for(method=GET, ended=False, timeout_s=30)
        assert call.status is None
        assert call.duration_s is None
        with pytest.raises(AssertionError, match=f"{GET}: open"):
            proxy.wait_for(method=GET, timeout_s=0)
    caller.join()  # the end of the block has ended its call


def test_a_status_may_be_written_as_other_libraries_have_it() -> None:
    grpc = pytest.importorskip("grpc")
    with ProxyInThread() as proxy:
        proxy.answer(GET, status=grpc.StatusCode.ABORTED)
        ask_in_vain(proxy.target)
        assert proxy.wait_for(status=grpc.StatusCode.ABORTED)[0].status is Status.ABORTED
        for wrong in ("OKAY", 99, object(), True):
            with pytest.raises(ConfigError, match="is no status; write one of OK"):
                proxy.wait_for(status=wrong)


# ------------------------------------------------------------------------------ answers


def test_the_last_answer_goes_first_until_it_is_used_up_or_removed() -> None:
    with ProxyInThread() as proxy:
        proxy.answer(GET, [b"first"])
        proxy.answer(GET, status="UNAVAILABLE", times=2)
        assert [ask_in_vain(proxy.target).status for _ in range(2)] == [Status.UNAVAILABLE] * 2
        assert ask(proxy.target) == b"first"
        with proxy.answer(GET, [b"for now"]) as answer:
            assert ask(proxy.target) == b"for now"
        assert ask(proxy.target) == b"first"
        answer.remove()  # once more does nothing


def test_an_answer_waits_for_the_whole_request() -> None:
    with ProxyInThread() as proxy:
        proxy.answer(GET, [b"x"])

        async def main() -> None:
            async with Client(proxy.target, timeout=30) as client, client.stream_stream(GET) as call:
                for number in range(3):
                    await call.send(b"%d" % number)
                await trio.to_thread.run_sync(lambda: proxy.wait_for(ended=False, timeout_s=30))
                assert proxy.calls[0].status is None
                await call.done_sending()
                assert await call.receive() == b"x"

        trio.run(main)
        assert proxy.calls[0].request_messages == [b"0", b"1", b"2"]


def test_answers_stand_before_the_upstream() -> None:
    with ProxyInThread() as backend, ProxyInThread(backend.target) as proxy:
        backend.answer(GET, [b"there"])
        with proxy.answer(GET, [b"here"]):
            assert ask(proxy.target) == b"here"
            assert proxy.calls[0].upstream is None
        assert ask(proxy.target) == b"there"


def test_answers_may_be_protobuf_messages() -> None:
    wrappers = pytest.importorskip("google.protobuf.wrappers_pb2")
    with ProxyInThread() as proxy:
        proxy.answer(GET, [wrappers.StringValue(value="x")])
        assert wrappers.StringValue.FromString(ask(proxy.target)).value == "x"


def test_what_cannot_be_an_answer_is_refused_where_it_is_written() -> None:
    with ProxyInThread() as proxy:
        for wrong in ("Get", "", "/a?b"):
            with pytest.raises(ConfigError, match="is no gRPC method"):
                proxy.answer(wrong)
        with pytest.raises(ConfigError, match="is no status"):
            proxy.answer(GET, status="FINE")
        with pytest.raises(ConfigError, match="a status that is not OK"):
            proxy.answer(GET, message="why not")
        with pytest.raises(TypeError):
            proxy.answer(GET, ["text"])
        with pytest.raises(ConfigError, match=r"write \[b'one'\]"):
            proxy.answer(GET, b"one")
        with pytest.raises(ValueError, match="not a metadata key"):
            proxy.answer(GET, trailers={"x y": "1"})


# ------------------------------------------------------------------------------ its life


def test_what_is_wrong_at_the_start_is_raised_in_the_test_s_thread() -> None:
    threads = threading.active_count()
    with pytest.raises(ConfigError, match="is no address"), ProxyInThread("nowhere"):
        pass
    with (
        ProxyInThread() as first,
        pytest.raises(ConfigError, match="in use"),
        ProxyInThread(listen=first.target),
    ):
        pass
    with pytest.raises(ConfigError, match="balance"), ProxyInThread(["a:1"], cluster={"balance": "magic"}):
        pass
    with pytest.raises(ConfigError, match="one of upstream and director"):
        ProxyInThread("a:1", director=lambda _pool: _never)
    assert threading.active_count() == threads


def _never(_context: CallContext, _method: str) -> NoReturn:
    raise AssertionError


def test_it_is_used_in_its_block_and_once() -> None:
    proxy = ProxyInThread()
    with pytest.raises(RuntimeError, match="does not run yet"):
        _ = proxy.target
    with pytest.raises(RuntimeError, match="does not run yet"):
        proxy.answer(GET)
    with proxy:
        proxy.answer(GET, [b"x"])
        ask(proxy.target)
    assert proxy.calls[0].status is Status.OK  # may be looked at afterwards
    with pytest.raises(RuntimeError, match="has ended"):
        proxy.wait_for(count=2)
    with pytest.raises(ConfigError, match="was started before"), proxy:
        pass


def test_the_end_leaves_neither_thread_nor_listener_nor_file() -> None:
    ask_first = ProxyInThread()
    with ask_first:  # what is opened once for all
        pass
    files, threads = _open_files(), threading.active_count()
    with ProxyInThread() as backend, ProxyInThread(backend.target) as proxy:
        backend.answer(GET, [b"x"])
        ask(proxy.target)
        target = proxy.target
    assert threading.active_count() == threads
    assert _open_files() == files
    assert ask_in_vain(target).status is Status.UNAVAILABLE


def _open_files() -> int:
    folder = Path("/proc/self/fd")
    return len(list((folder if folder.is_dir() else Path("/dev/fd")).iterdir()))


def crash(proxy: ProxyInThread) -> None:
    """Have a task of the proxy's thread raise: what a fault of ours would do."""

    async def fail() -> NoReturn:
        raise ZeroDivisionError("a fault of ours")

    def begin() -> None:
        trio.lowlevel.spawn_system_task(fail)

    proxy._loop.ask(begin)


def test_a_crash_is_told_at_the_end_and_to_those_who_wait() -> None:
    proxy = ProxyInThread()

    def a_test() -> None:
        with proxy:
            crash(proxy)
            with pytest.raises(RuntimeError, match="has crashed"):
                proxy.wait_for(timeout_s=30)
            with pytest.raises(RuntimeError, match="has crashed"):
                proxy.answer(GET)

    with pytest.raises(RuntimeError, match="has crashed") as told:
        a_test()
    assert "a fault of ours" in "".join(traceback.format_exception(told.value))


def test_whoever_waits_hears_of_a_crash_at_once() -> None:
    proxy = ProxyInThread()

    async def fail_when_somebody_waits() -> NoReturn:
        while not proxy._seen.changed._waiters:  # type: ignore[attr-defined]  # noqa: ASYNC110  # Python has no event for it
            await trio.sleep(0.01)
        raise ZeroDivisionError("a fault of ours")

    def a_test() -> None:
        with proxy:
            proxy._loop.ask(lambda: trio.lowlevel.spawn_system_task(fail_when_somebody_waits))
            proxy.wait_for(timeout_s=60)

    began = time.monotonic()
    with pytest.raises(RuntimeError, match="has crashed"):
        a_test()
    assert time.monotonic() - began < 30


def test_a_start_that_is_interrupted_leaves_no_thread() -> None:
    async def main(_started: Any) -> None:
        await trio.sleep_forever()

    threads = threading.active_count()
    loop = LoopThread("the thread", lambda: None)
    loop._end()  # as by Ctrl-C, before the thread has come far
    with pytest.raises(RuntimeError, match="was ended before it was ready"):
        loop.start(main)
    loop.stop()
    assert threading.active_count() == threads


def test_a_crash_does_not_hide_what_the_test_has_raised() -> None:
    def a_test() -> None:
        with ProxyInThread() as proxy:
            crash(proxy)
            with contextlib.suppress(RuntimeError):
                proxy.wait_for(timeout_s=30)
            raise KeyError("of the test")

    with pytest.raises(KeyError) as told:
        a_test()
    assert "has crashed" in told.value.__notes__[0]


def test_a_director_that_blocks_the_thread_is_named_when_the_end_does_not_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rawgrpc_proxy.testing.loop_thread._STOP_S", 0.1)
    let_go = threading.Event()

    def make(_pool: Pool) -> StreamDirector:
        def director_that_blocks(_context: CallContext, _method: str) -> NoReturn:
            let_go.wait()
            raise RpcError(Status.ABORTED)

        return director_that_blocks

    proxy = ProxyInThread(director=make)
    callers: list[threading.Thread] = []

    def a_test() -> None:
        with proxy:
            callers.append(threading.Thread(target=ask_in_vain, args=(proxy.target,)))
            callers[0].start()
            proxy.wait_for(ended=False, timeout_s=30)

    with pytest.raises(RuntimeError, match=r"does not end within 0\.1 s") as told:
        a_test()
    let_go.set()
    assert "director_that_blocks" in str(told.value)
    callers[0].join()
    proxy._loop.stop()  # its thread ends now


def test_ctrl_c_in_a_test_ends_the_proxy_with_its_block() -> None:
    program = f"""
import signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it runs in the background ignore it
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from rawgrpc_proxy.testing import ProxyInThread
try:
    with ProxyInThread() as proxy:
        print(proxy.target, flush=True)
        proxy.wait_for(timeout_s=600)
except KeyboardInterrupt:
    print("interrupted", threading.active_count(), flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert ":" in child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "interrupted 1\n"
        assert child.wait(60) == 0


def test_whoever_forgets_the_end_does_not_wait_for_ever() -> None:
    program = "from rawgrpc_proxy.testing import ProxyInThread; ProxyInThread().__enter__(); print('done')"
    done = subprocess.run(
        [sys.executable, "-c", program], timeout=60, check=True, capture_output=True, text=True
    )
    assert done.stdout == "done\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_is_told_that_the_proxy_is_not_there() -> None:
    def child(answers: Any) -> None:
        try:
            for use in (lambda: proxy.calls, proxy.wait_for, proxy.clear, lambda: proxy.answer(GET)):
                try:
                    use()
                except RuntimeError as error:
                    answers.put(str(error))
            proxy.__exit__(None, None, None)  # ends nothing of the parent's
        finally:
            answers.put("")

    fork: Any = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    with ProxyInThread() as proxy:
        proxy.answer(GET, [b"still there"])
        process = fork.Process(target=child, args=(answers,))
        process.start()
        said = list(iter(answers.get, ""))
        process.join()
        assert len(said) == 4
        assert all("this one was forked" in text for text in said)
        assert ask(proxy.target) == b"still there"


# ------------------------------------------------------------------------------ clients of others


def test_grpcio() -> None:
    grpc = pytest.importorskip("grpc")
    with ProxyInThread() as backend, ProxyInThread(backend.target) as proxy:
        backend.answer(GET, [b"one", b"two"], trailers={"x-last": "z"})
        with grpc.insecure_channel(proxy.target, compression=grpc.Compression.Gzip) as channel:
            call = channel.unary_stream(GET)(b"abc" * 100, metadata=(("x-user", "bob"),))
            assert list(call) == [b"one", b"two"]
            with pytest.raises(grpc.RpcError) as failed:
                channel.unary_unary(LIST)(b"")
            assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
        [seen, _] = proxy.calls
        assert seen.request_messages == [b"abc" * 100]  # which was sent compressed
        assert seen.metadata["grpc-encoding"] == "gzip"
        assert seen.metadata["x-user"] == "bob"


def test_grpcio_aio() -> None:
    aio = pytest.importorskip("grpc.aio")

    async def main(proxy: ProxyInThread) -> None:
        async with aio.insecure_channel(proxy.target) as channel:
            assert await channel.unary_unary(GET)(b"7") == b"x"
            assert proxy.calls[0].status is Status.OK
            waiting = asyncio.create_task(
                asyncio.to_thread(proxy.wait_for, method=GET, count=2, timeout_s=30)
            )
            await channel.unary_unary(GET)(b"8")
            assert [call.request_messages for call in await waiting] == [[b"7"], [b"8"]]

    with ProxyInThread() as proxy:
        proxy.answer(GET, [b"x"])
        asyncio.run(main(proxy))


def test_grpclib() -> None:
    client = pytest.importorskip("grpclib.client")
    wrappers = pytest.importorskip("google.protobuf.wrappers_pb2")

    async def main(proxy: ProxyInThread) -> None:
        host, _, port = proxy.target.rpartition(":")
        async with client.Channel(host, int(port)) as channel:
            method = client.UnaryUnaryMethod(channel, GET, wrappers.StringValue, wrappers.StringValue)
            assert (await method(wrappers.StringValue(value="a"))).value == "b"

    with ProxyInThread() as proxy:
        proxy.answer(GET, [wrappers.StringValue(value="b")])
        asyncio.run(main(proxy))
        assert wrappers.StringValue.FromString(proxy.calls[0].request_messages[0]).value == "a"
