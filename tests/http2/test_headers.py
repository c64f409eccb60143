"""Header lists: what is remembered with one, and its size as peers count it."""

import pytest

from rawgrpc_proxy.http2.headers import HeaderList, Headers, check_fields, size_of


def test_a_size_is_what_a_peers_limit_counts() -> None:
    assert size_of([]) == 0
    assert size_of([(b"ab", b"c"), (b"d", b"")]) == 4 + 2 * 32


def test_work_on_a_list_is_done_once_and_for_each_kind_of_work() -> None:
    done: list[str] = []

    def names(headers: Headers) -> list[bytes]:
        done.append("names")
        return [name for name, _ in headers]

    def nothing(_headers: Headers) -> None:
        done.append("nothing")

    headers = HeaderList([(b"a", b"1"), (b"b", b"2")])
    for _ in range(3):
        assert headers.once(names) == [b"a", b"b"]
        assert headers.once(nothing) is None
    assert HeaderList([(b"c", b"")]).once(names) == [b"c"]
    assert done == ["names", "nothing", "names"]


def test_work_that_fails_is_done_again() -> None:
    tries = 0

    def work(_headers: Headers) -> int:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ValueError
        return tries

    headers = HeaderList()
    with pytest.raises(ValueError):
        headers.once(work)
    assert headers.once(work) == 2


def test_what_is_no_field_is_named() -> None:
    with pytest.raises(TypeError, match="the name of a header field is bytes, not str \\('a'\\)"):
        check_fields([("a", b"")])
