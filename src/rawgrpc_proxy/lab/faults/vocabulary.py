"""The words of a file of faults: places, actions, and what may stand behind each key.

What it does not do: make faults of them (`reading.py`). What a number or a text may be is said where it is used, by
the classes in `places.py`, `actions.py` and `fault.py`; here is of which kind it is.
"""

import base64
import binascii
import enum
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.config_words import (
    DURATION,
    SIZE,
    bytes_of,
    duration_of,
    is_number,
    meant,
)
from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.http2.frames import Setting
from rawgrpc_proxy.lab.faults import actions, places
from rawgrpc_proxy.lab.faults.actions import End
from rawgrpc_proxy.lab.faults.places import Part


class Wrong(Exception):
    """What should have been there instead, in words."""


class WrongWithin(Wrong):
    """What is wrong with a part of it, in words."""


Read = Callable[[Any], Any]
"""Makes of a value of TOML what a field is given. Raises `Wrong`."""


@attrs.frozen
class Field:
    """The attribute of a class, and how it is read."""

    name: str
    read: Read


@attrs.frozen(kw_only=True)
class Spec:
    """What a word stands for."""

    cls: type[Any]
    main: Field | None = None
    """What the word's own value is; None: it has none."""
    sample: str = ""
    """Such a value, as TOML."""
    more: Mapping[str, Field] = attrs.field(factory=dict)
    """What else may stand in its table."""
    fixed: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def needs_value(self) -> bool:
        """Whether the word alone does not do."""
        return self.main is not None and attrs.fields_dict(self.cls)[self.main.name].default is attrs.NOTHING

    def example(self, word: str) -> str:
        """How it is written, with a value."""
        return f"{word} = {self.sample or 'true'}"


# ------------------------------------------------------------------ kinds of values


def text(value: Any) -> str:
    """Text."""
    if not isinstance(value, str):
        raise Wrong('text, in quotation marks: "…"')
    return value


def whole_number(value: Any) -> int:
    """A whole number."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise Wrong("a whole number")
    return value


def _number(value: Any) -> float:
    if not is_number(value):
        raise Wrong("a number")
    return float(value)


def _share(value: Any) -> float:
    if not is_number(value):
        percent = f": {value} is {float(value[:-1]) / 100:g}" if _is_percent(value) else ""
        raise Wrong(f"a number from 0 to 1{percent}")
    return float(value)


def _is_percent(value: Any) -> bool:
    return (
        isinstance(value, str)
        and value.endswith("%")
        and value[:-1].replace(".", "", 1).isascii()
        and value[:-1].replace(".", "", 1).isdigit()
    )


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Wrong("true or false")
    return value


def _time(value: Any) -> float:
    seconds = duration_of(value)
    if seconds is None:
        raise Wrong(DURATION)
    return seconds


def _size(value: Any) -> float:
    size = bytes_of(value)
    if size is None:
        raise Wrong(SIZE)
    return size


def _octets(value: Any) -> bytes:
    return text(value).encode()


def _word(choices: Mapping[str, Any]) -> Read:
    def read(value: Any) -> Any:
        if isinstance(value, str) and value in choices:
            return choices[value]
        raise Wrong(" or ".join(f'"{each}"' for each in choices) + meant(str(value), choices))

    return read


def _code(codes: type[enum.IntEnum]) -> Read:
    """A name of these, or a number."""

    def read(value: Any) -> int:
        if isinstance(value, str) and value in codes.__members__:
            return codes[value]
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        known = ", ".join(codes.__members__)
        raise Wrong(f"one of {known}, or a number{meant(str(value), codes.__members__)}")

    return read


def _metadata(value: Any) -> tuple[tuple[str, str | bytes], ...]:
    """Names with text, or with lists of it; the text under "-bin" names is base64."""
    if not isinstance(value, dict):
        raise Wrong('a table of names with text, like { retry-after = "1" }')
    pairs = []
    for name, those in value.items():
        for each in those if isinstance(those, list) else [those]:
            if not isinstance(each, str):
                raise WrongWithin(f'{name} = {each!r} is no text; write "{each}"')
            try:
                pairs.append(
                    (
                        name,
                        base64.b64decode(each + "=" * (-len(each) % 4), validate=True)
                        if name.endswith("-bin")
                        else each,
                    )
                )
            except binascii.Error:
                raise WrongWithin(f"{name} = {each!r} is no base64, as names in -bin have") from None
    return tuple(pairs)


def _patterns(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise Wrong('a table of names with text, like { x-user = "alice*" }; * stands for anything')
    return value


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        raise Wrong(f'a list: ["{value}"]')
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise Wrong('a list of text, like ["10.0.0.0/8"]')
    return value


def _numbers(value: Any) -> str:
    """Which calls: text, or one number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise Wrong('text like "first 2", "every 3", "2-6", or a number')
    return value


def _settings(value: Any) -> dict[str, int]:
    names = Setting.__members__
    if not isinstance(value, dict) or not value:
        raise Wrong("a table of settings with numbers, like { MAX_CONCURRENT_STREAMS = 1 }")
    for name, number in value.items():
        if name not in names:
            raise WrongWithin(f"{name} is no setting{meant(name, names)}; known: {', '.join(names)}")
        if not isinstance(number, int) or isinstance(number, bool):
            raise WrongWithin(f"{name} is {number!r}; it must be a whole number")
    return value


