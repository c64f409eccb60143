"""Have a Prometheus scrape `serve --workers 2 --admin`, and ask it what grpcio's calls came to.

The sums by method and status have to be those of the calls that were made. While calls go on a worker is killed, the
settings are read again, the admin process is killed, and the program is upgraded: no rate may show more than was
called, which it does as soon as one counter has gone down. The alerts of docs/alerts.yml have to load, and histograms
to answer. Where prometheus or promtool is missing a line says so. Exit code 1 if something does not hold; half a
minute.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import grpc

from interop.shared.ports import free_port
from interop.shared.processes import Listener, Process, Trouble, proxy_command

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "docs/alerts.yml"
UNPACKED = ROOT / "interop/peers/build/prometheus/usr/bin"
SERVICE = "interop.metrics.Service"
#: How each method ends, and after how many seconds.
METHODS = {"Fine": ("OK", 0.0), "Missing": ("NotFound", 0.0), "Slow": ("OK", 0.03)}
CALLS = {"Fine": 40, "Missing": 15, "Slow": 20}
HANDLED = f'grpc_server_handled_total{{grpc_service="{SERVICE}"}}'
PATIENCE_S = 30.0
RATE_S = 6
#: Calls that come in a burst after a pause are no jump.
ALLOWED = 1.5

failures = 0


def tell(name: str, why: str = "") -> None:
    """A line for what holds, or does not."""
    global failures  # noqa: PLW0603  # it is the exit code
    failures += bool(why)
    print(f"FAILED {name}: {why}" if why else f"ok {name}", flush=True)


class Service(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """The backend."""

    def service(self, details: Any) -> Any:
        """The handler of each method."""
        name = details.method.rpartition("/")[2]
        code, pause_s = METHODS[name]

        def answer(request: bytes, context: Any) -> bytes:
            time.sleep(pause_s)
            if code != "OK":
                context.abort(grpc.StatusCode.NOT_FOUND, "not here")
            return request

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def a_backend() -> Iterator[str]:
    """Runs it; gives its address."""
    server = grpc.server(ThreadPoolExecutor(8), handlers=[Service()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


class Caller:
    """Calls through connections of its own, one after the other, so that each worker has some."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.made = Counter[str]()
        """Calls that came back as they should, by method."""
        self.in_second = Counter[int]()
        """All calls, by second."""
        self.slowest_s = 0.0

    def call(self, method: str, times: int = 1) -> None:
        """Call this often, each time as a new caller."""
        for _ in range(times):
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(self._target, options) as channel:
                start = time.monotonic()
                try:
                    channel.unary_unary(f"/{SERVICE}/{method}")(b"?", timeout=10, wait_for_ready=True)
                    self.made[method] += 1
                except grpc.RpcError as error:
                    self.made[method] += error.code() == grpc.StatusCode.NOT_FOUND
                self.slowest_s = max(self.slowest_s, time.monotonic() - start)
                self.in_second[int(time.monotonic())] += 1

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Call all the time."""
        over = threading.Event()

        def call() -> None:
            while not over.wait(0.02):
                self.call("Fine")

        thread = threading.Thread(target=call)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


class Proxy:
    """The proxy, and what is asked of its admin listener."""

    def __init__(self, backend: str, engine: str | None) -> None:
        self._admin = ""
        options = (f"--upstream={backend}", "--workers=2", "--admin=127.0.0.1:0", "--log-format=none")
        self._process = Listener("the proxy", proxy_command(*options, engine=engine), on_line=self._hear)

    def _hear(self, line: str) -> None:
        self._admin = line.rpartition(" ")[2].strip()

    def __enter__(self) -> Self:
        self._process.__enter__()
        until("the proxy is ready", lambda: bool(self._admin) and self.ask("readyz") == b"serving\n")
        return self

    def __exit__(self, *error: object) -> None:
        self._process.__exit__(*error)

    @property
    def target(self) -> str:
        """Where it takes calls."""
        return self._process.target

    @property
    def admin(self) -> str:
        """HOST:PORT of its admin listener."""
        return urllib.parse.urlsplit(self._admin).netloc

    def ask(self, path: str, method: str = "GET") -> bytes:
        """Ask the admin listener; nothing if it does not answer."""
        try:
            with opened(self._admin + path, method) as answer:
                return bytes(answer.read())
        except OSError:
            return b""

    def workers(self) -> list[int]:
        """Their process ids."""
        with opened(self._admin + "events") as stream:
            for line in stream:
                if line.startswith(b"data: "):
                    return [worker["pid"] for worker in json.loads(line[6:])["workers"]]
        raise Trouble("/events ended")

    def admin_pid(self) -> int:
        """The process id of the admin process."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        (pid,) = set(map(int, children)) - set(self.workers())
        return pid

    def signal(self, number: int) -> None:
        """To the supervisor."""
        os.kill(self._process.pid, number)


