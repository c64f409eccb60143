"""The fixture `grpc_proxy` and the report of a failed test, in pytest runs of their own."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = "pytest_rawgrpc_proxy"

CALLER = """
import pytest, trio
from rawgrpc_proxy import Client, RpcError
from rawgrpc_proxy.testing import ProxyInThread

def ask(target, method):
    async def main():
        async with Client(target, timeout=10, metadata={"authorization": "Bearer hidden"}) as client:
            return await client.unary_unary(method, b"secret of a user")
    return trio.run(main)
"""


def run(folder: Path, test: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A run of pytest by itself, with the plugin and nothing of ours beside."""
    (folder / "test_it.py").write_text(test, encoding="utf-8")
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            PLUGIN,
            "-p",
            "no:cacheprovider",
            "--tb=short",
            "-q",
            *arguments,
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_the_fixture_starts_proxies_and_a_failed_test_shows_their_calls(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        CALLER
        + """
@pytest.fixture(scope="module")
def shared():
    with ProxyInThread() as proxy:
        proxy.answer("/p.S/Shared", [b"x"])
        yield proxy

def test_it_passes(grpc_proxy, shared):
    backend = grpc_proxy()
    backend.answer("/p.S/Passes", [b"ok"])
    proxy = grpc_proxy(backend.target)
    assert ask(proxy.target, "/p.S/Passes") == b"ok"
    assert proxy.wait_for(method="/p.S/Passes")[0].upstream == backend.target
    ask(shared.target, "/p.S/Shared")

def test_it_fails(grpc_proxy, shared):
    proxy = grpc_proxy()
    proxy.answer("/p.S/Fails", status="ABORTED", message="try later")
    shared.answer("/p.S/Now", [b"y"])
    ask(shared.target, "/p.S/Now")
    ask(proxy.target, "/p.S/Fails")
""",
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert "gRPC calls seen by 127.0.0.1:" in done.stdout
    assert "/p.S/Fails: ABORTED 'try later', messages: 1 out, 0 back" in done.stdout
    assert "/p.S/Now: OK" in done.stdout
    # Neither what other tests have called, nor what may be secret.
    for absent in ("/p.S/Shared:", "/p.S/Passes", "hidden", "secret of a user"):
        assert absent not in done.stdout.replace('b"secret of a user"', "")


def test_a_crash_of_the_proxy_is_an_error_of_the_test(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        CALLER
        + """
def test_it(grpc_proxy):
    async def fail():
        raise ZeroDivisionError("a fault of ours")
    proxy = grpc_proxy()
    proxy._loop.ask(lambda: trio.lowlevel.spawn_system_task(fail) and None)
""",
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "a fault of ours" in done.stdout
    assert "has crashed" in done.stdout


def test_runs_that_do_not_use_it_import_nothing_of_it(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
import sys

def test_nothing():
    assert not {"rawgrpc_proxy", "trio", "h2", "attr"} & set(sys.modules)
""",
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_entry_point_has_the_name_of_its_module() -> None:
    # pytest knows a plugin by its name: with another one `-p pytest_rawgrpc_proxy` would load it twice, an error.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {PLUGIN: PLUGIN}


def test_a_fixture_of_a_test_that_is_interrupted_ends_its_proxies(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        CALLER
        + """
import atexit, threading

def test_it(grpc_proxy):
    grpc_proxy(), grpc_proxy()
    atexit.register(lambda: print("threads at the end:", threading.active_count()))
    raise KeyboardInterrupt
""",
    )
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout + done.stderr
    assert "threads at the end: 1\n" in done.stdout
