"""What the supervisor tells the admin process (`deputy.py`): lines of JSON, and with some the end of a link."""

import array
import json
import socket
from collections.abc import Mapping
from typing import Any


def news_for_deputy(
    channel: socket.socket, news: Mapping[str, Any], link: socket.socket | None = None
) -> None:
    """Tell it this, without waiting. Raises `OSError` if that cannot be."""
    line = json.dumps(news).encode() + b"\n"
    links = (
        [] if link is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [link.fileno()]))]
    )
    if channel.sendmsg([line], links) != len(line):
        raise BlockingIOError
