"""Why the proxy has ended a call, in two letters: those of Envoy's response flags that have a meaning here.

What it does not do: say anything of a call that its upstream has ended with a status of its own; that has no flag.
"""

from rawgrpc_proxy.errors import (
    DeadlineExceeded,
    IdleTimeout,
    LinkLost,
    NoRoute,
    PoolExhausted,
    RateLimited,
    RpcError,
    Side,
    StreamRefused,
    StreamReset,
    TooManyCalls,
    UpstreamUnavailable,
)

FLAGS = {
    "NR": "No route: nobody here serves the method, and no route leads on.",
    "UF": "Upstream connection failure: it cannot be reached, speaks no HTTP/2 or no TLS, or is this proxy itself.",
    "RL": "Rate limited: there were more calls than `rate_limit` of the route lets through.",
    "UO": "Upstream overflow: its connections are full, and as many calls wait as may (`max_waiting`); or as many "
    "calls are under way, or wait, as may (`concurrency` of the route; `max_requests`, `max_pending` of the cluster).",
    "UC": "Upstream connection termination: it was lost with the call on it.",
    "UR": "Upstream reset: it has ended the stream with RST_STREAM, or refused it.",
    "LR": "Local reset: the proxy has ended the stream. Its sender broke a rule of HTTP/2 or a limit, or the call had "
    "stalled while too much waited in the process (`max_buffered`).",
    "DT": "The deadline has passed.",
    "SI": "Stream idle timeout: nothing of the call has passed for too long (`idle_timeout` of the route).",
    "DC": "Downstream connection termination: the caller's was lost.",
    "DR": "Downstream reset: the caller has given the call up.",
}
"""By flag: what it means."""

_OTHERS: tuple[tuple[type[RpcError], str], ...] = (
    (NoRoute, "NR"),
    (PoolExhausted, "UO"),
    (TooManyCalls, "UO"),
    (RateLimited, "RL"),
    (DeadlineExceeded, "DT"),
    (IdleTimeout, "SI"),
)


def flag_of(error: BaseException) -> str:
    """The flag of a call that ends with this error; none for those of directors and handlers."""
    match error:
        case StreamReset(side=Side.DOWNSTREAM):
            return "DR"
        case StreamReset(side=Side.UPSTREAM):
            return "UR"
        case StreamReset():
            return "LR"
        case LinkLost(side=Side.DOWNSTREAM):
            return "DC"
        case LinkLost() | StreamRefused():
            return "UC"
        case UpstreamUnavailable():
            return "UF"
        case RpcError():
            return next((flag for kind, flag in _OTHERS if isinstance(error, kind)), "")
        case _:
            return ""
