"""Whether a request may come from a page of somebody else in the operator's browser. Pure.

The admin listener has no password: whoever can connect to it may use it. On loopback that is who has an account on the
machine, and every web page that is open in a browser there. A page can send requests anywhere, but it cannot

- send them under a name or from an origin of its choice: Host, Origin (RFC 6454) and Sec-Fetch-Site (W3C Fetch
  Metadata) are the browser's;
- read the answer, where nothing says that it may (CORS); nothing here ever does;
- have a name of its own lead to another machine (DNS rebinding) and still send another name in Host.

So the name in Host has to be one that no stranger controls, and who says where he comes from has to come from here.
Programs that are no browsers say nothing, and are let in. The invariant: nothing that a foreign page can have a
browser send has an effect, or takes one of the places of those who watch.
"""

import ipaddress
import re
from collections.abc import Collection, Mapping

from rawgrpc_proxy.command.admin.messages import Refused, Request

_HOST = re.compile(r"(?:\[([0-9a-f:.]{2,45})\]|([a-z0-9_.-]{1,253}))(?::[0-9]{1,5})?")
_ORIGIN = re.compile(r"https?://(.*)")
_READ_ONLY = frozenset({"GET", "HEAD"})
_SHOWN_CHARACTERS = 80


def check(request: Request, names: Collection[str], *, linked: bool = True) -> None:
    """Raise `Refused` if a foreign page may be behind this request.

    `names` are those, beside addresses and localhost, under which this listener may be asked for; in lower case.
    Links of other sites may lead here if it is `linked`, and something that is only read.
    """
    # Nobody's browser connects to a Unix socket; a proxy in front of one sends whatever name it was asked for.
    if request.host is not None and request.peer != "unix:" and not is_ours(request.host, names):
        raise Refused(
            421,
            f"this listener is not known as {_shown(request.host)}; ask for it by its address or as localhost, or have "
            "it listen under that name (a web page could have made that name lead here)",
        )
    origin = request.fields.get("origin")
    if origin is not None and not _same(origin, request.host):
        raise Refused(403, f"a page of {_shown(origin)} may not use this listener; only its own page may")
    if _is_from_elsewhere(request.fields) and not (linked and _follows_a_link(request)):
        raise Refused(403, "a page of another site may not use this listener; only its own page may")


def is_ours(host: str, names: Collection[str]) -> bool:
    """Whether this Host, with or without a port, is an address, loopback's name, or one of the names.

    Any address is: a page under an attacker's name is asked for by that name, wherever it leads.
    """
    match = _HOST.fullmatch(host.lower())
    if match is None:
        return False
    if match[1] is not None:
        return _is_address(match[1])
    name = match[2].removesuffix(".")
    # All of .localhost is loopback, and nobody can register a name in it (RFC 6761 §6.3).
    return name in names or name == "localhost" or name.endswith(".localhost") or _is_address(name)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _same(origin: str, host: str | None) -> bool:
    """Whether the origin is where the request was sent to, whatever the scheme: TLS may end in front of us."""
    match = _ORIGIN.fullmatch(origin.lower())
    return match is not None and host is not None and match[1] == host.lower()


def _is_from_elsewhere(fields: Mapping[str, str]) -> bool:
    return fields.get("sec-fetch-site") not in {None, "same-origin", "none"}  # "none": typed, or a bookmark


def _follows_a_link(request: Request) -> bool:
    """Whether the page that asks is left for what comes, and that is only shown. In a frame, the page would stay."""
    return (
        request.method in _READ_ONLY
        and request.fields.get("sec-fetch-mode") == "navigate"
        and request.fields.get("sec-fetch-dest") == "document"
    )


def _shown(text: str) -> str:
    return ascii(text[:_SHOWN_CHARACTERS])
