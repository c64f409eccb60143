"""What holds for all tests, whichever part of them runs."""

import gc
import sys

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no reason to fail.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_collection_finish() -> None:
    """Leave what pytest holds out of every later look of the garbage collector's: that took 40 to 100 ms each."""
    if sys.implementation.name == "cpython":
        gc.collect()
        gc.freeze()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Have nothing that a failed test has left be taken for another one's."""
    if report.failed:
        gc.collect()
