"""trio 0.35, and the sockets under it: what cancelling, accepting, resolving and scheduling do."""

from __future__ import annotations

import errno
import logging
import math
import signal
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import pytest
import trio
from trio.testing import MemorySendStream, MockClock, memory_stream_pair, wait_all_tasks_blocked

HOUR = 3600.0


def run(main: Callable[[], Awaitable[object]]) -> None:
    """Run on a clock that jumps to the next deadline as soon as every task waits."""
    trio.run(main, clock=MockClock(autojump_threshold=0))


def run_without_clock(main: Callable[[], Awaitable[object]]) -> None:
    """Run where real sockets or threads must have their say before the clock may jump."""
    trio.run(main)


def stream_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    ours, theirs = trio.socket.socketpair()
    return trio.SocketStream(ours), trio.SocketStream(theirs)


async def read_until_silent(stream: trio.SocketStream) -> bytes:
    received = bytearray()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                while chunk := await stream.receive_some():
                    received.extend(chunk)

            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            scope.cancel()
    return bytes(received)


# --- Cancel scopes ---


def test_a_scope_that_is_left_before_one_inside_it_complains_and_puts_the_order_right() -> None:
    """A task that runs other people's code notices by `_cancel_status` that it has left a scope open."""

    async def main() -> None:
        task = trio.lowlevel.current_task()
        outside = task._cancel_status
        outer, left_open = trio.CancelScope(), trio.CancelScope()
        outer.__enter__()
        innermost = outer._cancel_status
        assert task._cancel_status is innermost
        with trio.CancelScope():
            await trio.lowlevel.checkpoint()
            assert task._cancel_status is not innermost
        assert task._cancel_status is innermost
        left_open.__enter__()
        assert task._cancel_status is not innermost
        with pytest.raises(RuntimeError, match="Cancel scope stack corrupted"):
            outer.__exit__(None, None, None)
        assert task._cancel_status is outside
        left_open.cancel()
        await trio.lowlevel.checkpoint()  # nobody is in that scope any more

    run(main)


def test_a_cancellation_that_is_raised_again_elsewhere_ends_the_nursery_without_a_word() -> None:
    """Whoever runs other people's code has to ask whether anything is cancelled here at all."""

    async def main() -> None:
        kept: list[trio.Cancelled] = []
        with trio.CancelScope() as scope:
            scope.cancel()
            assert trio.current_effective_deadline() == -math.inf
            try:
                await trio.sleep_forever()
            except trio.Cancelled as cancelled:
                kept.append(cancelled)
                raise
        assert trio.current_effective_deadline() == math.inf

        async def raises_again() -> NoReturn:
            raise kept[0]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(raises_again)
            nursery.start_soon(trio.sleep_forever)
        assert nursery.cancel_scope.cancelled_caught

    run(main)


# --- Writing ---


def test_a_cancelled_send_all_leaves_part_of_its_bytes_written_and_the_next_one_does_not_fail() -> None:
    """Nobody learns how many bytes went out, and what is sent next lands in the middle of a frame.

    The proxy has one writer per connection, cancelled only to end the connection, and writes nothing after a
    write that was cut short.
    """
    message = b"m" * 10_000_000

    async def main() -> None:
        ours, theirs = stream_pair()
        async with ours, theirs:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ours.send_all, message)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()

            arrived = await read_until_silent(theirs)
            assert 0 < len(arrived) < len(message)

            await ours.send_all(b"next")
            assert await theirs.receive_some() == b"next"

    run_without_clock(main)


def anonymous_tls(protocol: int) -> ssl.SSLContext:
    """TLS between two ends that show no certificate: all that the behaviour of a stream needs."""
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AECDH-AES128-SHA@SECLEVEL=0")
    return context


def test_a_cancelled_write_breaks_a_tls_stream() -> None:
    """TLS streams do remember: every later use raises BrokenResourceError. Only plaintext needs the flag."""

    async def main() -> None:
        ours, theirs = memory_stream_pair()
        assert isinstance(ours.send_stream, MemorySendStream)
        tls = trio.SSLStream(ours, anonymous_tls(ssl.PROTOCOL_TLS_CLIENT))
        peer = trio.SSLStream(theirs, anonymous_tls(ssl.PROTOCOL_TLS_SERVER), server_side=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tls.do_handshake)
            nursery.start_soon(peer.do_handshake)

        await tls.send_all(b"fine")
        ours.send_stream.send_all_hook = trio.sleep_forever
        with trio.move_on_after(1):
            await tls.send_all(b"cancelled")
        ours.send_stream.send_all_hook = None
        with pytest.raises(trio.BrokenResourceError):
            await tls.send_all(b"next")
        with pytest.raises(trio.BrokenResourceError):
            await tls.receive_some()
        await trio.aclose_forcefully(theirs)

    run(main)


