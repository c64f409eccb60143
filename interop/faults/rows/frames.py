"""Backends that do with frames what no library does: the negative cases of gRPC's interop suite for HTTP/2, and more.

What the six cases are to end with is gRPC's word (doc/http2-interop-test-descriptions of its repository): calls that
are cut off are no success, and the others succeed. Beyond that the status is the one which gRPC's table for
RST_STREAM's codes has.
"""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from interop.faults.raw_backend import (
    CANCEL,
    INTERNAL_ERROR,
    NO_ERROR,
    REFUSED_STREAM,
    Link,
    RawBackend,
    Script,
    listening,
)
from interop.faults.row import Figures, Outcome, Row, Site
from interop.faults.world import Proxy, Result, Settings, play, proxying, until
from interop.shared.security import made_by_the_proxy

ECHO = {"method": "Echo", "size": 100, "timeout_s": 10}
#: gRPC's statuses for the codes of RST_STREAM.
STATUSES = {
    NO_ERROR: "INTERNAL",
    INTERNAL_ERROR: "INTERNAL",
    CANCEL: "CANCELLED",
    REFUSED_STREAM: "UNAVAILABLE",
}
CALLS_OF_MAX_STREAMS = 15
LONG = 100_000


@asynccontextmanager
async def between(
    site: Site, script: Script, *, early: bool = False, streams: int = 1000, **settings: str
) -> AsyncIterator[tuple[Proxy, RawBackend]]:
    """The proxy before a backend with this script."""
    backend = RawBackend(script, early, streams)
    async with (
        listening(backend.serve) as target,
        proxying(site, Settings([target], **settings)) as proxy,
    ):
        yield proxy, backend


async def _one(proxy: Proxy, call: Mapping[str, Any] = ECHO) -> Result:
    [result] = await play(proxy.target, [call])
    return result


# ------------------------------------------------------------------------------------------------ the six cases


async def _cut_off(site: Site, cut: Callable[[Link, int, int], Awaitable[None]]) -> Outcome:
    figures = Figures()
    for code, status in STATUSES.items():

        async def script(link: Link, stream_id: int, code: int = code) -> None:
            await cut(link, stream_id, code)

        async with between(site, script) as (proxy, _):
            result = await _one(proxy)
            figures.note(f"code {code}: {result.status}", result.status == status)
            if not await proxy.quiet():
                figures.note("its place was not given back", kept=False)
    return figures.outcome()


async def goaway(site: Site) -> Outcome:
    """GOAWAY behind the first answer."""

    async def script(link: Link, stream_id: int) -> None:
        if link.number == 0:
            await link.goaway(stream_id)
        await link.answer(stream_id)

    figures = Figures()
    async with between(site, script) as (proxy, backend):
        results = await play(proxy.target, [ECHO, {**ECHO, "after_s": 1.0}])
        figures.note(f"statuses {[each.status for each in results]}", _are(results, "OK"))
        streams = [len(link.requests()) for link in backend.links]
        figures.note(f"streams of each connection {streams}", streams == [1, 1])
    return figures.outcome()


async def rst_after_header(site: Site) -> Outcome:
    """RST_STREAM behind the response's headers."""

    async def cut(link: Link, stream_id: int, code: int) -> None:
        await link.headers(stream_id)
        await link.reset(stream_id, code)

    return await _cut_off(site, cut)


async def rst_during_data(site: Site) -> Outcome:
    """RST_STREAM in the middle of a message."""

    async def cut(link: Link, stream_id: int, code: int) -> None:
        await link.headers(stream_id)
        await link.data(stream_id, 1000, sent=500)
        await link.reset(stream_id, code)

    return await _cut_off(site, cut)


async def rst_after_data(site: Site) -> Outcome:
    """RST_STREAM behind a whole message, instead of trailers."""

    async def cut(link: Link, stream_id: int, code: int) -> None:
        await link.headers(stream_id)
        await link.data(stream_id, 1000)
        await link.reset(stream_id, code)

    return await _cut_off(site, cut)


async def ping(site: Site) -> Outcome:
    """PINGs between all frames of a response."""

    async def script(link: Link, stream_id: int) -> None:
        await link.ping()
        await link.headers(stream_id)
        await link.ping()
        await link.data(stream_id, 1000)
        await link.ping()
        await link.trailers(stream_id)
        await link.ping()

    figures = Figures()
    async with between(site, script) as (proxy, backend):
        result = await _one(proxy)
        figures.note(result.status, result.status == "OK" and result.size == 1000)
        [link] = backend.links
        await until(lambda: link.pongs() == 4, 5)
        figures.note(f"{link.pongs()} of 4 PINGs answered", link.pongs() == 4)
    return figures.outcome()


