"""What the supervisor tells the admin process (`admin_process.py`), and what outlives one: files nowhere on disk.

News go over the channel as a byte each, with an open file of JSON, and with a worker's the end of a link. So news of
any length (the settings in force may have megabytes) go out at once or not at all: the supervisor never waits.

The *ledger* is one such file, which every admin process inherits: what must not go down when one takes the place of
another.
"""

import array
import json
import os
import socket
import tempfile
from collections.abc import Mapping
from typing import IO, Any

_NEWS, _NEWS_WITH_LINK = b"n", b"l"


def news_for_admin(
    channel: socket.socket, news: Mapping[str, Any], link: socket.socket | None = None
) -> None:
    """Tell it this, without waiting. Raises `OSError` if that cannot be."""
    with nameless_file() as file:
        file.write(json.dumps(news).encode())
        file.flush()
        descriptors = [file.fileno(), *([] if link is None else [link.fileno()])]
        kind = _NEWS if link is None else _NEWS_WITH_LINK
        channel.sendmsg([kind], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])


def news_from_supervisor(channel: socket.socket) -> tuple[dict[str, Any], socket.socket | None] | None:
    """Answer the next news, and the link that comes with it; None when the supervisor is gone.

    Raises `BlockingIOError` if there are none yet.
    """
    try:
        kind, descriptors, _, _ = socket.recv_fds(channel, 1, 2)
    except BlockingIOError:
        raise
    except OSError:
        return None
    if not kind:
        return None
    with os.fdopen(descriptors[0], "rb") as file:
        file.seek(0)
        news = json.load(file)
    return news, socket.socket(fileno=descriptors[1]) if kind == _NEWS_WITH_LINK else None


def nameless_file() -> IO[bytes]:
    """An empty file, which is gone when the last of those who have it has closed it. Raises `OSError`."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("rawgrpc-proxy"), "w+b")
    return tempfile.TemporaryFile()  # whoever asked closes it


def read_ledger(descriptor: int) -> dict[str, Any]:
    """What the last admin process has written; nothing if there was none, or it was killed while it wrote."""
    try:
        ledger = json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
    except (OSError, ValueError):
        return {}
    return ledger if isinstance(ledger, dict) else {}


def write_ledger(descriptor: int, ledger: Mapping[str, Any]) -> None:
    """Write it, instead of what was there. Raises `OSError`."""
    data = json.dumps(ledger).encode()
    os.ftruncate(descriptor, os.pwrite(descriptor, data, 0))