def test_two_tasks_cannot_write_to_one_stream() -> None:
    """The second ``send_all`` does not wait for its turn: it raises. A connection has one writer."""

    async def main() -> None:
        ours, theirs = stream_pair()
        async with ours, theirs, trio.open_nursery() as nursery:
            nursery.start_soon(ours.send_all, b"m" * 10_000_000)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await ours.send_all(b"next")
            nursery.cancel_scope.cancel()

    run_without_clock(main)


def test_a_cancelled_receive_takes_no_bytes() -> None:
    """Reading under a timeout is safe, unlike writing: what arrives after the cancellation is still there."""

    async def main() -> None:
        ours, theirs = stream_pair()
        async with ours, theirs:
            with trio.CancelScope() as scope:
                scope.cancel()
                await ours.receive_some()
            assert scope.cancelled_caught
            await theirs.send_all(b"kept")
            with trio.CancelScope() as scope:
                scope.cancel()
                await ours.receive_some()
            assert scope.cancelled_caught
            assert await ours.receive_some() == b"kept"

    run_without_clock(main)


def test_notifying_of_a_close_wakes_whoever_waits_for_the_socket() -> None:
    """A plain socket that is just closed would leave its waiters asleep, or waiting on a stranger's descriptor.

    The proxy calls ``notify_closing`` before it closes a socket; reader and writer then see
    ClosedResourceError.
    """
    woken = []

    async def main() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours, theirs:
            while True:
                try:
                    ours.send(bytes(65_536))
                except BlockingIOError:
                    break

            async def expect_closed(wait: Callable[[socket.socket], Awaitable[None]]) -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await wait(ours)
                woken.append(wait)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect_closed, trio.lowlevel.wait_readable)
                nursery.start_soon(expect_closed, trio.lowlevel.wait_writable)
                await wait_all_tasks_blocked()
                trio.lowlevel.notify_closing(ours)
                ours.close()

    run_without_clock(main)
    assert len(woken) == 2


def test_closing_a_stream_wakes_its_reader_and_its_writer() -> None:
    """Both raise ClosedResourceError, so closing the socket is enough to end the tasks of a connection."""
    raised = []

    async def main() -> None:
        ours, theirs = stream_pair()

        async def expect_closed(call: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await call()
            raised.append(call)

        async with theirs, trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed, ours.receive_some)
            nursery.start_soon(expect_closed, lambda: ours.send_all(b"m" * 10_000_000))
            await wait_all_tasks_blocked()
            await ours.aclose()

    run_without_clock(main)
    assert len(raised) == 2


def test_tcp_streams_have_nagle_off_and_a_low_mark_for_unsent_bytes() -> None:
    """``SocketStream`` sets TCP_NODELAY and TCP_NOTSENT_LOWAT (16 KiB), and a socket taken out of one keeps them.

    With the latter the kernel holds little that is unsent, and a slow reader is felt early. Sockets which the
    proxy accepts itself do not have it unless it sets it.
    """

    async def main() -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener:
            stream = await trio.open_tcp_stream(*listener.socket.getsockname())
            async with stream:
                assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
                assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 2**14

    run_without_clock(main)


# --- Accepting ---


