"""What users of the laboratory import is in its front."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from rawgrpc_proxy import lab
from rawgrpc_proxy.lab import faults, recording
from rawgrpc_proxy.net.tapped import Tap

ROOT = Path(__file__).parents[2]


def test_every_name_of_the_front_is_what_lives_elsewhere() -> None:
    assert lab.Tap is Tap
    assert lab.read_recording is recording.read
    assert len(lab.__all__) == len(set(lab.__all__))
    assert set(lab.__all__) == set(lab._HOME_OF)
    for name in lab.__all__:
        assert getattr(lab, name) is not None
        assert name in dir(lab)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = lab.Nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("front", [lab, faults])
def test_type_checkers_are_told_of_the_names_that_there_are_and_where_they_live(front: ModuleType) -> None:
    """Type checkers read the imports, editors `__all__`, the program `_HOMES`: none can be made of another one."""
    assert front.__file__ is not None
    tree = ast.parse(Path(front.__file__).read_text(encoding="utf-8"))
    [block] = [each for each in tree.body if isinstance(each, ast.If) and "not" not in ast.unparse(each.test)]
    imported = {
        alias.asname or alias.name: (line.module, alias.name)
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
    assert set(imported) == set(front.__all__)
    for name, (home, name_there) in imported.items():
        assert (home or "").endswith(f".{front._HOME_OF[name]}"), name
        assert getattr(front, name) is getattr(import_module(str(home)), name_there)


def test_no_name_of_the_front_is_that_of_a_module_in_it() -> None:
    modules = {path.stem for path in (ROOT / "src/rawgrpc_proxy/lab").iterdir()}
    assert not modules & set(lab.__all__)


def test_whoever_wants_one_tool_does_not_import_the_others() -> None:
    program = """
import sys
from rawgrpc_proxy.lab import Filter
print(*sorted(name for name in sys.modules if name.startswith("rawgrpc_proxy.lab.")))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT / "src"
    )
    assert done.stdout.split() == ["rawgrpc_proxy.lab.filters"]