# ------------------------------------------------------------------ words

_OF = {"of": Field("of", _word({"request": Part.REQUEST, "response": Part.RESPONSE}))}
_TOWARDS = {"towards": Field("towards", _word({"client": End.CLIENT, "server": End.SERVER}))}
_JITTER = {"jitter": Field("jitter", _time)}
_ALL = {"all": Field("all", _flag)}

FAULT: Mapping[str, Field] = {
    "name": Field("name", text),
    "side": Field("side", _word({"downstream": Side.DOWNSTREAM, "upstream": Side.UPSTREAM})),
    "method": Field("method", text),
    "metadata": Field("metadata", _patterns),
    "peer": Field("peer", _texts),
    "calls": Field("calls", _numbers),
    "share": Field("share", _share),
}
"""Of a rule, beside `where` and `do`."""

PLACES: Mapping[str, Spec] = {
    "headers": Spec(cls=places.BeforeHeaders),
    "response_headers": Spec(cls=places.BeforeHeaders, fixed={"of": Part.RESPONSE}),
    "message": Spec(cls=places.AfterMessage, main=Field("number", whole_number), sample="1", more=_OF),
    "byte": Spec(cls=places.AfterBytes, main=Field("count", _size), sample="100", more=_OF),
    "frame": Spec(
        cls=places.OnFrame,
        main=Field("frame", text),
        sample='"DATA"',
        more={**_OF, "nth": Field("nth", whole_number), "before": Field("before", _flag)},
    ),
    "trailers": Spec(cls=places.AtTrailers),
    "after": Spec(
        cls=places.AfterTime,
        main=Field("seconds", _time),
        sample='"1.5s"',
        more={**_OF, "connection": Field("of_link", _flag)},
    ),
    "connect": Spec(cls=places.AtConnect),
}
"""What `where` may be."""

ACTIONS: Mapping[str, Spec] = {
    "status": Spec(
        cls=actions.AnswerStatus,
        main=Field("status", _code(Status)),
        sample='"UNAVAILABLE"',
        more={"message": Field("message", text), "metadata": Field("metadata", _metadata)},
    ),
    "http": Spec(
        cls=actions.AnswerHttp,
        main=Field("status", whole_number),
        sample="502",
        more={
            "body": Field("body", text),
            "content_type": Field("content_type", text),
            "headers": Field("headers", _metadata),
        },
    ),
    "reset": Spec(
        cls=actions.Reset, main=Field("code", _code(ErrorCode)), sample='"INTERNAL_ERROR"', more=_TOWARDS
    ),
    "goaway": Spec(
        cls=actions.Goaway,
        main=Field("code", _code(ErrorCode)),
        sample='"NO_ERROR"',
        more={**_TOWARDS, "below": Field("below", whole_number), "debug": Field("debug", text)},
    ),
    "cut": Spec(
        cls=actions.Cut, main=Field("reset", _word({"fin": False, "rst": True})), sample='"fin" or "rst"'
    ),
    "silence": Spec(cls=actions.Silence),
    "half_close": Spec(cls=actions.HalfClose),
    "settings": Spec(
        cls=actions.ChangeSettings,
        main=Field("settings", _settings),
        sample="{ MAX_CONCURRENT_STREAMS = 1 }",
        more=_TOWARDS,
    ),
    "pings": Spec(cls=actions.PingFlood, main=Field("count", whole_number), sample="1000", more=_TOWARDS),
    "delay": Spec(cls=actions.Delay, main=Field("seconds", _time), sample='"200ms"', more=_JITTER),
    "latency": Spec(cls=actions.Latency, main=Field("seconds", _time), sample='"50ms"', more=_JITTER),
    "bandwidth": Spec(cls=actions.Bandwidth, main=Field("bytes_per_s", _size), sample='"64KiB"'),
    "stall": Spec(cls=actions.Stall, main=Field("seconds", _time), sample='"5s"'),
    "drop_trailers": Spec(cls=actions.DropTrailers),
    "split_trailers_only": Spec(cls=actions.SplitTrailersOnly),
    "trailers_before_data": Spec(cls=actions.TrailersBeforeData),
    "drop_status": Spec(cls=actions.DropStatus),
    "bad_message": Spec(cls=actions.BadGrpcMessage, main=Field("value", _octets), sample='"%E4%ZZ"'),
    "cut_message": Spec(cls=actions.CutMessage, main=Field("keep", whole_number), sample="3"),
    "double_message": Spec(cls=actions.DoubleMessage),
    "swap_messages": Spec(cls=actions.SwapMessages),
    "flip_bits": Spec(cls=actions.FlipBits, main=Field("bits", whole_number), sample="1"),
    "split_frame": Spec(
        cls=actions.SplitFrame,
        main=Field("at", whole_number),
        sample="9",
        more={**_ALL, "frame": Field("frame", text)},
    ),
    "pad_frame": Spec(cls=actions.PadFrame, main=Field("bytes", whole_number), sample="255", more=_ALL),
    "unknown_frame": Spec(
        cls=actions.UnknownFrame,
        main=Field("type", whole_number),
        sample="0xfa",
        more={"payload": Field("payload", _octets)},
    ),
}
"""What `do` may be."""
