"""The files of the page for people, as they are served: kept by browsers, and asked for again each time."""

import hashlib
from importlib.resources.abc import Traversable

from rawgrpc_proxy.command.admin.messages import Refused, Request, Response
from rawgrpc_proxy.command.admin.negotiate import matches_etag

PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8", "the page, for people"),
    "/page.css": ("page.css", "text/css; charset=utf-8", ""),
    "/page.js": ("page.js", "text/javascript; charset=utf-8", ""),
    "/favicon.svg": ("favicon.svg", "image/svg+xml", ""),
}
"""Its files, their types, and what is said of them where all is listed."""


async def page_file(page: Traversable, request: Request) -> Response:
    """The file at this path, or that it is the one that is known already. Raises `Refused` if it is missing."""
    name, media_type, _ = PAGE_FILES[request.path]
    try:
        body = page.joinpath(name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise Refused(
            404, f"this installation has no page: {name} is missing; /livez, /metrics and all else work"
        ) from None
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    fields = {
        "Content-Type": media_type,
        "Cache-Control": "no-cache",  # kept, and asked for each time: it goes with the version
        "ETag": etag,
    }
    if matches_etag(request.fields.get("if-none-match"), etag):
        return Response(status=304, fields=fields)
    return Response(fields=fields, body=body)
