"""One target under atheris, or one input of it again: `python -m tests.fuzz.one TARGET [OF LIBFUZZER ... | FILE]`."""

import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Fuzz, or play a file."""
    name, *arguments = sys.argv[1:]
    if len(arguments) == 1 and Path(arguments[0]).is_file():
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415 as below

        TARGETS[name](Path(arguments[0]).read_bytes())
        return
    atheris = import_module("atheris")  # not needed to play a file
    with atheris.instrument_imports(include=["rawgrpc_proxy", "tests.fuzz"]):
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415 it has to be imported under instrumentation
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