class ScriptedListener(trio.abc.Listener[trio.abc.Stream]):
    """Accepts whatever the script yields, raises what it yields of errors, then waits for ever."""

    def __init__(self, script: Iterator[trio.abc.Stream | OSError]) -> None:
        self._script = script
        self.accepted_at: list[float] = []

    async def accept(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        self.accepted_at.append(trio.current_time())
        for step in self._script:
            if isinstance(step, OSError):
                raise step
            return step
        await trio.sleep_forever()
        raise AssertionError

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def test_the_exception_of_one_connection_takes_the_server_down() -> None:
    """It leaves the handler's task, cancels the nursery, and with it the listener and every other connection.

    In the proxy nothing but cancellation leaves the task of a connection.
    """
    ended = []

    async def main() -> None:
        other_is_served = trio.Event()

        async def handler(stream: trio.abc.Stream) -> None:
            if await stream.receive_some() == b"bad":
                await other_is_served.wait()
                raise LookupError
            other_is_served.set()
            try:
                await trio.sleep_forever()
            finally:
                ended.append("the other connection")

        pairs = [memory_stream_pair() for _ in range(2)]
        listener = ScriptedListener(ours for ours, _ in pairs)
        await pairs[0][1].send_all(b"good")
        await pairs[1][1].send_all(b"bad")
        with trio.move_on_after(HOUR):
            await trio.serve_listeners(handler, [listener])

    with pytest.raises(BaseExceptionGroup) as caught:
        run(main)

    assert caught.group_contains(LookupError)
    assert ended == ["the other connection"]


def test_running_out_of_descriptors_pauses_accepting_and_logs_a_traceback_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At EMFILE trio logs an error with its traceback, sleeps for 100 ms, and tries again.

    The connections wait in the backlog meanwhile, and so do health checks. The proxy accepts in a loop of its
    own, which pauses as well but reports the trouble instead of logging it.
    """
    listener = ScriptedListener(OSError(code, "full") for code in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS))

    async def main() -> None:
        async def handler(_stream: trio.abc.Stream) -> NoReturn:
            raise AssertionError

        with trio.move_on_after(HOUR):
            await trio.serve_listeners(handler, [listener])

    with caplog.at_level(logging.ERROR, logger="trio.serve_listeners"):
        run(main)

    pauses = [later - earlier for earlier, later in pairwise(listener.accepted_at)]
    assert pauses == pytest.approx([0.1, 0.1, 0.1])
    assert len(caplog.records) == 3
    assert all(record.exc_info for record in caplog.records)


def test_any_other_error_of_accept_ends_the_server() -> None:
    """Errors that do not mean "busy" leave ``serve_listeners``. The proxy's own loop goes on accepting."""
    listener = ScriptedListener(iter([OSError(errno.EINVAL, "not listening")]))

    async def main() -> None:
        async def handler(_stream: trio.abc.Stream) -> NoReturn:
            raise AssertionError

        with trio.move_on_after(HOUR):
            await trio.serve_listeners(handler, [listener])

    with pytest.raises(BaseExceptionGroup) as caught:
        run(main)

    assert caught.group_contains(OSError)


def test_a_listener_accepts_without_limit() -> None:
    """Each accepted connection is a task more; nothing in ``serve_listeners`` stops at a number.

    A limit needs a loop of one's own, which the proxy has.
    """
    served = 0

    async def main() -> None:
        async def handler(_stream: trio.abc.Stream) -> None:
            nonlocal served
            served += 1
            await trio.sleep_forever()

        listener = ScriptedListener(memory_stream_pair()[0] for _ in range(2_000))
        with trio.move_on_after(HOUR):
            await trio.serve_listeners(handler, [listener])

    run(main)
    assert served == 2_000


def test_accepting_over_tls_does_not_shake_hands() -> None:
    """``SSLListener.accept`` returns at once; the handshake happens at first use and has no timeout.

    A peer that connects and says nothing would hold its task for ever. The proxy calls ``do_handshake`` under
    a deadline before anything else.
    """
    steps = []

    async def main() -> None:
        ours, silent = memory_stream_pair()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with trio.fail_after(HOUR):
            tls = await trio.SSLListener(ScriptedListener(iter([ours])), context).accept()
        steps.append("accepted")
        with trio.move_on_after(HOUR) as scope:
            await tls.do_handshake()
        assert scope.cancelled_caught
        steps.append("an hour later")
        await trio.aclose_forcefully(silent)

    run(main)
    assert steps == ["accepted", "an hour later"]


def listening_socket(port: int = 0, *, reuse_port: bool = False) -> socket.socket:
    sock = socket.socket()
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen(128)
    return sock


def connect_all(port: int, number: int) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", port)) for _ in range(number)]


def accept_all(listener: socket.socket) -> list[socket.socket]:
    listener.settimeout(0)
    accepted = []
    while True:
        try:
            accepted.append(listener.accept()[0])
        except BlockingIOError:
            return accepted


def close_all(socks: list[socket.socket]) -> None:
    for sock in socks:
        sock.close()


def test_closing_one_of_several_reuseport_sockets_loses_the_connections_in_its_queue() -> None:
    """Each SO_REUSEPORT socket has its own queue, and those waiting in it are reset when it closes.

    Their clients are connected already. Only a kernel with ``tcp_migrate_req`` on hands them over. The
    proxy's workers inherit one listening socket instead.
    """
    setting = Path("/proc/sys/net/ipv4/tcp_migrate_req")
    if setting.exists() and setting.read_text(encoding="ascii").strip() != "0":
        pytest.skip("this kernel hands queued connections over")
    first = listening_socket(reuse_port=True)
    port = first.getsockname()[1]
    second = listening_socket(port, reuse_port=True)
    clients = connect_all(port, 64)

    first.close()
    accepted = accept_all(second)

    assert 0 < len(accepted) < len(clients)
    close_all([*clients, *accepted, second])


def test_closing_one_of_several_handles_of_one_listening_socket_loses_nothing() -> None:
    """What workers inherit is one queue. It lives until the last of them has closed it."""
    first = listening_socket()
    second = first.dup()
    clients = connect_all(first.getsockname()[1], 64)

    first.close()
    accepted = accept_all(second)

    assert len(accepted) == len(clients)
    close_all([*clients, *accepted, second])


def test_listeners_opened_by_trio_do_not_share_their_port() -> None:
    """``open_tcp_listeners`` sets SO_REUSEADDR and not SO_REUSEPORT.

    The proxy opens its sockets before the workers.
    """

    async def main() -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener:
            assert listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) != 0
            assert listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0

    run_without_clock(main)


