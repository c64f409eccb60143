"""Pollers: sockets that are readable are read, in rounds, and each watcher's trouble is its own."""

import contextvars
import errno
import gc
import itertools
import select
import socket
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import trio
import trio.testing

from rawgrpc_proxy.net import poller as module
from rawgrpc_proxy.net.poller import EpollPoller, TaskPoller, Then, current_poller
from rawgrpc_proxy.net.turn import current_turn
from tests.upstream.backend import run

KINDS = {"epoll": EpollPoller, "tasks": TaskPoller}
needs_epoll = pytest.mark.skipif(not hasattr(select, "epoll"), reason="this system has no epoll")


@pytest.fixture(params=[pytest.param("epoll", marks=needs_epoll), "tasks"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which poller `current_poller` makes."""
    name: str = request.param
    if name == "tasks":
        monkeypatch.setattr(module, "select", types.SimpleNamespace())  # a system without epoll
    return name


@pytest.fixture
def links() -> Iterator["Links"]:
    with ExitStack() as stack:
        yield Links(stack)


class Links:
    """Pairs of sockets: ours, which is watched, and theirs."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def new(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        self._stack.enter_context(ours)
        self._stack.enter_context(theirs)
        ours.settimeout(0)
        return ours, theirs


class Reads:
    """Reads from a socket, up to `wanted` times; what it has read is in `got`."""

    def __init__(
        self, sock: socket.socket, wanted: int = 1_000_000, after: Callable[[], None] = lambda: None
    ) -> None:
        self.got: list[bytes] = []
        self._sock = sock
        self._wanted = wanted
        self._after = after

    def __call__(self) -> Then:
        self.got.append(self._sock.recv(100))
        self._after()
        return Then.WAIT if len(self.got) < self._wanted else Then.STOP


class Connection:
    """Something to flush."""

    def __init__(self) -> None:
        self.flushes = 0

    def flush(self) -> None:
        self.flushes += 1


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked()


def test_what_comes_is_read_as_it_comes_until_it_is_enough(kind: str, links: Links) -> None:
    ours, theirs = links.new()
    reads = Reads(ours, wanted=2)

    async def test() -> None:
        assert type(current_poller()) is KINDS[kind]
        assert current_poller() is current_poller()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(current_poller().watch, ours.fileno(), reads)
            await settled()
            assert reads.got == []
            theirs.send(b"one")
            await settled()
            assert reads.got == [b"one"]
            theirs.send(b"two")
        theirs.send(b"nobody wants this")
        await settled()
        assert reads.got == [b"one", b"two"]
        await current_poller().watch(ours.fileno(), reads)  # and again

    run(test)
    assert reads.got == [b"one", b"two", b"nobody wants this"]


def test_what_is_left_unread_is_told_again(kind: str, links: Links) -> None:
    ours, theirs = links.new()
    reads = Reads(ours, wanted=2)

    async def test() -> None:
        theirs.send(bytes(200))
        await current_poller().watch(ours.fileno(), reads)

    run(test)
    assert reads.got == [bytes(100), bytes(100)]


@pytest.mark.usefixtures("kind")
def test_the_end_of_a_peer_is_told_like_bytes(links: Links) -> None:
    ours, theirs = links.new()
    reads = Reads(ours, wanted=1)

    async def test() -> None:
        theirs.close()
        await current_poller().watch(ours.fileno(), reads)

    run(test)
    assert reads.got == [b""]


@pytest.mark.usefixtures("kind")
def test_what_a_reader_raises_goes_to_who_watches_and_others_go_on(links: Links) -> None:
    (bad, to_bad), (good, to_good) = links.new(), links.new()
    reads = Reads(good, wanted=2)

    def raises() -> Then:
        raise ConnectionResetError("they hung up")

    async def test() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(current_poller().watch, good.fileno(), reads)
            to_bad.send(b"x")
            to_good.send(b"x")
            with pytest.raises(ConnectionResetError, match="hung up"):
                await current_poller().watch(bad.fileno(), raises)
            await settled()
            assert reads.got == [b"x"]
            to_good.send(b"y")

    run(test)
    assert reads.got == [b"x", b"y"]


@pytest.mark.usefixtures("kind")
def test_who_is_cancelled_reads_no_more_and_may_come_again(links: Links) -> None:
    ours, theirs = links.new()
    reads = Reads(ours, wanted=1)

    async def test() -> None:
        with trio.move_on_after(0) as scope:
            await current_poller().watch(ours.fileno(), reads)
        assert scope.cancelled_caught
        theirs.send(b"later")
        await settled()
        assert reads.got == []
        await current_poller().watch(ours.fileno(), reads)

    run(test)
    assert reads.got == [b"later"]


@pytest.mark.usefixtures("kind")
def test_who_gives_up_in_the_middle_of_a_round_is_left_alone(links: Links) -> None:
    # Whichever of the two is read first cancels the other, whose socket is readable in the same round.
    scopes = trio.CancelScope(), trio.CancelScope()
    pairs = links.new(), links.new()
    reads = [
        Reads(ours, after=scope.cancel) for (ours, _), scope in zip(pairs, reversed(scopes), strict=True)
    ]

    async def watch(number: int) -> None:
        with scopes[number]:
            await current_poller().watch(pairs[number][0].fileno(), reads[number])

    async def test() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, 0)
            nursery.start_soon(watch, 1)
            await settled()
            for _, theirs in pairs:
                theirs.send(b"x")
            await settled()
            nursery.cancel_scope.cancel()

    run(test)
    assert 1 <= len(reads[0].got) + len(reads[1].got) <= 2


@pytest.mark.usefixtures("kind")
def test_a_reader_may_cancel_who_watches_and_stop_in_one(links: Links) -> None:
    ours, theirs = links.new()

    async def test() -> None:
        with trio.CancelScope() as scope:
            theirs.send(b"x")
            await current_poller().watch(ours.fileno(), Reads(ours, wanted=1, after=scope.cancel))
        theirs.send(b"y")
        await current_poller().watch(ours.fileno(), Reads(ours, wanted=1))

    run(test)


@pytest.mark.usefixtures("kind")
def test_a_reader_may_cancel_who_watches_and_raise_in_one(links: Links) -> None:
    ours, theirs = links.new()

    async def test() -> None:
        with trio.CancelScope() as scope:

            def raises() -> Then:
                scope.cancel()
                raise AssertionError("a fault of ours")

            theirs.send(b"x")
            with pytest.raises(AssertionError, match="of ours"):
                await current_poller().watch(ours.fileno(), raises)

    run(test)


@needs_epoll
def test_who_is_gone_when_his_turn_comes_is_left_alone(links: Links) -> None:
    pairs = [links.new() for _ in range(2)]
    reads: list[Reads] = []

    async def test() -> None:
        poller = current_poller()

        def close_the_others() -> None:
            for number, (ours, _) in enumerate(pairs):
                if not reads[number].got:
                    poller.closing(ours.fileno())

        reads.extend(Reads(ours, wanted=1, after=close_the_others) for ours, _ in pairs)
        failed = []

        async def watch(number: int) -> None:
            try:
                await poller.watch(pairs[number][0].fileno(), reads[number])
            except OSError:
                failed.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(watch, number)
            await settled()
            for _, theirs in pairs:
                theirs.send(b"x")
        assert len(failed) == 1
        assert reads[failed[0]].got == []

    run(test)


@pytest.mark.usefixtures("kind")
def test_a_socket_that_is_closed_is_an_os_error_to_who_watches(links: Links) -> None:
    ours, _ = links.new()
    fd = ours.fileno()

    async def test() -> None:
        poller = current_poller()
        poller.closing(fd)  # nobody watches: nothing to tell
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                with pytest.raises(OSError) as error:
                    await poller.watch(fd, Reads(ours))
                assert error.value.errno == errno.EBADF

            nursery.start_soon(watch)
            await settled()
            poller.closing(fd)
            ours.close()

    run(test)


@pytest.mark.usefixtures("kind")
def test_readers_have_the_context_of_who_watches(links: Links) -> None:
    ours, theirs = links.new()
    variable = contextvars.ContextVar("variable", default="of nobody")
    seen: list[str] = []

    def look() -> Then:
        seen.append(variable.get())
        return Then.WAIT if ours.recv(1) and len(seen) < 2 else Then.STOP

    async def test() -> None:
        current_poller()
        variable.set("of who watches")
        theirs.send(b"12")
        await current_poller().watch(ours.fileno(), look)

    run(test)
    assert seen == ["of who watches"] * 2


@pytest.mark.usefixtures("kind")
def test_what_a_read_touches_is_flushed(links: Links) -> None:
    ours, theirs = links.new()
    connection = Connection()

    async def test() -> None:
        turn = current_turn()

        def touch() -> None:
            assert turn.collecting
            turn.dirty.append(connection)

        theirs.send(b"x")
        await current_poller().watch(ours.fileno(), Reads(ours, wanted=1, after=touch))
        assert not turn.collecting

    run(test)
    assert connection.flushes == 1


@needs_epoll
def test_the_reads_of_a_round_are_flushed_together_sixteen_at_a_time(
    links: Links, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "perf_counter", lambda: 0.0)  # no round ends early
    pairs = [links.new() for _ in range(40)]
    connection = Connection()

    async def test() -> None:
        turn = current_turn()

        def touch() -> None:
            if connection not in turn.dirty:
                turn.dirty.append(connection)

        async with trio.open_nursery() as nursery:
            for ours, _ in pairs:
                reads = Reads(ours, wanted=1, after=touch)
                nursery.start_soon(current_poller().watch, ours.fileno(), reads)
            await settled()
            for _, theirs in pairs:
                theirs.send(b"x")

    run(test)
    assert connection.flushes == 3


@needs_epoll
def test_others_get_their_turn_between_two_rounds(links: Links, monkeypatch: pytest.MonkeyPatch) -> None:
    """However quick the reads are."""
    monkeypatch.setattr(module, "perf_counter", lambda: 0.0)
    pairs = [links.new() for _ in range(300)]
    order: list[str] = []

    async def test() -> None:
        async with trio.open_nursery() as nursery:
            for ours, _ in pairs:
                reads = Reads(ours, wanted=1, after=lambda: order.append("read"))
                nursery.start_soon(current_poller().watch, ours.fileno(), reads)
            await settled()
            for _, theirs in pairs:
                theirs.send(b"x")
            while len(order) < len(pairs):
                order.append("other")
                await trio.lowlevel.checkpoint()

    run(test)
    longest = max(len(reads) for reads in "".join(word[0] for word in order).split("o"))
    assert longest <= 2 * 64  # trio may run the reader last in one pass, and first in the next


@pytest.mark.usefixtures("kind")
def test_what_has_read_is_not_kept_alive(links: Links) -> None:
    ours, theirs = links.new()

    async def test() -> None:
        theirs.send(b"x")
        reads = Reads(ours, wanted=1)
        alive = weakref.ref(reads)
        await current_poller().watch(ours.fileno(), reads)
        del reads
        await settled()
        gc.collect()
        assert alive() is None

    run(test)


@needs_epoll
def test_who_watches_when_the_run_has_ended_gets_an_os_error(links: Links) -> None:
    ours, _ = links.new()
    ends: list[int | None] = []

    async def linger() -> None:
        poller = current_poller()
        assert isinstance(poller, EpollPoller)
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                while not poller._epoll.closed:
                    await trio.lowlevel.checkpoint()
                with pytest.raises(OSError) as error:
                    await poller.watch(ours.fileno(), Reads(ours))
                ends.append(error.value.errno)

    async def watch_on() -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 0.05):
            await current_poller().watch(ours.fileno(), Reads(ours))
        ends.append(None)

    async def test() -> None:
        trio.lowlevel.spawn_system_task(linger)
        trio.lowlevel.spawn_system_task(watch_on)
        await settled()

    run(test)
    assert sorted(map(str, ends)) == [str(errno.EBADF), "None"]


