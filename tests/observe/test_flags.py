"""Which flag an error gives a call."""

import pytest

from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.errors import (
    ConnectionGone,
    DeadlineExceeded,
    IdleTimeout,
    NoRoute,
    PoolExhausted,
    RateLimited,
    RpcError,
    Side,
    TooManyCalls,
    UpstreamUnavailable,
)
from rawgrpc_proxy.net.failures import lost_error, never_sent_error, reset_error
from rawgrpc_proxy.observe.flags import FLAGS, flag_of

GONE = ConnectionGone("the peer closed the connection")
CASES = [
    (NoRoute("no route for /p.S/M"), "NR"),
    (UpstreamUnavailable("refused"), "UF"),
    (PoolExhausted("full"), "UO"),
    (TooManyCalls("full", pushback_ms=100), "UO"),
    (RateLimited("too fast", pushback_ms=10), "RL"),
    (lost_error(GONE, "10.0.0.2:1", Side.UPSTREAM), "UC"),
    (never_sent_error(GONE, "10.0.0.2:1", Side.UPSTREAM), "UC"),
    (lost_error(GONE, "10.0.0.1:1", Side.DOWNSTREAM), "DC"),
    (reset_error(ErrorCode.REFUSED_STREAM, Side.UPSTREAM, ""), "UR"),
    (reset_error(ErrorCode.CANCEL, Side.DOWNSTREAM, ""), "DR"),
    (reset_error(ErrorCode.PROTOCOL_ERROR, Side.LOCAL, "no :status"), "LR"),
    (DeadlineExceeded("Deadline Exceeded"), "DT"),
    (IdleTimeout("nothing has passed"), "SI"),
    (RpcError(Status.PERMISSION_DENIED, "a director's"), ""),
    (ZeroDivisionError("a handler's"), ""),
]


@pytest.mark.parametrize(("error", "flag"), CASES)
def test_an_error_has_the_flag_of_its_cause(error: Exception, flag: str) -> None:
    assert flag_of(error) == flag


def test_every_flag_that_there_is_has_a_cause_here() -> None:
    assert {flag for _, flag in CASES if flag} == set(FLAGS)