# --- Scheduling ---


def test_a_receive_without_a_size_takes_up_to_64_kib() -> None:
    """That much input of one peer is worked on in one turn, while all others wait.

    The smaller the read, the sooner the others have their turn; budgets bound what one read can cause.
    """

    async def main() -> None:
        ours, theirs = stream_pair()
        async with ours, theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**18)
            await ours.send_all(bytes(100_000))
            assert len(await theirs.receive_some()) == 65_536
            assert len(await theirs.receive_some(4_096)) == 4_096

    run_without_clock(main)


def test_a_task_that_always_finds_input_still_lets_the_others_run_between_its_reads() -> None:
    """``receive_some`` is a checkpoint even when data is there: each other ready task gets one turn per read.

    So a flood costs its victims one read's worth of work each turn.
    """
    turns = []

    async def main() -> None:
        ours, theirs = stream_pair()

        async def flooded() -> None:
            for _ in range(10):
                await theirs.receive_some(10)
                turns.append("flooded")
            nursery.cancel_scope.cancel()

        async def victim() -> None:
            while True:
                await trio.lowlevel.checkpoint()
                turns.append("victim")

        async with ours, theirs, trio.open_nursery() as nursery:
            await ours.send_all(bytes(100))
            nursery.start_soon(flooded)
            nursery.start_soon(victim)

    run_without_clock(main)
    assert 9 <= turns.count("victim") <= 12


def test_waiting_for_a_socket_that_is_readable_already_lets_the_others_run_first() -> None:
    """``wait_readable`` never returns at once.

    The proxy waits before each read, so it needs no other checkpoint.
    """
    turns = []

    async def main() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.send(b"ready")

            async def reader() -> None:
                for _ in range(10):
                    await trio.lowlevel.wait_readable(theirs)
                    turns.append("reader")
                nursery.cancel_scope.cancel()

            async def victim() -> None:
                while True:
                    await trio.lowlevel.checkpoint()
                    turns.append("victim")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader)
                nursery.start_soon(victim)

    run_without_clock(main)
    assert turns.count("victim") >= 9


def test_work_without_a_checkpoint_is_never_interrupted() -> None:
    """Not by other tasks, nor by a deadline that passes meanwhile: a timeout bounds waiting, not work.

    The proxy bounds the work that one read can cause, and waits before the next.
    """
    clock = MockClock()
    log: list[str] = []

    async def main() -> None:
        async def other() -> None:
            log.append("other")
            await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(1) as scope:  # noqa: ASYNC100 -- that it holds no checkpoint is the point
                nursery.start_soon(other)
                clock.jump(HOUR)
                log.append("work")
            assert not scope.cancelled_caught

    trio.run(main, clock=clock)
    assert log == ["work", "other"]


# --- Signals ---