@needs_epoll
def test_nothing_is_left_when_the_run_ends(links: Links) -> None:
    ours, _ = links.new()

    async def test() -> None:
        poller = current_poller()
        assert isinstance(poller, EpollPoller)
        pollers.append(poller)
        with trio.move_on_after(0):
            await poller.watch(ours.fileno(), Reads(ours))

    pollers: list[EpollPoller] = []
    run(test)
    assert pollers[0]._epoll.closed
    assert not pollers[0]._watches


@needs_epoll
def test_a_round_ends_after_three_milliseconds_and_the_next_begins_with_who_was_left_out(
    links: Links, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four sockets that always have something, and give two milliseconds of work each."""
    clock = [0.0]
    monkeypatch.setattr(module, "perf_counter", lambda: clock[0])
    story: list[str] = []

    class EndOfRound:
        def flush(self) -> None:
            if story[-1] != "|":
                story.append("|")

    async def test() -> None:
        turn, end = current_turn(), EndOfRound()
        async with trio.open_nursery() as nursery:
            for name in "abcd":
                ours, theirs = links.new()
                theirs.send(b"x" * 1000)

                def work(name: str = name, ours: socket.socket = ours) -> Then:
                    ours.recv(10)
                    story.append(name)
                    turn.dirty.append(end)
                    clock[0] += 0.002
                    return Then.WAIT if len(story) < 20 else Then.STOP

                nursery.start_soon(current_poller().watch, ours.fileno(), work)

    run(test)
    rounds = "".join(story).split("|")
    assert [len(reads) for reads in rounds[:4]] == [2, 2, 2, 2]
    assert "".join(rounds)[:12] in {"".join(order) * 3 for order in itertools.permutations("abcd")}
