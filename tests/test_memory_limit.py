"""How much memory the process may use, by its control groups."""

import os
from pathlib import Path

import pytest

from rawgrpc_proxy.memory_limit import default_max_buffered_bytes, memory_limit

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
MIB = 2**20


def groups(root: Path, own: str, limits: dict[str, str]) -> int:
    names = root / "own"
    names.write_text(own)
    for file, text in limits.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)
    return memory_limit(root, names)


def test_the_smallest_limit_from_the_own_group_to_the_root_holds(tmp_path: Path) -> None:
    limits = {"a/b/memory.max": "max\n", "a/memory.max": f"{90 * MIB}\n", "a/memory.high": f"{80 * MIB}\n"}
    assert groups(tmp_path, "0::/a/b\n", limits) == 80 * MIB


def test_a_group_of_version_1_counts(tmp_path: Path) -> None:
    own = "5:cpu:/x\n4:hugetlb,memory:/x\n"
    assert groups(tmp_path, own, {"memory/x/memory.limit_in_bytes": f"{70 * MIB}\n"}) == 70 * MIB


def test_in_a_container_only_the_root_is_to_be_seen(tmp_path: Path) -> None:
    assert groups(tmp_path, "0::/docker/4711\n", {"memory.max": f"{60 * MIB}\n"}) == 60 * MIB


@pytest.mark.parametrize("own", ["", "0::/nowhere\n", "nonsense\n"])
def test_without_limits_it_is_the_machine(tmp_path: Path, own: str) -> None:
    assert groups(tmp_path, own, {}) == MACHINE


def test_without_control_groups_it_is_the_machine(tmp_path: Path) -> None:
    assert memory_limit(tmp_path, tmp_path / "missing") == MACHINE


def test_a_quarter_may_wait_within_bounds() -> None:
    assert 32 * MIB <= default_max_buffered_bytes() <= 512 * MIB
