"""The targets of the fuzzer hold for what hypothesis thinks of, and for what the fuzzer has found before."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=400))
@settings(max_examples=150)
def test_any_bytes_will_do(name: str, data: bytes) -> None:
    TARGETS[name](data)


@pytest.mark.parametrize(
    "file", sorted(CORPUS.glob("*/*")), ids=lambda file: f"{file.parent.name}-{file.name}"
)
def test_what_was_found_before_holds(file: Path) -> None:
    TARGETS[file.parent.name](file.read_bytes())
