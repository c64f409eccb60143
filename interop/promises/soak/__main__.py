"""A long run of honest clients at full load: no connection is closed by the proxy, and every call ends as it has to.

    .venv/bin/python -m interop.promises.soak [--minutes 30] [--engine h2|relay] [--out FILE]

One proxy at its defaults, in front of a server of grpcio, the same of grpc-go, and etcd. All these call at once:

- grpcio, grpc-go and grpc-js over several channels, as fast as they are answered; each cancels 20 % of its calls, and
  20 % have a deadline that passes;
- h2load, a steady few calls on connections that last as long as the run;
- etcdctl: put, get, and a watch that has to see every put.

Who is not installed or built here is left out, and a line says so. Exit code 1 if a connection was closed, or a call
ended otherwise.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from interop.peers.catalogue import left_out
from interop.promises.soak.clients import Client, EtcdUser, H2load, Impatient
from interop.promises.soak.proxy import ProxyLog, proxy_before
from interop.promises.soak.report import Report, Sample
from interop.shared import proc
from interop.shared.processes import Listener, Trouble
from interop.shared.progress import Progress

#: The peers that can be told to load.
IMPATIENT = ("grpcio-aio", "grpc-go", "grpc-js")
SAMPLES_AT_LEAST = 5
#: How often, where there is no terminal, a line tells how far the run is.
PROGRESS_SECONDS = 30.0


def soak(seconds: float, engine: str | None) -> Report:
    """Run everything for that long. Raises `Trouble` if the proxy or a client dies."""
    log = ProxyLog()
    with proxy_before(engine, log) as site:
        proxy = site.proxy
        start = time.monotonic()
        clients: list[Client] = []
        try:
            for peer in IMPATIENT:
                if reason := left_out(peer):
                    print(reason)
                else:
                    clients.append(Impatient(peer, proxy.target, site.services, seconds))
            if shutil.which("h2load"):
                clients.append(H2load(proxy.target, site.services[-1], seconds))
            else:
                print("h2load is left out: it is not installed (Debian: nghttp2-client)")
            if site.with_etcd:
                clients.append(EtcdUser(proxy.target, seconds))
            else:
                print("etcd is left out: it is not installed (Debian: etcd-server, etcd-client)")
            samples = watch(proxy, log, start, seconds)
            rows = [client.finish() for client in clients]
            samples.append(sample(proxy, log, start))
        finally:
            for client in clients:
                client.stop()
    return Report(seconds, rows, log, samples)


def watch(proxy: Listener, log: ProxyLog, start: float, seconds: float) -> list[Sample]:
    """Look at the proxy until the time is over: at least `SAMPLES_AT_LEAST` times, else once a minute."""
    samples: list[Sample] = []
    every = min(60.0, seconds / SAMPLES_AT_LEAST)
    progress = Progress(seconds, pause=PROGRESS_SECONDS)
    before = 0
    while (passed := time.monotonic() - start) < seconds:
        time.sleep(1.0)
        proxy.check()
        if passed >= every * (len(samples) + 1):
            samples.append(sample(proxy, log, start))
        total = log.calls.total()
        progress.show(
            passed,
            f"{total} calls, {total - before}/s, {len(log.closed)} connections closed, "
            f"{proc.memory(proc.worker_of(proxy.pid)).now_mib:.0f} MB",
        )
        before = total
    progress.end()
    return samples


def sample(proxy: Listener, log: ProxyLog, start: float) -> Sample:
    """The proxy now."""
    return Sample(
        seconds=round(time.monotonic() - start, 1),
        calls=log.calls.total(),
        memory_mb=round(proc.memory(proc.worker_of(proxy.pid)).now_mib, 1),
        files=proc.open_files(proc.worker_of(proxy.pid)),
    )


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(
        prog="python -m interop.promises.soak", description="a long run of honest clients at full load"
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="default: 30")
    parser.add_argument("--engine", choices=["h2", "relay"], help="handed on to the proxy")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all figures there, as JSON")
    given = parser.parse_args()
    try:
        report = soak(given.minutes * 60, given.engine)
    except Trouble as trouble:
        print(trouble)
        return 1
    report.show()
    if given.out is not None:
        given.out.write_text(json.dumps(report.figures(), indent=1, sort_keys=True))
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
