"""All metrics that are exposed, with what they say: for `exposition.py` and for `docs/metrics.md`.

Names of calls are those of go-grpc-middleware, which dashboards know; what only a proxy has begins with
`rawgrpc_proxy_`.
"""

import attrs


@attrs.frozen
class Family:
    """A metric: its name as it is exposed (but for `_bucket` and the like), its kind, its labels, what it says."""

    name: str
    kind: str
    labels: tuple[str, ...]
    about: str


_METHOD = ("grpc_service", "grpc_method")
_ENDPOINT = ("cluster", "address")
_WORKER = ("worker",)
PROXY = "rawgrpc_proxy_"

FAMILIES = (
    Family(
        "grpc_server_started_total",
        "counter",
        _METHOD,
        "Calls of callers that were begun, the open ones included.",
    ),
    Family(
        "grpc_server_handled_total",
        "counter",
        (*_METHOD, "grpc_code"),
        "Calls that have ended, by the status that the caller got.",
    ),
    Family(
        "grpc_server_handling_seconds",
        "histogram",
        _METHOD,
        "How long calls took, from the request's headers to their end.",
    ),
    Family(
        "grpc_server_msg_received_total",
        "counter",
        _METHOD,
        "Messages of requests, of calls that have ended.",
    ),
    Family(
        "grpc_server_msg_sent_total", "counter", _METHOD, "Messages of responses, of calls that have ended."
    ),
    Family(
        "grpc_client_started_total",
        "counter",
        _METHOD,
        "Calls that a director has sent to an upstream, the open ones included.",
    ),
    Family(
        "grpc_client_handled_total",
        "counter",
        (*_METHOD, "grpc_code"),
        "Of these, those that have ended, by status: the upstream's, or what came of it.",
    ),
    Family(
        "grpc_client_handling_seconds",
        "histogram",
        _METHOD,
        "How long these took, the wait for a connection included.",
    ),
    Family(
        "grpc_client_msg_sent_total",
        "counter",
        _METHOD,
        "Messages of their requests, of calls that have ended.",
    ),
    Family(
        "grpc_client_msg_received_total",
        "counter",
        _METHOD,
        "Messages of their responses, of calls that have ended.",
    ),
    Family(PROXY + "open_calls", "gauge", (), "Calls that are open now."),
    Family(
        PROXY + "longest_quiet_call_seconds",
        "gauge",
        (),
        "For how long, at least, nothing has moved on the open call that has been quiet for longest.",
    ),
    Family(PROXY + "request_bytes_total", "counter", (), "DATA of requests, of calls that have ended."),
    Family(PROXY + "response_bytes_total", "counter", (), "DATA of responses, of calls that have ended."),
    Family(
        PROXY + "calls_failed_total",
        "counter",
        ("origin", "cause"),
        "Calls that have ended with another status than OK, by who has made it and the frame or limit it comes of, "
        "see [the log](call-log.md#who-made-the-status).",
    ),
    Family(PROXY + "downstream_connections", "gauge", (), "Connections of callers that are open now."),
    Family(PROXY + "downstream_connections_opened_total", "counter", (), "Connections of callers, TLS done."),
    Family(
        PROXY + "downstream_connections_closed_total",
        "counter",
        ("reason",),
        "Of these, those that have ended, and why.",
    ),
    Family(
        PROXY + "downstream_connections_failed_total",
        "counter",
        (),
        "Connections that ended by a fault of the caller, failed handshakes included.",
    ),
    Family(
        PROXY + "downstream_connections_turned_away_total",
        "counter",
        (),
        "Connections that were one too many (max_connections).",
    ),
    Family(
        PROXY + "downstream_streams_refused_total",
        "counter",
        (),
        "Requests that never became calls: malformed, or one too many.",
    ),
    Family(
        PROXY + "downstream_tls_handshake_seconds",
        "summary",
        (),
        "Handshakes of TLS with callers that were done, and the time that they took.",
    ),
    Family(
        PROXY + "downstream_tls_handshakes_failed_total",
        "counter",
        (),
        "Handshakes of TLS with callers that were not.",
    ),
    Family(
        PROXY + "upstream_connections",
        "gauge",
        (),
        "Connections to upstreams that take calls, or let some finish.",
    ),
    Family(
        PROXY + "upstream_connections_opened_total", "counter", (), "Connections to upstreams that were made."
    ),
    Family(
        PROXY + "upstream_connections_closed_total",
        "counter",
        ("reason",),
        "Of these, those that have ended, and why.",
    ),
    Family(PROXY + "upstream_dials_started_total", "counter", (), "Connections that were tried."),
    Family(
        PROXY + "upstream_dial_seconds",
        "summary",
        (),
        "Dials that have succeeded, and the time to the upstream's first SETTINGS.",
    ),
    Family(PROXY + "upstream_dials_failed_total", "counter", (), "Dials that have failed."),
    Family(
        PROXY + "upstream_streams_opened_total",
        "counter",
        (),
        "Streams opened on connections to upstreams: each call that got a place, and "
        "each that was sent once more.",
    ),
    Family(
        PROXY + "upstream_calls_waited_total",
        "counter",
        (),
        "Calls that found no connection with room, and waited.",
    ),
    Family(
        PROXY + "upstream_calls_refused_total",
        "counter",
        (),
        "Calls that got no connection: the line was full, or the dials failed.",
    ),
    Family(
        PROXY + "upstream_retries_total",
        "counter",
        (),
        "Attempts at calls that followed one that had failed, by the policy of a route or a director.",
    ),
    Family(
        PROXY + "upstream_hedges_total",
        "counter",
        (),
        "Attempts at calls that were sent beside others, by policy.",
    ),
    Family(
        PROXY + "upstream_retries_exhausted_total",
        "counter",
        (),
        "Calls that failed with their last attempt, and would have had another one.",
    ),
    Family(
        PROXY + "upstream_retries_throttled_total",
        "counter",
        (),
        "Calls that got no further attempt because too many had failed at their cluster.",
    ),
    Family(PROXY + "endpoint_connections", "gauge", _ENDPOINT, "Connections to an endpoint."),
    Family(PROXY + "endpoint_open_calls", "gauge", _ENDPOINT, "Calls that hold a place on them."),
    Family(
        PROXY + "endpoint_waiting_calls",
        "gauge",
        _ENDPOINT,
        "Calls that wait for a connection to an endpoint.",
    ),
    Family(PROXY + "endpoint_dialling", "gauge", _ENDPOINT, "Connections to it that are being made."),
    Family(
        PROXY + "endpoint_workers",
        "gauge",
        (*_ENDPOINT, "state"),
        "Workers for which an endpoint is ready, connecting, in backoff (it cannot be reached) or idle.",
    ),
    Family(
        PROXY + "endpoint_standing",
        "gauge",
        (*_ENDPOINT, "standing"),
        "Workers for which an endpoint is in_rotation, draining (not of the cluster any more), ejected (outlier "
        "detection), unchecked or unhealthy (health checks), or unreachable.",
    ),
    Family(
        PROXY + "endpoint_ejections_total",
        "counter",
        (*_ENDPOINT, "algorithm"),
        "How often outlier detection has ejected an endpoint: consecutive_failures, success_rate, "
        "failure_percentage.",
    ),
    Family(
        PROXY + "endpoint_handled_total",
        "counter",
        ("address", "grpc_code"),
        "Calls to an address that have ended, by status.",
    ),
    Family(
        PROXY + "limits_reached_total",
        "counter",
        ("limit",),
        "How often a peer ran into a limit, by the setting that names it.",
    ),
    Family(
        PROXY + "route_calls_refused_total",
        "counter",
        ("route", "limit"),
        "Calls of a route that a limit of it has refused: `rate_limit` or `concurrency`.",
    ),
    Family(
        PROXY + "route_calls_under_way",
        "gauge",
        ("route",),
        "Calls that are under way on a route whose concurrency is limited.",
    ),
    Family(
        PROXY + "route_concurrency_limit",
        "gauge",
        ("route",),
        "How many of these there may be, in all workers; an adaptive limit moves.",
    ),
    Family(
        PROXY + "cluster_calls_refused_total",
        "counter",
        ("cluster", "limit"),
        "Calls that the circuit breaker of a cluster has refused: `max_requests` or `max_pending`.",
    ),
    Family(
        PROXY + "mirrored_calls_total",
        "counter",
        ("route",),
        "Copies of a route's calls that its shadow was sent.",
    ),
    Family(
        PROXY + "mirror_statuses_total",
        "counter",
        ("route", "outcome"),
        "How copies have ended: with the `same` status as their call, a `different` one, or `given_up`, as their call "
        "ended without a status of its upstream.",
    ),
    Family(
        PROXY + "mirror_dropped_total",
        "counter",
        ("route", "reason"),
        "Calls that were not copied, and copies that went no further: too many `calls`; `bytes` that the shadow did "
        "not take; `headers` longer than it takes; it was `unreachable`; `overflow` of its limits; too `late`; a "
        "`fault` here.",
    ),
    Family(PROXY + "log_lines_dropped_total", "counter", (), "Lines of the log that nobody took in time."),
    Family(
        PROXY + "trace_spans_exported_total",
        "counter",
        (),
        "Spans of traced calls that the collector has taken.",
    ),
    Family(
        PROXY + "trace_spans_dropped_total",
        "counter",
        (),
        "Spans of traced calls that it has not: too many waited for it, or it would not have them.",
    ),
    Family(
        PROXY + "look_ups_total",
        "counter",
        ("name", "outcome"),
        "Look-ups of a name whose addresses are a cluster's endpoints: done or failed, which changes nothing.",
    ),
    Family(
        PROXY + "look_ups_failing",
        "gauge",
        ("name",),
        "Workers whose last look-up of the name has failed.",
    ),
    Family(
        PROXY + "tls_reload_failures_total",
        "counter",
        (),
        "Certificates and keys that had changed and could not be used; the old ones stay in use.",
    ),
    Family(
        PROXY + "workers",
        "gauge",
        ("state",),
        "Workers that are serving, draining, or silent: of those that do not answer the last word counts.",
    ),
    Family(
        PROXY + "worker_cpu_seconds_total",
        "counter",
        _WORKER,
        "CPU time of a worker; of the newest one, while another drains.",
    ),
    Family(PROXY + "worker_resident_memory_bytes", "gauge", _WORKER, "Memory of a worker."),
    Family(PROXY + "worker_open_files", "gauge", _WORKER, "Open file descriptors of a worker."),
    Family(
        PROXY + "worker_tasks",
        "gauge",
        _WORKER,
        "Tasks of a worker: some for itself, and for each connection; an open call has none.",
    ),
    Family(
        PROXY + "worker_start_time_seconds", "gauge", _WORKER, "When a worker began, in seconds since 1970."
    ),
    Family(PROXY + "worker_open_calls", "gauge", _WORKER, "Calls that are open on a worker."),
    Family(PROXY + "worker_connections", "gauge", _WORKER, "Connections of callers to a worker."),
    Family(PROXY + "build_info", "info", ("version", "python"), "Which proxy this is, and on which Python."),
)
