"""Runs the targets, each in a process of its own: `python -m tests.fuzz [--seconds 60] [TARGET ...]`."""

import argparse
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz.targets import TARGETS

FOUND = Path("fuzz-found")
"""Where inputs go that break a property."""
MEMORY_MB, HANG_S = 1024, 10


def run(name: str, seconds: int) -> tuple[int, str, str]:
    """Fuzz: the exit code, how many inputs were tried, and the last words."""
    FOUND.mkdir(exist_ok=True)
    corpus = Path(__file__).parent / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "tests.fuzz.one", name, f"-max_total_time={seconds}", f"-rss_limit_mb={MEMORY_MB}",
        f"-timeout={HANG_S}", f"-artifact_prefix={FOUND}/{name}-", "-max_len=2048", "-print_final_stats=1",
        "-verbosity=1", str(FOUND / f".corpus-{name}"), str(corpus),
    ]  # fmt: skip
    (FOUND / f".corpus-{name}").mkdir(exist_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    count = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    return done.returncode, count[1] if count else "?", "\n".join(done.stderr.splitlines()[-25:])


def main() -> int:
    """Run them, and tell."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="fuzz what reads what peers send"
    )
    parser.add_argument("--seconds", type=int, default=60, help="for each target; default: 60")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    given = parser.parse_args()
    unknown = [name for name in given.targets if name not in TARGETS]
    if unknown:
        parser.error(f"there is no target {unknown[0]}; there are {', '.join(TARGETS)}")
    if find_spec("atheris") is None:
        print("fuzzing is left out: atheris is not installed (pip install -e '.[fuzz]')", file=sys.stderr)
        return 0
    worst = 0
    print(f"{'target':14} {'inputs':>10} {'seconds':>8}  result")
    for name in given.targets or TARGETS:
        begun = time.monotonic()
        code, count, tail = run(name, given.seconds)
        print(
            f"{name:14} {count:>10} {time.monotonic() - begun:8.0f}  {'ok' if code == 0 else 'BROKEN'}",
            flush=True,
        )
        if code:
            print(tail)
            worst = 1
    return worst


if __name__ == "__main__":
    sys.exit(main())