async def max_streams(site: Site) -> Outcome:
    """One stream at a time."""

    async def script(link: Link, stream_id: int) -> None:
        await trio.sleep(0.05)
        await link.answer(stream_id)

    figures = Figures()
    async with between(site, script, streams=1, pool="size = 3") as (proxy, backend):
        results = await play(proxy.target, [ECHO, *[{**ECHO, "after_s": 0.2}] * CALLS_OF_MAX_STREAMS])
        figures.note(f"{len(results)} calls OK", _are(results, "OK"))
        most = max(link.most_open for link in backend.links)
        figures.note(f"at most {most} stream on each of {len(backend.links)} connections", most == 1)
    return figures.outcome()


# ------------------------------------------------------------------------------------------------------- and more


async def end_then_no_error(site: Site) -> Outcome:
    """A whole response to half a request, and RST_STREAM(NO_ERROR) behind it (RFC 9113 §8.1)."""
    figures = Figures()
    # Nothing is being sent when the response comes: grpcio's asyncio client says INTERNAL then, by chance.
    upload = {"method": "Upload", "messages": 2, "size": 1000, "pause_s": 3, "timeout_s": 10}

    async def whole(link: Link, stream_id: int) -> None:
        await link.answer(stream_id)
        await link.reset(stream_id, NO_ERROR)

    async def trailers_only(link: Link, stream_id: int) -> None:
        await link.headers(stream_id, ("grpc-status", "7"), ("grpc-message", "no"), end=True)
        await link.reset(stream_id, NO_ERROR)

    for script, status, size in ((whole, "OK", 100), (trailers_only, "PERMISSION_DENIED", 0)):
        async with between(site, script, early=True) as (proxy, _):
            result = await _one(proxy, upload)
            figures.note(
                f"{result.status} {result.details} with {result.size} bytes",
                (result.status, result.size) == (status, size),
            )
            figures.at_most("after", result.seconds, 1.0)
            figures.note("nothing is left", await proxy.quiet())
    return figures.outcome()


async def refused(site: Site) -> Outcome:
    """REFUSED_STREAM for the first try, and for all."""
    figures = Figures()
    seen = 0

    async def once(link: Link, stream_id: int) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            await link.reset(stream_id, REFUSED_STREAM)
        else:
            await link.answer(stream_id)

    async def always(link: Link, stream_id: int) -> None:
        nonlocal seen
        seen += 1
        await link.reset(stream_id, REFUSED_STREAM)

    for script, name, status in ((once, "once", "OK"), (always, "always", "UNAVAILABLE")):
        seen = 0
        async with between(site, script) as (proxy, _):
            result = await _one(proxy)
            figures.note(f"{name}: {result.status} after {seen} tries", (result.status, seen) == (status, 2))
    return figures.outcome()


async def no_more_streams(site: Site) -> Outcome:
    """MAX_CONCURRENT_STREAMS goes to 0 below a running stream, and back to 100."""
    figures = Figures()
    go_on = trio.Event()

    async def script(link: Link, stream_id: int) -> None:
        if stream_id > 1 or link.number:
            await link.answer(stream_id)
            return
        await link.headers(stream_id)
        await link.data(stream_id, 100)
        await link.allow(0)
        await trio.sleep(1.0)
        await link.data(stream_id, 100)
        await link.trailers(stream_id)
        await trio.sleep(0.5)
        await link.allow(100)
        go_on.set()

    async with between(site, script, pool="size = 1\nconnect_wait = 5") as (proxy, backend):
        running = {"method": "Stream", "request": "x", "streams": True, "timeout_s": 10}
        results = await play(proxy.target, [running, *[{**ECHO, "after_s": 0.5}] * 5])
        first, *others = results
        figures.note(
            f"the running stream: {first.status}, {first.messages} messages",
            (first.status, first.messages) == ("OK", 2),
        )
        figures.note(f"5 new ones: {sorted({each.status for each in others})}", _are(others, "OK"))
        waited = min(each.seconds for each in others)
        opened = len(backend.links)
        figures.note(f"waited {waited:.1f} s, {opened} connections", waited > 0.7 or opened > 1)
    return figures.outcome()


async def too_long(site: Site) -> Outcome:
    """Headers, or trailers, of 100 KB in one of the calls of a connection."""
    figures = Figures()
    long = ("x-long", "x" * LONG)

    async def headers(link: Link, stream_id: int) -> None:
        if stream_id == 3:
            await link.headers(stream_id, long)
        await trio.sleep(0.3)
        await link.answer(stream_id)

    async def trailers(link: Link, stream_id: int) -> None:
        await trio.sleep(0.3)
        if stream_id == 3:
            await link.headers(stream_id)
            await link.data(stream_id, 100)
            await link.trailers(stream_id, long, status=2)
        else:
            await link.answer(stream_id)

    for script, status in ((headers, "RESOURCE_EXHAUSTED"), (trailers, "UNKNOWN")):
        async with between(site, script) as (proxy, backend):
            results = await play(proxy.target, [ECHO] * 5)
            statuses = sorted(each.status for each in results)
            figures.note(
                f"long {script.__name__}: {statuses.count('OK')} OK, {statuses[-1]}",
                statuses == ["OK"] * 4 + [status],
            )
            figures.note("on one connection", len(backend.links) == 1)
    return figures.outcome()


