"""`ProxyInThread`: a proxy for tests that are no trio programs, in a thread of its own.

    with ProxyInThread("127.0.0.1:50051") as proxy:
        channel = grpc.insecure_channel(proxy.target)
        ...
        [call] = proxy.wait_for(method="/shop.Orders/Get", status="OK")
        assert call.metadata["x-user"] == "bob"

What it does not do: collect calls (`seen_calls.py`), or run threads (`loop_thread.py`). Any thread may use it.
"""

import math
import ssl
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self

import trio

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.cluster.cluster import Cluster
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.custom_metadata import Value, headers_of
from rawgrpc_proxy.discovery.endpoint_address import EndpointAddress
from rawgrpc_proxy.discovery.source import Source
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.grpc.codec import Codec, codec, codec_with_parent, identity_codec
from rawgrpc_proxy.grpc.path import path_problem
from rawgrpc_proxy.lab.faults import Faults, with_faults
from rawgrpc_proxy.lab.taps import several_taps
from rawgrpc_proxy.net.tapped import Tap
from rawgrpc_proxy.proxy.director import StreamDirector
from rawgrpc_proxy.proxy.patterns import PatternTable
from rawgrpc_proxy.proxy.transparent import transparent_handler
from rawgrpc_proxy.server.server import Server
from rawgrpc_proxy.testing.loop_thread import LoopThread
from rawgrpc_proxy.testing.seen_calls import Keeps, SeenCall, SeenCalls, StatusLike, status_of
from rawgrpc_proxy.testing.stubs import CustomMetadata, Stub, Stubs
from rawgrpc_proxy.upstream.pool import Pool
from rawgrpc_proxy.upstream.target import Target

_WAIT_S = 1.0
"""Ctrl-C that comes in the moment before a wait begins is heard at its end: none is longer than this."""
running: "weakref.WeakSet[ProxyInThread]" = weakref.WeakSet()
"""Those that run, for whoever tells of failed tests."""