class Prometheus:
    """One that scrapes the proxy each second."""

    def __init__(self, program: str, target: str, folder: Path) -> None:
        config = folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n"
            f"rule_files: [{json.dumps(str(ALERTS))}]\n"
            f"scrape_configs: [{{job_name: proxy, static_configs: [{{targets: [{json.dumps(target)}]}}]}}]\n"
        )
        port = free_port()
        self._api = f"http://127.0.0.1:{port}/api/v1/"
        command = [program, f"--config.file={config}", f"--storage.tsdb.path={folder}/data"]
        self._process = Process("prometheus", [*command, f"--web.listen-address=127.0.0.1:{port}"], port)

    def __enter__(self) -> Self:
        self._process.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.__exit__(*error)

    def get(self, path: str, **query: str) -> Any:
        """What its API says."""
        try:
            with opened(f"{self._api}{path}?{urllib.parse.urlencode(query)}") as answer:
                return json.load(answer)["data"]
        except OSError as error:
            raise Trouble(f"prometheus did not answer {path} {query}: {error}") from error

    def query(self, expression: str) -> dict[tuple[str, ...], float]:
        """The values of an expression now, by the values of their labels."""
        result = self.get("query", query=expression)["result"]
        return {tuple(each["metric"].values()): float(each["value"][1]) for each in result}

    def number(self, expression: str) -> float:
        """The one value of an expression; 0 if there is none."""
        return sum(self.query(expression).values())


def opened(url: str, method: str = "GET") -> Any:
    """The answer to a request. Raises `OSError`."""
    request = urllib.request.Request(url, method=method)  # noqa: S310  # what we have started ourselves
    return urllib.request.urlopen(request, timeout=PATIENCE_S)  # noqa: S310


