"""Processes that accept from one socket share the connections out, and do not depend on each other."""

import os
import socket

import trio

from rawgrpc_proxy.net.accept_share import AcceptShare, shared_counts
from rawgrpc_proxy.net.listen import accept_forever
from tests.net.test_listen import LOOPBACK, connected_to, no_trouble, open_listener
from tests.upstream.backend import run


def opened(share: AcceptShare, connections: int) -> None:
    for _ in range(connections):
        share.opened()


def test_a_process_with_more_connections_than_another_is_ahead() -> None:
    counts = shared_counts(3)
    first, second, third = shares = [AcceptShare(counts, number) for number in range(3)]

    def ahead() -> list[bool]:
        return [share.is_ahead for share in shares]

    assert ahead() == [False, False, False]
    first.opened()
    assert ahead() == [True, False, False]
    second.opened()
    assert ahead() == [True, True, False]
    third.opened()
    assert ahead() == [False, False, False]
    first.opened()
    first.closed()
    assert ahead() == [False, False, False]


def test_an_eighth_more_of_many_connections_is_not_ahead() -> None:
    counts = shared_counts(2)
    first, second = AcceptShare(counts, 0), AcceptShare(counts, 1)
    opened(first, 90)
    opened(second, 80)

    assert not first.is_ahead
    first.opened()
    assert first.is_ahead


def test_a_process_that_takes_a_dead_ones_place_begins_with_nothing() -> None:
    counts = shared_counts(2)
    other, dead = AcceptShare(counts, 0), AcceptShare(counts, 1)
    opened(other, 5)
    opened(dead, 5)
    assert not other.is_ahead

    AcceptShare(counts, 1)

    assert other.is_ahead


def test_processes_see_each_others_counts() -> None:
    counts = shared_counts(2)
    share = AcceptShare(counts, 0)
    share.opened()

    pid = os.fork()
    if not pid:
        opened(AcceptShare(counts, 1), 2)
        os._exit(0)
    os.waitpid(pid, 0)

    assert not share.is_ahead


async def taken(listener: socket.socket, share: AcceptShare, peers: list[str]) -> None:
    """Accept as a process with this share does, and note the peers; the connections stay open."""
    kept = []

    def on_accept(sock: socket.socket, peer: str) -> None:
        kept.append(sock)
        share.opened()
        peers.append(peer)

    try:
        await accept_forever(listener, on_accept, no_trouble, share)
    finally:
        for sock in kept:
            sock.close()


def test_a_crowd_is_dealt_out_evenly() -> None:
    async def test() -> None:
        counts = shared_counts(2)
        peers: tuple[list[str], list[str]] = ([], [])
        with open_listener(LOOPBACK) as listener, listener.dup() as same, connected_to(listener, 20):
            async with trio.open_nursery() as nursery:
                for number, each in enumerate((listener, same)):
                    nursery.start_soon(taken, each, AcceptShare(counts, number), peers[number])
                while len(peers[0]) + len(peers[1]) < 20:
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        assert abs(len(peers[0]) - len(peers[1])) <= 2

    run(test)


def test_a_process_that_hangs_leaves_its_connections_to_the_others() -> None:
    async def test() -> None:
        counts = shared_counts(2)
        AcceptShare(counts, 1)  # never accepts
        peers: list[str] = []
        with open_listener(LOOPBACK) as listener, connected_to(listener, 5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(taken, listener, AcceptShare(counts, 0), peers)
                while len(peers) < 5:
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()

    run(test)
