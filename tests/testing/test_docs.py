"""What docs/testing.md shows is true: its programs run, and what it names exists."""

import re
from pathlib import Path

import attrs
import pytest

from rawgrpc_proxy import testing
from tests.testing.test_pytest_plugin import run

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)

BACKEND = """
import pytest
from rawgrpc_proxy.testing import ProxyInThread

@pytest.fixture
def backend_address():
    with ProxyInThread() as backend:
        backend.answer("/shop.Orders/Get", [b"an order"])
        yield backend.target
"""


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_its_programs_run(number: int, tmp_path: Path) -> None:
    code = PROGRAMS[number]
    for module in ("grpc", "trustme"):
        if f"import {module}\n" in code:
            pytest.importorskip(module)
    if "my_methods" in code:
        compile(code, "docs/testing.md", "exec")
        return
    if "def test_" not in code:
        lines = "".join(f"    {line}\n" for line in code.splitlines())
        code = f"def test_it():\n{lines}"
    done = run(tmp_path, BACKEND + code)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_it_names_all_there_is_to_know_of_a_call() -> None:
    rows = re.findall(r"^\| (`.*?`) \|", PAGE, re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert named == {field.name for field in attrs.fields(testing.SeenCall)}


def test_it_names_the_bounds_as_they_are() -> None:
    [shown] = re.findall(r"Keeps\((.*?)\)", PAGE)
    expected = {field.name: field.default for field in attrs.fields(testing.Keeps)}
    assert {key: eval(value) for key, value in re.findall(r"(\w+)=([\d< ]+)", shown)} == expected  # noqa: S307  # ours