def until(what: str, holds: Callable[[], bool]) -> None:
    """Look until it holds. Raises `Trouble`."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with suppress(Trouble):
            if holds():
                return
        if time.monotonic() > deadline:
            raise Trouble(f"{what}: not within {PATIENCE_S:.0f} s")
        time.sleep(0.2)


def the_sums(prometheus: Prometheus, caller: Caller) -> None:
    """Known calls, and what they come to."""
    for method, times in CALLS.items():
        caller.call(method, times)
    expected = {(METHODS[method][0], method): float(times) for method, times in CALLS.items()}
    by = f"sum by (grpc_code, grpc_method) ({HANDLED})"

    def sums() -> dict[tuple[str, ...], float]:
        return prometheus.query(by)

    try:
        until("sums", lambda: sums() == expected)
        tell(f"sums by method and status are those of {sum(CALLS.values())} calls")
    except Trouble:
        tell("sums by method and status are those of the calls", f"{sums()}, {expected} were made")
    for side in ("server", "client"):
        for kind in ("started_total", "handling_seconds_count"):
            found = prometheus.number(f'sum(grpc_{side}_{kind}{{grpc_service="{SERVICE}"}})')
            tell(f"grpc_{side}_{kind}", "" if found == sum(CALLS.values()) else f"{found:g}")


def the_quantile(prometheus: Prometheus, caller: Caller) -> None:
    """Of calls that take 30 ms at the least."""
    labels = f'grpc_service="{SERVICE}",grpc_method="Slow"'
    buckets = f"sum by (le) (rate(grpc_server_handling_seconds_bucket{{{labels}}}[1m]))"
    caller.call("Slow", 20)
    time.sleep(2.5)  # two scrapes, for a rate
    median = prometheus.number(f"histogram_quantile(0.5, {buckets})")
    sensible = 0.025 <= median <= max(0.05, 2 * caller.slowest_s)
    tell(
        f"the median of calls that take 30 ms is {median * 1e3:.0f} ms", "" if sensible else "that cannot be"
    )


def the_replaced(proxy: Proxy, prometheus: Prometheus, caller: Caller) -> None:
    """What dies and is replaced while calls go on, and what rates say of it."""
    begun = time.monotonic()
    before = sum(caller.made.values())
    with caller.going_on():
        time.sleep(RATE_S)
        os.kill(proxy.workers()[0], signal.SIGKILL)
        time.sleep(3)
        tell("a reload", "" if proxy.ask("reload", "POST") == b"reloaded\n" else "it failed")
        time.sleep(3)
        os.kill(proxy.admin_pid(), signal.SIGKILL)
        time.sleep(3)
        proxy.signal(signal.SIGUSR2)
        time.sleep(RATE_S)
    time.sleep(2.5)
    made = sum(caller.made.values())
    span_s = int(time.monotonic() - begun) + 2
    handled = prometheus.number(f"sum({HANDLED})")
    # A worker that is killed takes with it what it has counted since it was last asked: a second of calls.
    most = max(caller.in_second.values())
    fine = made - 2 * most <= handled <= made + most
    tell(
        f"{handled:g} of {made} calls are counted in the end", "" if fine else f"{most} are made in a second"
    )
    counters = [
        name
        for name in prometheus.get("label/__name__/values")
        if name.endswith(("_total", "_sum", "_count", "_bucket")) and "worker_cpu" not in name
    ]
    resets = [name for name in counters if prometheus.number(f"sum(resets({name}[{span_s}s]))")]
    tell(f"none of {len(counters)} counters has gone down", ", ".join(resets))
    rate = prometheus.number(f"max_over_time(sum(rate({HANDLED}[{RATE_S}s]))[{span_s}s:1s])")
    allowed = ALLOWED * most
    tell(
        f"no rate was above {rate:.0f} calls/s, {most} were made in the busiest second",
        "" if 0 < rate <= allowed else f"{allowed:.0f} would be no jump",
    )
    increase = prometheus.number(f"sum(increase({HANDLED}[{span_s}s]))")
    tell(
        f"the increase of {span_s} s is {increase:.0f}",
        "" if increase <= ALLOWED * (made - before) else "too much",
    )


def the_alerts(prometheus: Prometheus) -> None:
    """All are loaded, and can be evaluated."""
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    broken = [f"{rule['name']}: {rule.get('lastError')}" for rule in rules if rule["health"] == "err"]
    tell(f"{len(rules)} alerts are evaluated", "; ".join(broken) if rules else "there are none")
    (target,) = prometheus.get("targets")["activeTargets"]
    tell("the last scrape went well", target["lastError"])


def main() -> int:
    """Parse the arguments and look."""
    parser = argparse.ArgumentParser(prog="python -m interop.metrics", description=__doc__)
    parser.add_argument("--engine", help="handed on to the proxy")
    given = parser.parse_args()
    path = f"{UNPACKED}:{os.environ.get('PATH', os.defpath)}"
    prometheus, promtool = (shutil.which(program, path=path) for program in ("prometheus", "promtool"))
    if prometheus is None or promtool is None:
        print("metrics are left out: prometheus is not installed")
        return 0
    done = subprocess.run(
        [promtool, "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False
    )
    tell("promtool check rules docs/alerts.yml", done.stdout + done.stderr if done.returncode else "")
    start = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        proxy = stack.enter_context(Proxy(stack.enter_context(a_backend()), given.engine))
        server = stack.enter_context(Prometheus(prometheus, proxy.admin, folder))
        until("the first scrape", lambda: server.number("up") == 1)
        caller = Caller(proxy.target)
        the_sums(server, caller)
        the_quantile(server, caller)
        the_replaced(proxy, server, caller)
        the_alerts(server)
    print(f"{failures} failed, {time.monotonic() - start:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
