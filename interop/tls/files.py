"""The PEM files of a run: what is right, and what is wrong on purpose."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import trustme

_DAY = dt.timedelta(days=1)


def write_files(folder: Path) -> None:
    """Two authorities, `ours.ca` and `stranger.ca`, and pairs, each with its key in one file.

    `server.pem` and `client.pem` are right; so are those named `-expired`, `-stranger` (by the other authority) and
    `-elsewhere` (for another name), but for that.
    """
    now = dt.datetime.now(dt.UTC)
    ours, stranger = trustme.CA(), trustme.CA()
    past = {"not_before": now - 30 * _DAY, "not_after": now - _DAY}
    for name, authority in (("ours", ours), ("stranger", stranger)):
        authority.cert_pem.write_to_path(str(folder / f"{name}.ca"))
    pairs = {
        "server": ours.issue_cert("127.0.0.1", "localhost"),
        "server-elsewhere": ours.issue_cert("elsewhere.test"),
        "server-expired": ours.issue_cert("127.0.0.1", **past),
        "server-stranger": stranger.issue_cert("127.0.0.1"),
        "client": ours.issue_cert("client.test"),
        "client-expired": ours.issue_cert("client.test", **past),
        "client-stranger": stranger.issue_cert("client.test"),
    }
    for name, pair in pairs.items():
        pair.private_key_and_cert_chain_pem.write_to_path(str(folder / f"{name}.pem"))
