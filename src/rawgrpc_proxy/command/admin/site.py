"""The routes of the admin listener: what is answered to what, and who may ask.

Docs/admin.md has the table for those who use it. What is asked of the workers, and done to them, is the `Source`'s;
how bytes become requests is `http.py`'s. The invariant: a request that is refused has had no effect, and says what
would have had one.
"""

import functools
import importlib.resources
import json
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from importlib.resources.abc import Traversable
from typing import Any
from urllib.parse import parse_qsl

import attrs
import trio

from rawgrpc_proxy.command.admin import same_origin
from rawgrpc_proxy.command.admin.feed import Feed
from rawgrpc_proxy.command.admin.http import Limits, serve_http
from rawgrpc_proxy.command.admin.messages import OnFault, Refused, Request, Response, text_response
from rawgrpc_proxy.command.admin.negotiate import (
    gzipped,
    is_worth_gzip,
    takes_gzip,
    wants_openmetrics,
)
from rawgrpc_proxy.command.admin.page_files import PAGE_FILES, page_file
from rawgrpc_proxy.command.admin.source import Report, Source
from rawgrpc_proxy.command.lab.tap_wishes import TapWishes
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.lab.filters import without_values
from rawgrpc_proxy.version import python, version

LOG_LEVELS = ("all", "errors", "none")
_DEFAULT_CALLS, _MOST_CALLS = 100, 1000
_QUERY_FIELDS, _TAP_FIELDS = 10, 40

FIELDS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    # Nothing but what we serve ourselves, nothing inline, in nobody's frame: names of methods and peers are hostile.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every response. There is none of CORS: no other page may read anything."""

_PROBES = frozenset({"/livez", "/readyz"})
"""They say one word. What asks them has whatever name for us, and whoever reads it learns nothing."""

_STREAMS = frozenset({"/events", "/tap"})
"""Each takes one of few places for as long as it lasts."""

OnChange = Callable[[str], None]
"""Hears, in words, who has asked for a change, and what came of it. Must not wait, or raise."""


async def serve_admin(
    listeners: Sequence[socket.socket],
    source: Source,
    *,
    on_change: OnChange,
    on_fault: OnFault,
    names: Collection[str] = (),
    limits: Limits | None = None,
    page: Traversable | None = None,
) -> None:
    """Answer HTTP on these listeners until cancelled, which closes all connections at once; the listeners stay open.

    `names` are those under which it may be asked for, beside addresses, localhost and the machine's own name: the name
    that it was told to listen on, for example. `page` is a folder with another page than the one that comes with it.
    Raises `OSError` if a listener does not listen.
    """
    own_page = importlib.resources.files("rawgrpc_proxy.command.admin").joinpath("page")
    site = Site(
        source,
        names=names,
        on_change=on_change,
        on_fault=on_fault,
        page=own_page if page is None else page,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.run)
        await serve_http(listeners, site.answer, on_fault=on_fault, fields=FIELDS, limits=limits)


@attrs.frozen
class _Route:
    answer: Callable[[Request], Awaitable[Response]]
    purpose: str


