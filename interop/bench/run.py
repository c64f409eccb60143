"""One run: the stories of all contenders in turns, with what is known of the machine meanwhile."""

from __future__ import annotations

import resource
import time
from datetime import UTC, datetime

from interop.bench import machine
from interop.bench.contenders.contender import Contender
from interop.bench.report import Results
from interop.bench.stories import STORIES, Story
from interop.bench.target import QUICK, Sizes, one_bench
from interop.shared.processes import Trouble
from interop.shared.progress import Progress

WANTED_OPEN_FILES = 65_536
Step = tuple[Story, int, Contender]


def measured(
    contenders: list[Contender], *, rounds: int, all_rounds: bool, quick: bool
) -> tuple[Results, bool]:
    """Measure all that can run here; also tells whether the run was interrupted, so that it is a part."""
    results = Results(contenders)
    able = _able(contenders, results)
    sizes = (QUICK if quick else Sizes()).within(_open_files())
    results.facts = {
        "when": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        **machine.describe(),
        "rounds": f"{rounds}{' (quick: too short to tell much)' if quick else ''}",
    }
    disturbance, start, interrupted = machine.Disturbance(), time.monotonic(), False
    steps = _steps(able, rounds, all_rounds=all_rounds)
    progress = Progress(len(steps))
    with one_bench(sizes) as bench:
        try:
            for number, (story, turn, contender) in enumerate(steps):
                progress.show(
                    number, f"{number + 1}/{len(steps)} {contender.name}: {story.name}, round {turn}"
                )
                if _is_broken(results, contender):
                    continue
                results.add(contender, story.tell(bench, contender))
        except KeyboardInterrupt:
            interrupted = True
            results.facts["interrupted"] = "yes: what follows is a part"
        finally:
            progress.end()
    results.facts |= disturbance.describe()
    results.facts["took"] = f"{(time.monotonic() - start) / 60:.1f} minutes"
    return results, interrupted


def _able(contenders: list[Contender], results: Results) -> list[Contender]:
    """Those that are installed."""
    able = []
    for contender in contenders:
        try:
            results.versions[contender.name] = contender.version()
            able.append(contender)
        except Trouble as trouble:
            results.trouble(contender, "everything", str(trouble))
    return able


def _steps(contenders: list[Contender], rounds: int, *, all_rounds: bool) -> list[Step]:
    """In turns, so that what disturbs the machine for a while disturbs all alike; each round begins with another."""
    steps = []
    for story in STORIES:
        able = story.contenders(contenders)
        for turn in range(rounds if story.every_round or all_rounds else 1):
            first = turn * len(able) // rounds
            steps += [(story, turn + 1, contender) for contender in able[first:] + able[:first]]
    return steps


def _is_broken(results: Results, contender: Contender) -> bool:
    """Whether it did not even start."""
    return contender.name in results.troubles and contender.name not in results.values


def _open_files() -> int:
    """Allow as many open files as the system lets us, and tell how many: children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_OPEN_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return soft
