"""Faults by name: the cases of gRPC's negative HTTP/2 interop tests, and outages that are common.

The first seven are those of the server in gRPC's negative HTTP/2 interop test descriptions, with its names; they are
for callers' connections, as all of these.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs

from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.http2.frames import Setting
from rawgrpc_proxy.lab.faults.actions import (
    AnswerHttp,
    AnswerStatus,
    Bandwidth,
    ChangeSettings,
    Cut,
    Delay,
    Goaway,
    Latency,
    PadFrame,
    PingFlood,
    Reset,
    Silence,
)
from rawgrpc_proxy.lab.faults.fault import Fault
from rawgrpc_proxy.lab.faults.places import (
    AfterBytes,
    AtConnect,
    AtTrailers,
    BeforeHeaders,
    OnFrame,
    Part,
)

_BEFORE_RESPONSE = BeforeHeaders(of=Part.RESPONSE)
_BAD_GATEWAY = (
    "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n"
    "</body>\r\n</html>\r\n"
)


@attrs.frozen
class Preset:
    """Some faults together."""

    about: str
    """What happens, in a line."""
    faults: tuple[Fault, ...]


def _preset(about: str, *faults: Fault) -> Preset:
    return Preset(about, faults)


PRESETS: Final[Mapping[str, Preset]] = MappingProxyType(
    {
        "goaway": _preset(
            "of every two calls the first is answered, and its connection takes no more calls (GOAWAY)",
            Fault(name="goaway", calls="first 1 of 2", where=AtTrailers(), do=Goaway()),
        ),
        "rst_after_header": _preset(
            "RST_STREAM NO_ERROR after the response's headers",
            Fault(name="rst_after_header", where=OnFrame(frame="HEADERS"), do=Reset(code=ErrorCode.NO_ERROR)),
        ),
        "rst_during_data": _preset(
            "RST_STREAM NO_ERROR in the midst of the response's first message",
            Fault(name="rst_during_data", where=AfterBytes(count=3), do=Reset(code=ErrorCode.NO_ERROR)),
        ),
        "rst_after_data": _preset(
            "RST_STREAM NO_ERROR after the response's last message, in place of its trailers",
            Fault(name="rst_after_data", where=AtTrailers(), do=Reset(code=ErrorCode.NO_ERROR)),
        ),
        "ping": _preset(
            "PINGs before and after the response's headers, before its data and before its trailers",
            *(
                Fault(name=f"ping-{name}", where=where, do=PingFlood(count=1))
                for name, where in (
                    ("before-headers", _BEFORE_RESPONSE),
                    ("after-headers", OnFrame(frame="HEADERS")),
                    ("before-data", OnFrame(frame="DATA", before=True)),
                    ("after-data", AtTrailers()),
                )
            ),
        ),
        "max_streams": _preset(
            "a connection takes one call at a time (SETTINGS_MAX_CONCURRENT_STREAMS 1)",
            Fault(
                name="max_streams",
                where=AtConnect(),
                do=ChangeSettings(settings={Setting.MAX_CONCURRENT_STREAMS: 1}),
            ),
        ),
        "data_frame_padding": _preset(
            "each DATA frame of the response has 255 bytes of padding",
            Fault(
                name="data_frame_padding",
                where=OnFrame(frame="DATA", before=True),
                do=PadFrame(bytes=255, all=True),
            ),
        ),
        "flaky-backend": _preset(
            "of the calls 20 % are UNAVAILABLE, 5 % are reset after their headers, 20 % are late",
            Fault(
                name="flaky-unavailable",
                share=0.2,
                do=AnswerStatus(status=Status.UNAVAILABLE, message="flaky-backend"),
            ),
            Fault(name="flaky-reset", share=0.05, where=OnFrame(frame="HEADERS"), do=Reset()),
            Fault(name="flaky-late", share=0.2, where=_BEFORE_RESPONSE, do=Delay(seconds=0.3, jitter=0.7)),
        ),
        "slow-network": _preset(
            "80 to 120 ms each way, and 64 KiB in a second",
            Fault(
                name="slow-network",
                where=AtConnect(),
                do=(Latency(seconds=0.08, jitter=0.04), Bandwidth(bytes_per_s=64 * 1024)),
            ),
        ),
        "dead-link": _preset(
            "at every third call its connection goes silent, and stays open",
            Fault(name="dead-link", calls="every 3", do=Silence()),
        ),
        "overloaded": _preset(
            "four calls at a time on a connection; 30 % are RESOURCE_EXHAUSTED with a pushback, the others slow",
            Fault(
                name="overloaded-streams",
                where=AtConnect(),
                do=ChangeSettings(settings={Setting.MAX_CONCURRENT_STREAMS: 4}),
            ),
            Fault(
                name="overloaded-refused",
                share=0.3,
                do=AnswerStatus(
                    status=Status.RESOURCE_EXHAUSTED,
                    message="overloaded",
                    metadata={"grpc-retry-pushback-ms": "500"},
                ),
            ),
            Fault(name="overloaded-slow", where=_BEFORE_RESPONSE, do=Delay(seconds=0.3, jitter=0.5)),
        ),
        "lb-502": _preset(
            "a load balancer without a backend: each call gets HTTP 502 with a page of HTML",
            Fault(name="lb-502", do=AnswerHttp(status=502, body=_BAD_GATEWAY)),
        ),
        "deploy": _preset(
            "of every ten calls: GOAWAY at the fourth, the connection is cut at the fifth, two are UNAVAILABLE",
            Fault(name="deploy-goaway", calls="4 of 10", where=_BEFORE_RESPONSE, do=Goaway()),
            Fault(name="deploy-cut", calls="5 of 10", where=_BEFORE_RESPONSE, do=Cut(reset=True)),
            Fault(
                name="deploy-unavailable",
                calls="6-7 of 10",
                do=AnswerStatus(status=Status.UNAVAILABLE, message="deploy: no backend is ready"),
            ),
        ),
    }
)
"""By name."""