class Site:
    """All that can be asked for. `run` has to run for `/events` to say anything."""

    def __init__(
        self,
        source: Source,
        *,
        names: Collection[str],
        on_change: OnChange,
        on_fault: OnFault,
        page: Traversable,
    ) -> None:
        self._source = source
        self._names = {name.lower() for name in (*names, socket.gethostname())}
        self._on_change = on_change
        self._feed = Feed(self._state, on_fault)
        self._reloading = False
        gets: dict[str, _Route] = {
            **{
                path: _Route(functools.partial(page_file, page), purpose)
                for path, (_, _, purpose) in PAGE_FILES.items()
            },
            "/livez": _Route(self._livez, "200 while the process is there"),
            "/readyz": _Route(self._readyz, "200 while it takes calls"),
            "/metrics": _Route(self._metrics, "for Prometheus"),
            "/config": _Route(self._config, "the settings in force"),
            "/clusters": _Route(self._clusters, "upstreams, with their state"),
            "/connections": _Route(self._connections, "open connections"),
            "/calls": _Route(
                self._calls, "open calls, the longest quiet ones first, and those that failed: ?limit=N"
            ),
            "/events": _Route(self._events, "the state, once a second"),
            "/tap": _Route(
                self._tap,
                "what passes, as JSON Lines: ?mode=frames&side=both&filter=method=/pkg.S/*&payload=1, or who breaks "
                "a rule: ?mode=findings",
            ),
            "/faults": _Route(self._faults, "faults on purpose, and what has come of them"),
        }
        self._routes: dict[str, dict[str, _Route]] = {
            **{path: {"GET": route} for path, route in gets.items()},
            "/drain": {"POST": _Route(self._drain, "let calls finish, and end")},
            "/reload": {"POST": _Route(self._reload, "read the settings again")},
            "/log": {"POST": _Route(self._log, f"?level={'|'.join(LOG_LEVELS)}")},
        }
        """By path and method; GET is HEAD as well."""
        self._routes["/faults"] |= {
            "POST": _Route(self._put_faults, "add faults, or replace those of the same names: TOML"),
            "DELETE": _Route(self._clear_faults, "take all faults away"),
        }

    async def run(self) -> None:
        """Make what `/events` tells, until cancelled."""
        await self._feed.run()

    async def answer(self, request: Request) -> Response:
        """Answer one request. Raises `Refused`, and whatever the source raises."""
        if request.path not in _PROBES:
            same_origin.check(request, self._names, linked=request.path not in _STREAMS)
        routes = self._routes.get(request.path)
        if routes is None:
            known = "\n".join(
                f"  {method:4} {path:12} {route.purpose}"
                for path, those in self._routes.items()
                for method, route in those.items()
                if route.purpose
            )
            raise Refused(404, f"nothing is here. There is\n{known}")
        route = routes.get("GET" if request.method == "HEAD" else request.method)
        if route is None:
            allow = ", ".join("GET, HEAD" if method == "GET" else method for method in routes)
            raise Refused(405, _use_another_method(request, routes), Allow=allow)
        return await route.answer(request)

    # ------------------------------------------------------------------ is it well

    async def _livez(self, _request: Request) -> Response:
        return text_response("alive")

    async def _readyz(self, _request: Request) -> Response:
        state = self._source.state
        return text_response(state, status=200 if state == "serving" else 503)

    # ------------------------------------------------------------------ what goes on

    async def _metrics(self, request: Request) -> Response:
        openmetrics = wants_openmetrics(request.fields.get("accept"))
        body = self._source.exposition(await self._source.reports(), openmetrics=openmetrics)
        version = (
            "application/openmetrics-text; version=1.0.0" if openmetrics else "text/plain; version=0.0.4"
        )
        fields = {"Content-Type": f"{version}; charset=utf-8", "Vary": "Accept, Accept-Encoding"}
        if is_worth_gzip(body) and takes_gzip(request.fields.get("accept-encoding")):
            return Response(fields={**fields, "Content-Encoding": "gzip"}, body=gzipped(body))
        return Response(fields=fields, body=body)

    async def _config(self, _request: Request) -> Response:
        return text_response(self._source.config.removesuffix("\n"))

    async def _clusters(self, _request: Request) -> Response:
        clusters: dict[str, list[Any]] = {}
        merged = self._source.merged(await self._source.reports())
        for endpoint in merged["endpoints"]:
            clusters.setdefault(endpoint["cluster"], []).append(endpoint)
        return _json(
            {
                "clusters": [{"cluster": name, "endpoints": those} for name, those in clusters.items()],
                "look_ups": merged["look_ups"],
            }
        )

    async def _connections(self, _request: Request) -> Response:
        return _json({"connections": await self._source.connections()})

    async def _calls(self, request: Request) -> Response:
        limit = _limit(_query(request, "limit").get("limit"))
        calls: list[dict[str, Any]] = []
        reports: list[Report] = []

        async def ask_for_calls() -> None:
            calls.extend(await self._source.calls(limit))

        async def ask_for_reports() -> None:
            reports.extend(await self._source.reports())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_for_calls)
            nursery.start_soon(ask_for_reports)
        calls.sort(key=lambda call: call["quiet_s"], reverse=True)
        merged = self._source.merged(reports)
        return _json(
            {
                "calls": calls[:limit],
                "open": merged["calls"]["open"],
                "failed": merged["failed"],
                "last_failed": merged["last_failed"],
            }
        )

    async def _events(self, request: Request) -> Response:
        fields = {
            "Content-Type": "text/event-stream",
            "X-Accel-Buffering": "no",
        }  # nginx would collect events
        if request.method == "HEAD":
            return Response(fields=fields)
        return Response(fields=fields, body=self._feed.watch())

    async def _tap(self, request: Request) -> Response:
        try:
            wishes = TapWishes.of_query(
                parse_qsl(request.query, keep_blank_values=True, max_num_fields=_TAP_FIELDS)
            )
        except (ConfigError, ValueError) as error:
            raise Refused(400, str(error)) from None
        fields = {"Content-Type": "application/x-ndjson", "X-Accel-Buffering": "no"}
        if request.method == "HEAD":
            return Response(fields=fields)
        stream = self._source.tap(wishes)
        filters = f" ({'; '.join(map(without_values, wishes.filters))})" if wishes.filters else ""
        self._on_change(f"tap of {wishes.mode}{filters}, by {request.peer}")
        return Response(fields=fields, body=stream)

    async def _state(self) -> bytes:
        """The data of one event of `/events`."""
        source = self._source
        merged = source.merged(await source.reports())
        now = time.time()
        state = {
            **merged,
            "now": now,
            "version": version(),
            "python": python(),
            "engine": source.engine,
            "uptime_s": round(max(0.0, now - source.started_at), 3),
            "state": source.state,
        }
        return _json_bytes(state)

    # ------------------------------------------------------------------ what changes something

    async def _drain(self, request: Request) -> Response:
        self._source.drain()
        self._on_change(f"drain, asked for by {request.peer}")
        return text_response("draining: no new connections, and calls have the grace to finish", status=202)

    async def _reload(self, request: Request) -> Response:
        if self._reloading:
            raise Refused(409, "a reload is under way; ask again when it is done")
        self._reloading = True
        try:
            problems = await self._source.reload()
        finally:
            self._reloading = False
        if problems:
            self._on_change(f"reload, asked for by {request.peer}: nothing changed: {'; '.join(problems)}")
            raise Refused(422, "\n".join(["nothing changed, for this is wrong:", *problems]))
        self._on_change(f"reload, asked for by {request.peer}: done")
        return text_response("reloaded")

    async def _faults(self, _request: Request) -> Response:
        return _json(
            {"may_be_set": self._source.may_set_faults, "faults": await self._source.faults()}, indent=1
        )

    async def _put_faults(self, request: Request) -> Response:
        self._check_faults_may_be_set()
        try:
            toml = request.body.decode()
        except UnicodeDecodeError as error:
            raise Refused(
                422, f"nothing changed: the rules are not UTF-8, as TOML must be: {error.reason}"
            ) from None
        problems = await self._source.put_faults(toml)
        if problems:
            raise Refused(422, "\n".join(["nothing changed, for this is wrong:", *problems]))
        self._on_change(f"faults were set by {request.peer}")
        return text_response("the faults are in force; GET /faults says what comes of them")

    async def _clear_faults(self, request: Request) -> Response:
        self._check_faults_may_be_set()
        await self._source.clear_faults()
        self._on_change(f"all faults were taken away by {request.peer}")
        return text_response("there are no faults any more, for calls that begin from now on")

    def _check_faults_may_be_set(self) -> None:
        if not self._source.may_set_faults:
            raise Refused(
                403,
                "faults may not be set here: who may ask could end all calls; write faults = true in [admin]",
            )

    async def _log(self, request: Request) -> Response:
        level = _query(request, "level").get("level")
        if level not in LOG_LEVELS:
            wrong = "the level is missing" if level is None else f"{level[:40]!a} is no level"
            raise Refused(400, f"{wrong}; write /log?level= and one of {', '.join(LOG_LEVELS)}")
        await self._source.set_log_level(level)
        self._on_change(f"log level {level}, asked for by {request.peer}")
        return text_response(f"the log has: {level}")


