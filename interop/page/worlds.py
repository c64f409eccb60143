"""Made-up proxies for the page to show: each step is a second, and gives one `state` as the admin listener tells it.

`known` has the same traffic in each second, so that every figure on the page can be told beforehand; the others vary
by a seeded chance, as real ones do.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

BOUNDS_S = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]

#: What callers could name a method, to get into the page as more than text, or to break what is kept by name.
HOSTILE = [
    "/<script>document.title='taken'</script>/Run",
    "/<img src=x onerror=document.body.innerHTML=''>/Load",
    '/"><svg onload=alert(1)>/Draw',
    "/__proto__",
    "/constructor/toString",
    "/a\u202egnp.exe\u202c/Reversed",
    "/line\r\nfeed\x00\x1b[31m/Control",
    "/" + "W" * 3000 + "/Long",
    "/{{7*7}}${7*7}<%= 7*7 %>/Template",
    "/javascript:alert(1)/Link",
]
SERVICES = [
    "shop.v1.Orders",
    "shop.v1.Payments",
    "shop.v1.Catalogue",
    "identity.Users",
    "ledger.Entries",
    "mail.Queue",
]
VERBS = ["Get", "List", "Create", "Update", "Delete", "Watch", "Search", "Check", "Export", "Sync"]

State = dict[str, Any]

BLAMED = {
    "UNAVAILABLE": ("proxy", "dial", "10.0.0.8:50051 refused the connection (ECONNREFUSED)"),
    "DEADLINE_EXCEEDED": ("proxy", "deadline", "Deadline Exceeded"),
    "CANCELLED": ("caller", "RST_STREAM", "the caller has cancelled the call"),
    "<b>99</b>": ("<i>upstream</i>", "<script>", "</td><b>\u202edetail"),
}
"""Who made a status, of what it comes, and its message; of all others it is the upstream's own."""


class World:
    """A proxy that began a step before the first `step`."""

    calls_per_s = 0
    open_calls = 0
    workers = 2

    def __init__(self) -> None:
        self.t = 0
        self.began = time.time()
        self.chance = random.Random(7)
        self.methods: dict[str, dict[str, Any]] = {}
        self.calls = {"started": 0, "open": self.open_calls, "request_bytes": 0, "response_bytes": 0}
        self.cpu = [0.0] * self.workers
        self.limits: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, dict[str, int]] = {}
        self.last_failed: list[State] = []
        self.dropped = 0
        self.downstream: dict[str, Any] = {
            "open": 3, "opened": 3, "closed": {}, "failed": 0, "refused_streams": 0, "turned_away": 0,
            "tls_handshakes": 0, "tls_failed": 0,
        }  # fmt: skip
        self.upstream: dict[str, Any] = {
            "open": 0, "opened": 0, "closed": {}, "dials": 0, "dials_failed": 0, "picks": 0, "waits": 0,
        }  # fmt: skip

    def step(self) -> State:
        """The state a second later."""
        self.t += 1
        self.live()
        return {
            "now": self.began + self.t,
            "version": "0.1.0",
            "python": "CPython 3.11.7",
            "engine": "relay",
            "uptime_s": float(self.t),
            "state": "serving",
            "workers": self.worker_rows(),
            "calls": dict(self.calls),
            "methods": self.methods,
            "bounds_s": BOUNDS_S,
            "downstream": self.downstream,
            "upstream": self.upstream,
            "endpoints": self.endpoints(),
            "limits": self.limits,
            "failed": self.failed,
            "last_failed": self.last_failed[-20:],
            "log": {"dropped_lines": self.dropped},
            "stuck": self.stuck(),
        }

    def live(self) -> None:
        """One second of traffic."""

    def endpoints(self) -> list[State]:
        return []

    def stuck(self) -> list[State]:
        return []

    def worker_rows(self) -> list[State]:
        rows = []
        for index in range(self.workers):
            self.cpu[index] += 0.01 + self.calls_per_s * 5e-5 / self.workers
            rows.append(
                {
                    "worker": index + 1, "pid": 4000 + index, "state": "serving", "cpu_s": self.cpu[index],
                    "rss_bytes": (48 << 20) + self.open_calls * 3000, "connections": 1 + self.open_calls // 40,
                    "calls": self.open_calls // self.workers,
                }
            )  # fmt: skip
        return rows

    def called(self, method: str, status: str, count: int, bucket: int) -> None:
        """So many calls of a method ended with a status, after a time in a bucket."""
        fresh = {
            "started": 0, "statuses": {}, "buckets": [0] * (len(BOUNDS_S) + 1), "seconds": 0.0,
            "request_messages": 0, "response_messages": 0,
        }  # fmt: skip
        row = self.methods.setdefault(method, fresh)
        row["started"] += count
        row["statuses"][status] = row["statuses"].get(status, 0) + count
        row["buckets"][bucket] += count
        row["request_messages"] += count
        row["response_messages"] += count if status == "OK" else 0
        self.calls["started"] += count
        if count and status != "OK":
            origin, cause, detail = BLAMED.get(status, ("upstream", "", "there is no such thing"))
            causes = self.failed.setdefault(origin, {})
            causes[cause] = causes.get(cause, 0) + count
            self.last_failed.append(
                {
                    "worker": 1, "at": self.began + self.t, "method": method, "peer": "192.0.2.7:40001",
                    "upstream": "10.0.0.7:50051", "duration_s": 0.01, "status": status, "origin": origin,
                    "cause": cause, "detail": detail,
                }
            )  # fmt: skip
        self.calls["request_bytes"] += count * 300
        self.calls["response_bytes"] += count * 2100