def test_a_signal_is_received_only_inside_the_block_and_the_rest_are_delivered_again() -> None:
    """Before and after the block signals go to the old handler, which for SIGTERM is the end of the process.

    So does what was not taken when the block ends. The proxy installs its receiver before it listens: whoever
    can reach it can rely on a graceful stop.
    """
    to_the_old_handler: list[int] = []
    received: list[int] = []

    async def main() -> None:
        signal.raise_signal(signal.SIGUSR1)
        assert to_the_old_handler == [signal.SIGUSR1]
        with trio.open_signal_receiver(signal.SIGUSR1, signal.SIGUSR2) as signals:
            signal.raise_signal(signal.SIGUSR1)
            async for number in signals:
                received.append(number)
                break
            signal.raise_signal(signal.SIGUSR2)
            await wait_all_tasks_blocked()
            assert to_the_old_handler == [signal.SIGUSR1]

    numbers = (signal.SIGUSR1, signal.SIGUSR2)
    old = {
        number: signal.signal(number, lambda got, _frame: to_the_old_handler.append(got))
        for number in numbers
    }
    try:
        run_without_clock(main)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)

    assert received == [signal.SIGUSR1]
    assert to_the_old_handler == [signal.SIGUSR1, signal.SIGUSR2]


def test_a_signal_sent_twice_before_it_is_taken_arrives_once() -> None:
    """Two SIGHUPs in a row are one reload; a second SIGTERM counts only after the first was taken."""
    received: list[int] = []

    async def main() -> None:
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:

            async def take() -> None:
                async for number in signals:
                    received.append(number)  # noqa: PERF401 -- it never ends, so nothing but append would show it

            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGUSR1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(take)
                await wait_all_tasks_blocked()
                assert received == [signal.SIGUSR1]
                signal.raise_signal(signal.SIGUSR1)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()

    run_without_clock(main)
    assert received == [signal.SIGUSR1, signal.SIGUSR1]


# --- DNS ---


def test_looking_up_a_name_takes_a_thread_of_the_shared_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty threads serve every ``to_thread`` of the process.

    A dead name server fills them, and everything else that needs a thread waits behind it.
    ``open_tcp_stream`` looks names up this way, so a limiter of one's own means doing the lookup oneself.
    """
    monkeypatch.setattr(socket, "getaddrinfo", refuse_names)
    looked_up = []

    async def main() -> None:
        limiter = trio.to_thread.current_default_thread_limiter()
        assert limiter.total_tokens == 40
        for number in range(40):
            limiter.acquire_on_behalf_of_nowait(number)

        async def look_up() -> None:
            await trio.socket.getaddrinfo("greeter.example", 443)
            looked_up.append("greeter.example")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look_up)
            await wait_all_tasks_blocked()
            assert limiter.statistics().tasks_waiting == 1
            assert looked_up == []
            nursery.cancel_scope.cancel()
        for number in range(40):
            limiter.release_on_behalf_of(number)

    run_without_clock(main)


def refuse_names(host: str, *_args: object, **_kwargs: object) -> NoReturn:
    raise socket.gaierror(socket.EAI_NONAME, f"no number: {host}")


def test_a_numeric_address_takes_no_thread() -> None:
    """It is parsed in place, so backends given by address work even while name servers do not."""

    async def main() -> None:
        limiter = trio.to_thread.current_default_thread_limiter()
        for number in range(40):
            limiter.acquire_on_behalf_of_nowait(number)
        (found, *_) = await trio.socket.getaddrinfo("127.0.0.1", 443, type=socket.SOCK_STREAM)
        assert found[4] == ("127.0.0.1", 443)
        for number in range(40):
            limiter.release_on_behalf_of(number)

    run(main)


def test_a_cancelled_lookup_keeps_its_thread_until_the_resolver_returns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The task goes on at once and the thread is abandoned, together with its place under the limit.

    A timeout on lookups therefore bounds the wait of a call, not the number of threads: the limiter does
    that.
    """
    started, may_return = threading.Event(), threading.Event()

    def slow(host: str, *family_to_flags: int) -> list[object]:
        if family_to_flags[-1] & socket.AI_NUMERICHOST:
            refuse_names(host)
        started.set()
        may_return.wait(10)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)

    async def main() -> None:
        limiter = trio.to_thread.current_default_thread_limiter()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.socket.getaddrinfo, "greeter.example", 443)
                await wait_all_tasks_blocked()
                assert started.wait(10)
                nursery.cancel_scope.cancel()
            assert limiter.borrowed_tokens == 1
        finally:
            may_return.set()
        while limiter.borrowed_tokens:
            await trio.lowlevel.checkpoint()

    run_without_clock(main)