def _use_another_method(request: Request, routes: Collection[str]) -> str:
    if len(routes) > 1:
        return f"{request.path} takes {', '.join(routes)}"
    if "POST" not in routes:
        return f"{request.path} only tells, and changes nothing; use GET"
    target = f"http://{request.host or 'localhost'}{request.path}" + (
        "?level=none" if request.path == "/log" else ""
    )
    return f"{request.path} changes something, so use POST: curl -X POST '{target}'"


def _query(request: Request, *known: str) -> dict[str, str]:
    """What stands in the query. Raises `Refused` if it has a field that is not known here, or one twice."""
    try:
        pairs = parse_qsl(request.query, keep_blank_values=True, max_num_fields=_QUERY_FIELDS)
    except ValueError:
        raise Refused(400, f"the query has more than {_QUERY_FIELDS} fields") from None
    fields = dict(pairs)
    unknown = sorted(fields.keys() - set(known))
    if unknown:
        raise Refused(400, f"{request.path} knows no {unknown[0][:40]!a}; it knows {', '.join(known)}")
    if len(pairs) != len(fields):
        raise Refused(400, f"{pairs[-1][0]} stands there more than once")
    return fields


def _limit(text: str | None) -> int:
    if text is None:
        return _DEFAULT_CALLS
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= _MOST_CALLS):  # noqa: PLR2004
        raise Refused(400, f"limit is a number from 1 to {_MOST_CALLS}, not {text[:40]!a}")
    return int(text)


def _json(value: object, *, indent: int | None = None) -> Response:
    body = _json_bytes(value) if indent is None else json.dumps(value, indent=indent).encode()
    return Response(fields={"Content-Type": "application/json"}, body=body + b"\n")


def _json_bytes(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
