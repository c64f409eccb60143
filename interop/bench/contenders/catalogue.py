"""The contenders: all there are, whether they can run here or not, in the order of the report.

Each runs with its defaults for performance, one worker, and no log of calls, but for what says that it is watched. What
differs from the defaults is there because the load needs it: no limits on the age of a connection or the number of its
requests, time-outs longer than the run, and room for the connections and calls that are held open.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from interop.bench.contenders.contender import Contender
from interop.bench.contenders.forwarders import FORWARDERS
from interop.bench.contenders.ours import all_ours
from interop.bench.contenders.servers import SERVERS
from interop.shared.programs import version_of

NO_PROXY = Contender("direct", "no proxy", "no proxy", None, partial(version_of, "nghttpd", "--version"))


def all_contenders(pypy: str | None, before: Path | None) -> list[Contender]:
    """Every contender, whether it can run here or not.

    `pypy` is the interpreter to run ours on as well, `before` another checkout of ours to run as well, if any.
    """
    return [NO_PROXY, *SERVERS, *FORWARDERS, *all_ours(pypy, before)]