class Empty(World):
    """Just started: nobody has called."""


class Known(World):
    """40 calls a second, 4 of them failing, all in known buckets. The driver knows these figures."""

    calls_per_s = 40
    open_calls = 2

    def live(self) -> None:
        self.called("/known.Service/Fine", "OK", 30, 3)
        self.called("/known.Service/Missing", "NOT_FOUND", 6, 1)
        self.called("/known.Service/Broken", "UNAVAILABLE", 4, 15)
        self.limits = {"abuse_budget": {"count": 7, "peer": "10.9.8.7:5151", "detail": "2500 points in 10 s"}}

    def endpoints(self) -> list[State]:
        return [
            endpoint("known", "10.0.0.1:50051", "ready", self.t * 36, failing=0),
            endpoint("known", "10.0.0.2:50051", "backoff", 0, failing=self.t * 4, waiting=3,
                     error="connection refused"),
        ]  # fmt: skip

    def stuck(self) -> list[State]:
        return [
            open_call("/known.Service/Fine", 1, 125.0, upstream="10.0.0.1:50051",
                      waits_for="the response of the upstream"),
            open_call("/known.Service/Watch", 2, 12.0, upstream="10.0.0.1:50051",
                      waits_for="the next message", answered=5),
        ]  # fmt: skip


