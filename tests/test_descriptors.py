"""The plan for file descriptors, and the limit it stands on."""

import errno
import os
import resource

import pytest

from rawgrpc_proxy import descriptors
from rawgrpc_proxy.descriptors import DescriptorPlan, raise_soft_limit, soft_limit

INFINITE = resource.RLIM_INFINITY


@pytest.mark.parametrize("limit", [8, 64, 256, 1024, 20_000, 1 << 20])
def test_both_sides_and_a_reserve_share_the_limit(limit: int) -> None:
    plan = DescriptorPlan.of(limit)
    assert plan.limit == limit
    assert plan.downstream >= plan.upstream >= 1
    reserve = limit - plan.downstream - plan.upstream
    assert reserve == min(64, limit // 4)


def test_the_plan_of_this_process_is_that_of_its_soft_limit() -> None:
    assert DescriptorPlan.of_this_process() == DescriptorPlan.of(
        resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    )


class System:
    """Takes a soft limit up to `highest`, as setrlimit(2) does."""

    def __init__(self, soft: int, hard: int, highest: int) -> None:
        self.limits = (soft, hard)
        self.highest = highest

    def getrlimit(self, _which: int) -> tuple[int, int]:
        return self.limits

    def setrlimit(self, _which: int, limits: tuple[int, int]) -> None:
        if limits[0] > self.highest:
            raise ValueError(os.strerror(errno.EINVAL))
        assert limits[1] == self.limits[1]
        self.limits = limits


@pytest.mark.parametrize(
    ("platform", "soft", "hard", "highest", "raised"),
    [
        ("linux", 1024, 8192, 8192, 8192),
        ("linux", 1024, 1024, 1024, 1024),
        ("linux", 1024, INFINITE, 1 << 30, 1 << 20),
        ("linux", 1024, 1 << 30, 1 << 30, 1 << 20),
        ("linux", 1 << 21, 1 << 30, 1 << 30, 1 << 21),
        ("linux", INFINITE, INFINITE, 1 << 30, INFINITE),
        ("linux", 1024, 8192, 0, 1024),
        ("darwin", 256, INFINITE, 10240, 10240),
        ("darwin", 256, INFINITE, 1 << 30, 1 << 20),
        ("darwin", 20_000, INFINITE, 10240, 20_000),
    ],
)
def test_the_soft_limit_is_raised_to_the_hard_one_as_far_as_makes_sense_and_never_lowered(
    platform: str, soft: int, hard: int, highest: int, raised: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = System(soft, hard, highest)
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(resource, "getrlimit", system.getrlimit)
    monkeypatch.setattr(resource, "setrlimit", system.setrlimit)
    raise_soft_limit()
    assert system.limits == (raised, hard)
    assert 0 < soft_limit() <= 1 << 20
    assert f"may have {soft_limit()} files open" in descriptors.remedy()
