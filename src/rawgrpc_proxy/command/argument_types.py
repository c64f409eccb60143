"""What the text of an argument may be: for `type=` of argparse, which names the option in front of the message."""

import argparse
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from rawgrpc_proxy.config import ENGINES, Http2Settings
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.net.address import Address

ENGINE: Final[dict[str, Any]] = {
    "choices": ENGINES,
    "help": f"which implementation of HTTP/2 to use: {' or '.join(ENGINES)} (default: {Http2Settings().engine})",
}
"""What there is to say of an option `--engine`."""


def checked(parse: Callable[[str], object]) -> Callable[[str], str]:
    """An argument that stays text, and has to be one that `parse` understands."""

    def check(text: str) -> str:
        try:
            parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return text

    return check


address = checked(Address.parse)
"""`HOST:PORT` or `unix:PATH`."""
listening_address = checked(partial(Address.parse, to_listen=True))
"""The same, or `:PORT`."""


def count(text: str) -> int:
    """A whole number of 0 or more."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 0 or more")
    return int(text)


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def seconds(text: str) -> float:
    """A number of 0 or more."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number >= 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of seconds; write 0 or more, for example 2.5"
        )
    return number