class Busy(World):
    """An afternoon: 50 open calls, one endpoint of two clusters away, some failures."""

    calls_per_s = 1200
    open_calls = 50
    names: Sequence[str] = [f"/{service}/{verb}" for service in SERVICES[:3] for verb in VERBS[:6]]

    def live(self) -> None:
        swing = 1 + 0.25 * self.chance.random() + (0.35 if self.t % 200 > 140 else 0)
        for index, name in enumerate(self.names):
            count = max(0, round(swing * self.calls_per_s / (2 + index) / 2.3))
            slow = self.t % 200 > 170
            for bucket, share in ((1, 0.5), (2, 0.3), (4, 0.14), (6, 0.05), (9 if slow else 7, 0.01)):
                self.called(name, "OK", round(count * share), bucket)
            self.called(name, "NOT_FOUND", self.chance.randrange(3) if index % 3 == 0 else 0, 1)
        away = 90 < self.t % 200 < 130
        self.called(
            self.names[1], "UNAVAILABLE", self.chance.randrange(90) if away else self.chance.randrange(2), 0
        )
        self.called(self.names[5], "DEADLINE_EXCEEDED", self.chance.randrange(3), 10)
        self.called(self.names[8], "CANCELLED", self.chance.randrange(6), 4)
        self.connections()

    def connections(self) -> None:
        self.downstream["opened"] += self.chance.randrange(3)
        self.downstream["open"] = 40 + self.chance.randrange(8)
        closed = self.downstream["closed"]
        closed["the peer closed it"] = closed.get("the peer closed it", 0) + self.chance.randrange(3)
        closed["idle for 300 s"] = closed.get("idle for 300 s", 0) + (self.t % 40 == 0)
        self.upstream.update(open=9, opened=11, dials=31, dials_failed=20 + self.t // 4, picks=self.t * 1200)
        self.upstream["closed"] = {"GOAWAY from the upstream": 2}

    def endpoints(self) -> list[State]:
        return [
            endpoint("orders", "10.0.0.7:50051", "ready", self.t * 600, calls=31, connections=4),
            endpoint("orders", "10.0.0.8:50051", "backoff", 4000, failing=self.t, waiting=2,
                     error="10.0.0.8:50051 refused the connection (ECONNREFUSED): nothing listens there"),
            endpoint("catalogue", "catalogue.internal:443", "ready", self.t * 300, calls=19, connections=5),
            endpoint("mail", "unix:/run/mail.sock", "idle", 12),
        ]  # fmt: skip

    def stuck(self) -> list[State]:
        calls = [
            open_call(self.names[5], index, 3.0 + 2.5 * index, upstream="10.0.0.7:50051",
                      waits_for="the next message of the response", answered=3 * index, worker=1 + index % 2)
            for index in range(18)
        ] + [
            open_call(self.names[2], index, 40.0 + index, upstream="10.0.0.7:50051",
                      waits_for="the response of the upstream")
            for index in range(4)
        ] + [
            open_call(self.names[1], index, 8.0 + index, upstream=None, waits_for="a connection to orders")
            for index in range(2)
        ]  # fmt: skip
        return sorted(calls, key=lambda call: -float(call["quiet_s"]))


class Flood(Busy):
    """A bad night: 5,000 open calls, 300 methods, names that mean harm, limits hit."""

    calls_per_s = 9000
    open_calls = 5000
    workers = 8
    names = [f"/{service}/{verb}{n}" for n in range(5) for service in SERVICES for verb in VERBS][
        : 300 - len(HOSTILE)
    ]

    def live(self) -> None:
        super().live()
        for index, name in enumerate(HOSTILE):
            self.called(name, "UNIMPLEMENTED", 1 + index % 2, 0)
            self.called(name, "<b>99</b>", index % 2, 0)
        for name in self.names[20:26]:
            self.called(name, "INTERNAL", self.chance.randrange(40), 5)
        self.limits = {
            "abuse_budget": {
                "count": self.t * 3,
                "peer": "<i>203.0.113.9</i>:4000",
                "detail": "rapid resets \u202e<b>",
            },
            "max_connections": {"count": self.t // 5, "peer": "198.51.100.4:7001", "detail": "4000 are open"},
            "max_header_list_bytes": {"count": 2, "peer": "198.51.100.4:7002", "detail": "70,000 bytes"},
        }
        self.dropped += self.t % 3
        self.downstream["turned_away"] += self.t % 2

    def endpoints(self) -> list[State]:
        states = ["ready", "ready", "ready", "backoff", "connecting", "idle"]
        rows = [
            endpoint(f"cluster-{index // 6}", f"10.1.{index // 6}.{index % 6}:50051", states[index % 6], self.t * 30,
                     failing=self.t if index % 6 == 3 else 0, waiting=40 if index % 6 == 4 else 0, calls=80,
                     error="<script>alert(2)</script> timed out after 5 s" if index % 6 == 3 else None)
            for index in range(60)
        ]  # fmt: skip
        return [
            *rows,
            endpoint("payments", "10.2.0.1:50051", "backoff", 0, failing=9, error="certificate has expired"),
        ]

    def stuck(self) -> list[State]:
        return [
            open_call(HOSTILE[index % 10] if index < 20 else self.names[index], index, 900.0 - 8 * index + self.t % 5,
                      upstream=f"10.1.{index % 4}.3:50051", waits_for="the response of the upstream" if index % 3 else
                      "the caller, who reads nothing (window is 0)", answered=0 if index % 3 else 4,
                      worker=1 + index % 8)
            for index in range(100)
        ]  # fmt: skip


def endpoint(
    cluster: str,
    address: str,
    state: str,
    fine: int,
    *,
    failing: int = 0,
    waiting: int = 0,
    calls: int = 0,
    connections: int = 1,
    error: str | None = None,
) -> State:
    """An endpoint as it is told."""
    explain = (
        f"has room: {calls} of 100 streams"
        if state == "ready"
        else "dialling pauses for 1.32 s: " + str(error)
    )
    statuses = {"OK": fine} | ({"UNAVAILABLE": failing} if failing else {})
    return {
        "cluster": cluster, "address": address, "connections": connections if state == "ready" else 0,
        "calls": calls if state == "ready" else 0, "waiting": waiting, "dialling": int(state == "connecting"),
        "state": state, "standing": "in_rotation", "statuses": statuses, "ejections": {}, "last_error": error,
        "explain": explain,
    }  # fmt: skip


def open_call(
    method: str,
    index: int,
    quiet_s: float,
    *,
    upstream: str | None,
    waits_for: str,
    answered: int = 0,
    worker: int = 1,
) -> State:
    """An open call as it is told."""
    return {
        "method": method, "peer": f"192.0.2.{1 + index % 60}:{40000 + index}", "upstream": upstream,
        "age_s": quiet_s + 4.5, "quiet_s": quiet_s, "request_messages": 1, "request_bytes": 310,
        "response_messages": answered, "response_bytes": answered * 5000, "waits_for": waits_for, "worker": worker,
    }  # fmt: skip


WORLDS: dict[str, type[World]] = {"empty": Empty, "known": Known, "busy": Busy, "flood": Flood}
