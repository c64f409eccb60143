"""Several taps are one, and none of them hurts the others."""

import pytest

from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.http2.frames import Data
from rawgrpc_proxy.lab.taps import several_taps
from rawgrpc_proxy.net.tapped import Link, LinkTap

LINK = Link(number=1, side=Side.DOWNSTREAM, peer="a:1", tls=None)


class Keeps:
    def __init__(self, *, wants: bool = True, fails_at: str = "") -> None:
        self._wants, self._fails_at = wants, fails_at
        self.told: list[str] = []

    def link(self, link: Link) -> LinkTap | None:
        self._note("link")
        return self if self._wants else None

    def received(self, data: Data) -> None:
        self._note(f"received {bytes(data).decode()}")

    def sent(self, data: Data) -> None:
        self._note(f"sent {bytes(data).decode()}")

    def closed(self) -> None:
        self._note("closed")

    def _note(self, what: str) -> None:
        self.told.append(what)
        if self._fails_at and what.startswith(self._fails_at):
            raise ValueError("a bug in a tap")


def pass_something(*taps: Keeps) -> None:
    tap = several_taps(*taps).link(LINK)
    assert tap is not None
    tap.received(b"a")
    tap.sent(b"b")
    tap.received(b"c")
    tap.closed()


def test_all_of_them_are_told_of_all() -> None:
    first, second = Keeps(), Keeps()
    pass_something(first, second)
    assert first.told == second.told == ["link", "received a", "sent b", "received c", "closed"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what is raised is told
def test_one_that_raises_is_told_nothing_more_and_the_others_are() -> None:
    broken, never, fine = Keeps(fails_at="sent"), Keeps(fails_at="link"), Keeps()
    pass_something(broken, never, fine)
    assert broken.told == ["link", "received a", "sent b"]
    assert never.told == ["link"]
    assert len(fine.told) == 5


def test_where_nobody_wants_to_see_a_connection_nobody_does() -> None:
    assert several_taps(Keeps(wants=False), Keeps(wants=False)).link(LINK) is None
