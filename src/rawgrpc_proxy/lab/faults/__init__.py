"""Faults on purpose, on one connection: who breaks what, where, and how.

    faults = Faults(seed=7)
    faults.add(Fault(method="/shop.Cart/*", calls="first 2", do=AnswerStatus(status="UNAVAILABLE")))
    server = Server(..., wrap=with_faults(faults))

What there is of it for users is here; a name is looked up where it lives when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rawgrpc_proxy.lab.faults.actions import (
        Action,
        AnswerHttp,
        AnswerStatus,
        BadGrpcMessage,
        Bandwidth,
        ChangeSettings,
        Cut,
        CutMessage,
        Delay,
        DoubleMessage,
        DropStatus,
        DropTrailers,
        End,
        FlipBits,
        Goaway,
        HalfClose,
        Latency,
        PadFrame,
        PingFlood,
        Reset,
        Silence,
        SplitFrame,
        SplitTrailersOnly,
        Stall,
        SwapMessages,
        TrailersBeforeData,
        UnknownFrame,
    )
    from rawgrpc_proxy.lab.faults.fault import Fault
    from rawgrpc_proxy.lab.faults.injector import Counts, Faults, Rule, Struck
    from rawgrpc_proxy.lab.faults.places import (
        AfterBytes,
        AfterMessage,
        AfterTime,
        AtConnect,
        AtTrailers,
        BeforeHeaders,
        OnFrame,
        Part,
        Place,
    )
    from rawgrpc_proxy.lab.faults.presets import PRESETS, Preset
    from rawgrpc_proxy.lab.faults.pump import with_faults
    from rawgrpc_proxy.lab.faults.reading import FaultsFile, faults_of_file, faults_of_text

_HOMES = {
    "actions": (
        "Action",
        "AnswerHttp",
        "AnswerStatus",
        "BadGrpcMessage",
        "Bandwidth",
        "ChangeSettings",
        "Cut",
        "CutMessage",
        "Delay",
        "DoubleMessage",
        "DropStatus",
        "DropTrailers",
        "End",
        "FlipBits",
        "Goaway",
        "HalfClose",
        "Latency",
        "PadFrame",
        "PingFlood",
        "Reset",
        "Silence",
        "SplitFrame",
        "SplitTrailersOnly",
        "Stall",
        "SwapMessages",
        "TrailersBeforeData",
        "UnknownFrame",
    ),
    "fault": ("Fault",),
    "injector": ("Counts", "Faults", "Rule", "Struck"),
    "places": (
        "AfterBytes",
        "AfterMessage",
        "AfterTime",
        "AtConnect",
        "AtTrailers",
        "BeforeHeaders",
        "OnFrame",
        "Part",
        "Place",
    ),
    "presets": ("PRESETS", "Preset"),
    "pump": ("with_faults",),
    "reading": ("FaultsFile", "faults_of_file", "faults_of_text"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "PRESETS",
    "Action",
    "AfterBytes",
    "AfterMessage",
    "AfterTime",
    "AnswerHttp",
    "AnswerStatus",
    "AtConnect",
    "AtTrailers",
    "BadGrpcMessage",
    "Bandwidth",
    "BeforeHeaders",
    "ChangeSettings",
    "Counts",
    "Cut",
    "CutMessage",
    "Delay",
    "DoubleMessage",
    "DropStatus",
    "DropTrailers",
    "End",
    "Fault",
    "Faults",
    "FaultsFile",
    "FlipBits",
    "Goaway",
    "HalfClose",
    "Latency",
    "OnFrame",
    "PadFrame",
    "Part",
    "PingFlood",
    "Place",
    "Preset",
    "Reset",
    "Rule",
    "Silence",
    "SplitFrame",
    "SplitTrailersOnly",
    "Stall",
    "Struck",
    "SwapMessages",
    "TrailersBeforeData",
    "UnknownFrame",
    "faults_of_file",
    "faults_of_text",
    "with_faults",
]


if not TYPE_CHECKING:  # for type checkers there are the imports above, and nothing else

    def __getattr__(name: str) -> object:
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        thing = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = thing
        return thing


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