class Removable:
    """Something that was added while the proxy runs: `remove()` it, or use it as `with ...:`."""

    def __init__(self, remove: Callable[[], None]) -> None:
        self._remove = remove

    def remove(self) -> None:
        """Take it away; nothing happens the second time."""
        self._remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class ProxyInThread:
    """A proxy that runs in a thread, from the beginning of a `with` block to its end.

    `upstream` is where calls go: an address (`HOST:PORT` or `unix:PATH`), several, or a `Source`, which then are a
    `Cluster` with the options `cluster`; None: nowhere, for tests that `answer` themselves. A `director` of your own
    goes instead: a function that gets the proxy's `Pool`, and answers the director; both run in the proxy's thread.

    It listens on a free port of 127.0.0.1, or where `listen` says: `proxy.target` is the address for clients. `tls` is
    the context for callers, `upstream_tls` that for upstreams (both need ALPN "h2"). `taps` see all connections beside
    the proxy's own, in its thread: a `Recorder`, a linter. `faults` are there from the beginning, and have a seed;
    more may be added to `proxy.faults`. `keeps` says how much is remembered.

    Entering raises what is wrong, `ConfigError` as a rule. Leaving ends all calls at once, within ten seconds whatever
    happens, and raises `RuntimeError` if the thread has crashed. While a test blocks its own event loop, in `wait_for`,
    its client cannot go on: call that in another thread then (`await asyncio.to_thread(proxy.wait_for, ...)`).
    """

    def __init__(  # noqa: PLR0913  # all that one may want of it, each with a default
        self,
        upstream: str | Iterable[str | EndpointAddress] | Source | None = None,
        *,
        director: Callable[[Pool], StreamDirector] | None = None,
        cluster: Mapping[str, Any] | None = None,
        listen: str = "127.0.0.1:0",
        tls: ssl.SSLContext | None = None,
        upstream_tls: ssl.SSLContext | None = None,
        settings: Http2Settings | None = None,
        taps: Iterable[Tap] = (),
        faults: Faults | None = None,
        keeps: Keeps | None = None,
    ) -> None:
        if upstream is not None and director is not None:
            raise ConfigError("a director says itself where calls go: give one of upstream and director")
        self._upstream = upstream
        self._director = director
        self._cluster = cluster
        self._listen = listen
        self._tls, self._upstream_tls = tls, upstream_tls
        self._settings = settings
        self.faults = Faults() if faults is None else faults
        """What goes wrong on purpose; rules may come and go while calls do: `with proxy.faults.add(Fault(...)):`."""
        self._seen = SeenCalls(keeps)
        self._tap = several_taps(self._seen, *taps)
        self._codec = _codec()
        self._stubs: Stubs | None = None
        self._target = ""
        self._loop = LoopThread("the test's proxy", self._over)

    def __enter__(self) -> Self:
        self._target = self._loop.start(self._run)
        running.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        running.discard(self)
        try:
            self._loop.stop()
        except RuntimeError as crash:
            if error is None:
                raise
            # What the block has raised may well come of it; both are told.
            error.add_note(str(crash))

    def __repr__(self) -> str:
        return f"<ProxyInThread {self._target or 'that has not begun'}>"

    @property
    def target(self) -> str:
        """Where clients connect to: "127.0.0.1:PORT"."""
        if not self._target:
            raise RuntimeError("the proxy does not run yet: use it inside `with ... as proxy:`")
        return self._target

    # ----------------------------------------------------------------- what was seen

    @property
    def calls(self) -> tuple[SeenCall, ...]:
        """The calls so far, in the order in which they began. When a client has its status, the call has it here."""
        self._loop.check_process()
        return self._seen.all()

    def wait_for(
        self,
        *,
        method: str = "/*",
        status: StatusLike | None = None,
        count: int = 1,
        timeout_s: float = 5.0,
        ended: bool = True,
    ) -> tuple[SeenCall, ...]:
        """Wait until there are `count` calls of this method with this status, and answer all that there are.

        `method` is "/pkg.Service/Method", "/pkg.Service/*", or all. Without `ended` calls that are open count, too.
        Raises `AssertionError` after `timeout_s` seconds, with what was seen instead; `ConfigError` for what is none.
        """
        self._loop.check_process()
        methods = PatternTable([(method, True)])
        wanted = None if status is None else status_of(status)

        def matches(of_call: str, outcome: Status | None) -> bool:
            if outcome is None and ended:
                return False
            return (wanted is None or outcome is wanted) and bool(methods.find_all(of_call))

        deadline = time.monotonic() + timeout_s
        with self._seen.changed:
            while self._seen.count(matches) < count:
                self._loop.check()
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(self._instead(method, wanted, count, timeout_s, matches))
                self._seen.changed.wait(min(left, _WAIT_S))
            return self._seen.find(matches)

    def clear(self) -> None:
        """Forget the calls so far; those that are open, too."""
        self._loop.check_process()
        self._seen.clear()

    def in_words(self, *, since: float = -math.inf) -> str:
        """What was seen, a line for each call, and for what went wrong beside; `since` is of `time.monotonic`."""
        self._loop.check_process()
        return self._seen.in_words(since=since)

    # ------------------------------------------------------------------ answers

    def answer(
        self,
        method: str,
        messages: Iterable[object] = (),
        *,
        status: StatusLike = Status.OK,
        message: str = "",
        metadata: CustomMetadata = (),
        trailers: CustomMetadata = (),
        delay_s: float = 0.0,
        times: int | None = None,
    ) -> Removable:
        """Answer calls of `method` here: these messages (bytes or protobuf), then this status with its `message`.

        The answer comes behind the whole request, and `delay_s` seconds. `metadata` go in front, `trailers` with the
        status. With `times` it is used up after so many calls. What was added last goes first, so one more answer, in a
        `with`, takes the place of another for a while:

            proxy.answer("/shop.Orders/Get", [b"..."])
            proxy.answer("/shop.Orders/Get", status="UNAVAILABLE", times=2)     # twice, and then the first

        Raises `ConfigError` for what is no method, status or list of messages, and what metadata and codec raise for
        what cannot be sent.
        """
        if path_problem(method.encode()) is not None:
            raise ConfigError(f"{method!r} is no gRPC method; write /package.Service/Method")
        if isinstance(messages, bytes | str):
            raise ConfigError(f"messages are a list of them: write [{messages!r}]")
        outcome = status_of(status)
        if outcome is Status.OK and message:
            raise ConfigError("a message goes with a status that is not OK")
        stub = Stub(
            method=method,
            messages=[self._codec.marshal(each) for each in messages],
            status=outcome,
            message=message,
            metadata=_pairs(metadata),
            trailers=_pairs(trailers),
            delay_s=delay_s,
            left=times,
        )
        self._loop.ask(lambda: self._known_stubs.add(stub))

        def remove() -> None:
            if self._loop.is_running:
                self._loop.ask(lambda: self._known_stubs.remove(stub))

        return Removable(remove)

    @property
    def _known_stubs(self) -> Stubs:
        assert self._stubs is not None
        return self._stubs

    # --------------------------------------------------------------- in the thread

    async def _run(self, started: Callable[[str], None]) -> None:
        seen = self._seen
        async with AsyncExitStack() as stack:
            wrap = with_faults(self.faults)
            pool = Pool(settings=self._settings, observer=seen.pool_observer, tap=self._tap, wrap=wrap)
            await stack.enter_async_context(pool)
            director = await self._director_of(pool, stack)
            forward = None if director is None else transparent_handler(director)
            self._stubs = Stubs(codec_with_parent(identity_codec()), forward)
            server = Server(
                unknown_service_handler=self._stubs.handle,
                settings=self._settings,
                observer=seen.observer,
                tap=self._tap,
                wrap=wrap,
            )
            async with trio.open_nursery() as nursery:
                serve = partial(server.serve, self._listen, ssl_context=self._tls)
                started(await nursery.start(serve))

    async def _director_of(self, pool: Pool, stack: AsyncExitStack) -> StreamDirector | None:
        upstream = self._upstream
        if upstream is None:
            return None if self._director is None else self._director(pool)
        where: Target | Cluster
        if isinstance(upstream, str) and self._cluster is None:
            where = pool.target(upstream, ssl_context=self._upstream_tls)
        else:
            endpoints = [upstream] if isinstance(upstream, str) else upstream
            where = Cluster(
                endpoints,
                **{
                    "pool": pool,
                    "name": "upstream",
                    "ssl_context": self._upstream_tls,
                    **(self._cluster or {}),
                },
            )
            await stack.enter_async_context(where)

        def director(context: CallContext, _method: str) -> tuple[CallContext, Target | Cluster]:
            return context, where

        return director

    def _over(self) -> None:
        with self._seen.changed:
            self._seen.changed.notify_all()

    # ---------------------------------------------------------------------- words

    def _instead(
        self,
        method: str,
        status: Status | None,
        count: int,
        timeout_s: float,
        matches: Callable[[str, Status | None], bool],
    ) -> str:
        what = f"{count} call{'s' if count != 1 else ''} of {method}"
        if status is not None:
            what += f" with status {status.name}"
        found = self._seen.count(matches)
        seen = self.in_words() or "no call at all"
        return (
            f"{what} within {timeout_s:g} s: there {'is' if found == 1 else 'are'} {found}. Seen was:\n{seen}"
        )


def _codec() -> Codec:
    try:
        return codec()
    except ConfigError:  # without protobuf
        return codec_with_parent(identity_codec())


def _pairs(metadata: CustomMetadata) -> list[tuple[str, Value]]:
    """What can be sent, checked here, where it was written."""
    pairs = list(metadata.items() if isinstance(metadata, Mapping) else metadata)
    headers_of(pairs)
    return pairs
