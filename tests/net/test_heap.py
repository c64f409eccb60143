"""Free memory goes back to the system, where the C library can be asked for it."""

import platform
import sys
from pathlib import Path

import pytest

from rawgrpc_proxy.net import heap


def resident_mib() -> float:
    """Of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.skipif(
    sys.platform != "linux" or platform.python_implementation() != "CPython" or heap._trim is None,
    reason="malloc cannot be told here, or is not asked",
)
def test_what_lies_between_small_objects_is_given_back() -> None:
    pieces, between = list[bytearray](), list[bytearray]()
    for _ in range(4000):
        pieces.append(bytearray(b"x" * 16_000))
        between.append(bytearray(600))
    before = resident_mib()
    pieces.clear()

    heap.shrink_heap()

    assert resident_mib() < before - 40
    assert len(between) == 4000
