"""What a process reports of itself when it is asked: plain dictionaries, which can be written as JSON.

What it does not do: count (`metrics.py` does), or look at connections (`server/open_calls.py` and
`upstream/endpoints.py` do).
The invariants: counters never go down as long as the process lives; a report is bounded, whatever callers send.
"""

from typing import Literal, TypedDict


class MethodReport(TypedDict):
    """The calls of one method. Of `buckets` there is one for each bound and one beyond; they are not cumulative."""

    started: int
    statuses: dict[str, int]
    buckets: list[int]
    seconds: float
    request_messages: int
    response_messages: int


class CallsReport(TypedDict):
    """All calls. Bytes are those of DATA, of calls that have ended."""

    started: int
    open: int
    request_bytes: int
    response_bytes: int


class DownstreamReport(TypedDict):
    """Connections from callers. `closed` is by the word for why (`ConnectionFailed.why`)."""

    open: int
    opened: int
    closed: dict[str, int]
    failed: int
    refused_streams: int
    turned_away: int
    tls_handshakes: int
    tls_failed: int
    tls_seconds: float


class UpstreamReport(TypedDict):
    """Connections to upstreams. `picks`: streams opened on them; `waits`: calls that had to wait for a connection."""

    open: int
    opened: int
    closed: dict[str, int]
    dials: int
    dials_failed: int
    dials_succeeded: int
    dial_seconds: float
    picks: int
    waits: int
    refused: int
    retries: int
    hedges: int
    retries_exhausted: int
    retries_throttled: int


class FailedCall(TypedDict):
    """A call that has ended with another status than OK. `at` is when, in seconds since 1970."""

    at: float
    method: str
    peer: str
    upstream: str | None
    duration_s: float
    status: str
    origin: str
    cause: str
    detail: str


Standing = Literal["in_rotation", "draining", "ejected", "unchecked", "unhealthy", "unreachable"]
"""Whether an endpoint gets calls of its cluster, or why not."""


class EndpointReport(TypedDict):
    """An upstream's address in a cluster. `statuses` are those of all calls to the address, whichever cluster's."""

    cluster: str
    address: str
    connections: int
    calls: int
    waiting: int
    dialling: int
    streams: int
    """Opened on the connections that are open now."""
    state: str
    """ready, connecting, backoff or idle"""
    standing: Standing
    statuses: dict[str, int]
    ejections: dict[str, int]
    """How often outlier detection has ejected it, by algorithm."""
    last_error: str | None
    explain: str


def place_of(endpoint: EndpointReport) -> tuple[str, str]:
    """What tells endpoints apart: the same address may be in several clusters."""
    return endpoint["cluster"], endpoint["address"]


class LimitReport(TypedDict):
    """How often a limit was reached, by whom last, and what became of it."""

    count: int
    peer: str
    detail: str


class LogReport(TypedDict):
    """The log's own troubles."""

    dropped_lines: int


class SpansReport(TypedDict):
    """Spans of traced calls: those that a collector has taken, and those that none has."""

    exported: int
    dropped: int


class OpenCall(TypedDict):
    """A call that is open. `quiet_s`: for so long, at least, nothing has moved; `waits_for` is for people."""

    method: str
    peer: str
    upstream: str | None
    age_s: float
    quiet_s: float
    request_messages: int
    request_bytes: int
    response_messages: int
    response_bytes: int
    waits_for: str


class OpenCallsReport(TypedDict):
    """How many calls are open, by method, and those of them on which nothing has moved for longest."""

    open: int
    methods: dict[str, int]
    upstream_methods: dict[str, int]
    """Those that have an upstream."""
    calls: list[OpenCall]


class OpenConnection(TypedDict):
    """A connection. Bytes are those of the link, as the system has counted them; None where it does not tell."""

    side: str
    peer: str
    age_s: float
    calls: int
    bytes_in: int | None
    bytes_out: int | None
    tls: str | None
    draining: bool


class TrafficReport(TypedDict):
    """What limits have refused, and what mirrors have copied, by the names of routes and clusters."""

    refused_by_routes: dict[str, dict[str, int]]
    """By the setting that has refused."""
    refused_by_clusters: dict[str, dict[str, int]]
    under_way: dict[str, int]
    """Calls of routes whose concurrency is limited."""
    concurrency: dict[str, int]
    """How many there may be of these, now."""
    mirrored: dict[str, int]
    mirror_statuses: dict[str, dict[str, int]]
    """How copies have ended: "same" and "different" statuses; "given_up": with their call."""
    mirror_dropped: dict[str, dict[str, int]]
    """Copies that were not to be, or went no further, by why."""


class LookUpReport(TypedDict):
    """Look-ups of a name whose addresses are a cluster's endpoints."""

    done: int
    failed: int
    failing: int
    """Processes in which the last one has failed."""
    problem: str
    """Why the last one that failed has."""


class SummedReport(TypedDict):
    """Of a report what several of them are added up in, part by part."""

    calls: CallsReport
    methods: dict[str, MethodReport]
    upstream_methods: dict[str, MethodReport]
    failed: dict[str, dict[str, int]]
    """Calls that have ended with another status than OK, by its origin and its cause."""
    downstream: DownstreamReport
    upstream: UpstreamReport
    limits: dict[str, LimitReport]
    log: LogReport
    spans: SpansReport
    tls_reload_failures: int
    look_ups: dict[str, LookUpReport]
    """By name."""
    traffic: TrafficReport


class WorkerReport(SummedReport):
    """All that one process reports. `stuck`: of its open calls at most a hundred, the longest quiet ones first.

    `last_failed`: the calls that were last to end with another status than OK, the latest last.
    """

    worker: int
    pid: int
    state: str
    started_at: float
    cpu_s: float
    rss_bytes: int
    open_files: int
    tasks: int
    version: str
    python: str
    bounds_s: list[float]
    endpoints: list[EndpointReport]
    stuck: list[OpenCall]
    last_failed: list[FailedCall]
