"""Where the proxy's time goes: samples its stacks under load, and writes a table and a flame graph.

The sampler is py-spy, which reads the stacks from outside: the proxy runs as fast as ever. It cannot read PyPy's.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from interop.bench.backend import BULK, UNARY
from interop.bench.contenders.contender import Contender
from interop.bench.contenders.ours import CPYTHON, ours
from interop.bench.report import RESULTS
from interop.bench.target import CONNECTIONS, IN_FLIGHT, Bench, Sizes, Target, one_bench, started
from interop.shared.proc import worker_of
from interop.shared.processes import Trouble
from interop.shared.programs import SYSTEM_PATH

SAMPLES_PER_SECOND = 250
ROWS = 50
LOADS: dict[str, tuple[int, int, str]] = {
    "unary": (CONNECTIONS, IN_FLIGHT // CONNECTIONS, UNARY),
    "single": (1, 1, UNARY),
    "bulk": (1, 1, BULK),
}
FRAME = re.compile(r"(?P<function>.+?) \((?P<place>.+)\)$")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m interop.bench.profile", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--engine", choices=("h2", "relay"), default="relay", help="default: %(default)s")
    parser.add_argument(
        "--load", choices=tuple(LOADS), default="unary",
        help="100 calls in flight, one at a time, or a download of large messages (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seconds", type=int, default=10, metavar="N", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="default: %(default)s")
    options = parser.parse_args()
    os.environ["PATH"] = SYSTEM_PATH
    options.out.mkdir(parents=True, exist_ok=True)
    name = options.out / f"profile-{options.engine}-{options.load}"
    contender = ours(CPYTHON, options.engine)
    try:
        with one_bench(Sizes(bulk_mib=64)) as bench:
            stacks = _profiled(bench, contender, options.load, options.seconds, name.with_suffix(".svg"))
    except Trouble as trouble:
        print(f"no profile: {trouble}", file=sys.stderr)
        return 1
    text = table(stacks, f"{options.engine}, {options.load}")
    name.with_suffix(".txt").write_text(text)
    print(text)
    print(f"written: {name}.txt and {name}.svg", file=sys.stderr)
    return 0


def _profiled(
    bench: Bench, contender: Contender, load: str, seconds: int, graph: Path
) -> Counter[tuple[str, ...]]:
    """Two samplings, for py-spy writes one format at a time."""
    connections, streams, answer = LOADS[load]
    with started(bench, contender) as target, tempfile.TemporaryDirectory(prefix="bench-") as folder:
        in_flight = connections * streams
        if load == "unary":
            rate = target.warm_up()
        else:
            rate = target.run(IN_FLIGHT if answer == UNARY else 1, answer=answer)[0].rate
        calls = max(int(rate / 2), in_flight)

        def work() -> None:
            target.run(calls, connections, streams, answer=answer)

        raw = Path(folder) / "stacks"
        _sample(target, seconds, "raw", raw, work)
        _sample(target, seconds, "flamegraph", graph, work)
        return _read(raw.read_text())


def _sample(target: Target, seconds: int, form: str, file: Path, work: Callable[[], None]) -> None:
    sampler = Path(sys.executable).with_name("py-spy")
    command = [
        str(sampler), "record", "--pid", str(worker_of(target.child.pid)), "--duration", str(seconds), "--rate",
        str(SAMPLES_PER_SECOND), "--function", "--format", form, "--output", str(file),
    ]  # fmt: skip
    with tempfile.TemporaryFile("w+") as output:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        except OSError as error:
            raise Trouble(f"py-spy did not start: {error}") from error
        try:
            while process.poll() is None:
                work()
        finally:
            process.terminate()
            process.wait()
        if process.returncode or not file.exists():
            output.seek(0)
            raise Trouble(f"py-spy failed (it may need to be run by root): {output.read()[-600:]}")


def _read(text: str) -> Counter[tuple[str, ...]]:
    """How often each stack, from the outermost frame to the innermost, was seen."""
    stacks: Counter[tuple[str, ...]] = Counter()
    for line in text.splitlines():
        frames, _, count = line.rpartition(" ")
        stacks[tuple(frames.split(";"))] += int(count)
    return stacks


def table(stacks: Counter[tuple[str, ...]], title: str) -> str:
    """The functions in which most samples were taken."""
    total = stacks.total()
    own: Counter[str] = Counter()
    with_callees: Counter[str] = Counter()
    for frames, count in stacks.items():
        own[frames[-1]] += count
        for frame in set(frames):
            with_callees[frame] += count
    lines = [
        f"{title}: {total} samples of the proxy at work, {SAMPLES_PER_SECOND} a second\n",
        " own %  all %  function",
    ]
    for frame, count in own.most_common(ROWS):
        found = FRAME.match(frame)
        what = f"{found['function']}  {_short(found['place'])}" if found else frame
        lines.append(f"{count / total:6.1%} {with_callees[frame] / total:6.1%}  {what}")
    return "\n".join(lines) + "\n"


def _short(place: str) -> str:
    return re.sub(r"^.*/(?:site-packages|src|lib/python3\.\d+)/", "", place)


if __name__ == "__main__":
    sys.exit(main())
