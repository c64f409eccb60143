"""The pytest plugin of rawgrpc-proxy: the fixture `grpc_proxy`, and the calls seen in the report of a failed test.

Outside of the package, for pytest imports plugins in every run, of whatever project: this one brings nothing along
until a test asks for the fixture. See docs/testing.md.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rawgrpc_proxy.testing import ProxyInThread

_began: pytest.StashKey[float] = pytest.StashKey()
"""When the test began: a proxy that serves several tests has seen the calls of others, too."""


@pytest.fixture
def grpc_proxy() -> "Iterator[Callable[..., ProxyInThread]]":
    """Starts proxies that run until the end of the test.

        proxy = grpc_proxy("127.0.0.1:50051")

    The arguments are those of `rawgrpc_proxy.testing.ProxyInThread`.
    """
    from rawgrpc_proxy.testing import ProxyInThread  # noqa: PLC0415  # here and not above: see the top

    with contextlib.ExitStack() as running:

        def start(*arguments: object, **options: object) -> ProxyInThread:
            return running.enter_context(ProxyInThread(*arguments, **options))  # type: ignore[arg-type]

        yield start


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note when it began."""
    item.stash[_began] = time.monotonic()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the proxies have seen that run now, if the test has failed."""
    report = yield
    module = sys.modules.get("rawgrpc_proxy.testing.in_thread")
    if module is not None and report.failed:
        for proxy in list(module.running):
            seen = proxy.in_words(since=item.stash.get(_began, 0.0))
            if seen:
                report.sections.append((f"gRPC calls seen by {proxy.target}", seen))
    return report
