"""What users of faults import is in their front."""

import subprocess
import sys

import pytest

from rawgrpc_proxy.lab import faults
from rawgrpc_proxy.lab.faults import injector
from rawgrpc_proxy.lab.faults.actions import Action
from rawgrpc_proxy.lab.faults.places import Place


def test_every_name_of_the_front_is_what_lives_elsewhere() -> None:
    assert faults.Faults is injector.Faults
    assert set(faults.__all__) == set(faults._HOME_OF)
    for name in faults.__all__:
        assert getattr(faults, name) is not None
        assert name in dir(faults)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = faults.Nothing  # type: ignore[attr-defined]


def test_all_actions_and_places_are_there() -> None:
    for cls in (*Action.__args__, *Place.__args__):
        assert getattr(faults, cls.__name__) is cls


def test_whoever_only_looks_does_not_wait_for_faults() -> None:
    script = "import sys, rawgrpc_proxy.command.lab.tap; print([name for name in sys.modules if 'lab.faults' in name])"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