async def not_http2(site: Site) -> Outcome:
    """What answers is no HTTP/2, no ALPN, or wants a certificate."""
    figures = Figures()
    dials = 0

    async def http1(stream: trio.abc.Stream) -> None:
        nonlocal dials
        dials += 1
        await stream.receive_some(1000)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        await stream.aclose()

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        made_by_the_proxy(folder)

        def context(alpn: str, *, mutual: bool) -> ssl.SSLContext:
            made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            made.load_cert_chain(folder / "server.pem", folder / "server.key")
            made.set_alpn_protocols([alpn])
            if mutual:
                made.verify_mode = ssl.CERT_REQUIRED
                made.load_verify_locations(folder / "ca.pem")
            return made

        def over_tls(made: ssl.SSLContext) -> Callable[[trio.SocketStream], Awaitable[None]]:
            async def serve(stream: trio.SocketStream) -> None:
                nonlocal dials
                dials += 1
                secure = trio.SSLStream(stream, made, server_side=True)
                try:
                    await secure.do_handshake()
                    while await secure.receive_some(1000):
                        pass
                except (trio.BrokenResourceError, ssl.SSLError):
                    pass
                await trio.aclose_forcefully(secure)

            return serve

        tls = f'tls = {{ ca = "{folder}/ca.pem" }}'
        cases: Sequence[tuple[str, Callable[[trio.SocketStream], Awaitable[None]], str]] = (
            ("HTTP/1.1", http1, ""),
            ("ALPN http/1.1", over_tls(context("http/1.1", mutual=False)), tls),
            ("mTLS without a certificate", over_tls(context("h2", mutual=True)), tls),
        )
        for name, serve, cluster in cases:
            dials = 0
            async with (
                listening(serve) as target,
                proxying(site, Settings([target], cluster)) as proxy,
            ):
                results = await play(proxy.target, [{**ECHO, "after_s": 0.02 * n} for n in range(100)])
                statuses = sorted({each.status for each in results})
                causes = sum("upstream_error" in line for line in proxy.said)
                figures.note(f"{name}: {statuses}", statuses == ["UNAVAILABLE"])
                figures.note(f"{dials} dials for 100 calls", dials <= 8)
                figures.note("cause in the log", causes > 0)
    return figures.outcome()


def _are(results: Sequence[Result], status: str) -> bool:
    return all(each.status == status for each in results)


_CUT_OFF = "no success, but the status of the code: INTERNAL for 0 and 2, CANCELLED for 8, UNAVAILABLE for 7"
ROWS = [
    Row("goaway", "GOAWAY during a call, another call 1 s later", "both succeed", 4, goaway, waits=True),
    Row("rst_after_header", "RST_STREAM after the headers", _CUT_OFF, 6, rst_after_header, waits=True),
    Row("rst_during_data", "RST_STREAM in a message", _CUT_OFF, 6, rst_during_data, waits=True),
    Row(
        "rst_after_data", "RST_STREAM after the message, no trailers", _CUT_OFF, 6, rst_after_data, waits=True
    ),
    Row(
        "ping",
        "PING between all frames of a response",
        "the call succeeds, all are answered",
        3,
        ping,
        waits=True,
    ),
    Row(
        "max_streams",
        f"MAX_CONCURRENT_STREAMS is 1, {CALLS_OF_MAX_STREAMS} calls at once",
        "all succeed, one at a time on a connection",
        4,
        max_streams,
        waits=True,
    ),
    Row(
        "early_response",
        "HEADERS … END_STREAM to half an upload, then RST_STREAM(NO_ERROR)",
        "the response is delivered intact at once, and the upload ends",
        5,
        end_then_no_error,
        waits=True,
    ),
    Row(
        "refused",
        "REFUSED_STREAM, once, and always",
        "one transparent retry, then UNAVAILABLE",
        4,
        refused,
        waits=True,
    ),
    Row(
        "no_streams",
        "MAX_CONCURRENT_STREAMS goes to 0 below a stream, and back",
        "the stream goes on; new ones wait, or have another connection",
        6,
        no_more_streams,
        waits=True,
    ),
    Row(
        "too_long",
        "headers, or trailers, of 100 KB",
        "headers: RESOURCE_EXHAUSTED; trailers: the status, without the rest; the others of the connection are OK",
        5,
        too_long,
        waits=True,
    ),
    Row(
        "not_http2",
        "the backend speaks HTTP/1.1, agrees on no h2, or wants a certificate",
        "UNAVAILABLE with the cause in the log; no storm of dials",
        12,
        not_http2,
        waits=True,
    ),
]
