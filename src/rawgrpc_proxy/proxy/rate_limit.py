"""Rate limits: so many calls in a second, with bursts, for all calls together, each peer, or each value of a header.

A token bucket holds up to `burst` tokens and gets `rate` of them back each second; a call takes one. Callers decide
how many buckets there would have to be, so their number is bounded. A bucket that is full again says nothing that a new
one would not say, and gives its place to the next caller. While the oldest is not, callers without a bucket share a
thousand, by a hash that nobody outside can work out. So whoever makes up values of a header cannot have us forget what
others have used up, and comes into the shared buckets, which he would have to send a thousand times the rate to empty.

What it does not do: let calls wait, or know of other processes. The invariant: of calls with one bucket no more than
`burst` + `rate` × t are let through in any time t.
"""

import math
import os
import re
from collections import OrderedDict
from collections.abc import Awaitable
from functools import lru_cache
from hashlib import blake2b
from typing import Self

import attrs
import trio

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.custom_metadata import header_of
from rawgrpc_proxy.errors import ConfigError, RateLimited
from rawgrpc_proxy.net.networks import ip_of
from rawgrpc_proxy.proxy.director import Direction, StreamDirector

_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)/(s|m|h)")
_SECONDS = {"s": 1, "m": 60, "h": 3600}
MAX_KEYS = 10_000
"""Callers with a bucket of their own, at some 300 bytes each."""
_SHARED = 1024
_LONGEST_KEY = 64
_SITE_BYTES = 8
"""Of an IPv6 address: the /64 that one caller has."""
_REMEMBERED_PEERS = 1024


@attrs.frozen(kw_only=True)
class RateLimit:
    """What a rate limit is set to. `per` is "route" (all its calls together), "peer", or the key of a header."""

    per_s: float
    burst: float
    per: str = "route"
    max_keys: int = MAX_KEYS

    @classmethod
    def of(
        cls, rate: str, *, burst: float | None = None, per: str = "route", max_keys: int = MAX_KEYS
    ) -> Self:
        """A limit by a rate as people write it: "100/s", "30/m", "5/h". `burst`: by default what comes in a second.

        Raises `ConfigError`.
        """
        per_s = parse_rate(rate)
        burst = max(1.0, per_s) if burst is None else burst
        if not 1 <= burst < math.inf:
            raise ConfigError(f"a burst of {burst:g} lets no call through; it must be 1 or more")
        if max_keys < 1:
            raise ConfigError(f"max_keys is {max_keys}; it must be 1 or more")
        check_per(per)
        return cls(per_s=per_s, burst=burst, per=per.lower(), max_keys=max_keys)

    def shared_by(self, workers: int) -> Self:
        """One worker's part of a limit that is for all of them together."""
        return attrs.evolve(self, per_s=self.per_s / workers, burst=max(1.0, self.burst / workers))


def parse_rate(text: str) -> float:
    """Calls per second. Raises `ConfigError`."""
    match = _RATE.fullmatch(text)
    if match is None or not float(match[1]):
        raise ConfigError(f'{text!r} is no rate; write calls and a unit of time: "100/s", "30/m", "5/h"')
    return float(match[1]) / _SECONDS[match[2]]


_MEANT_FOR_PEERS = {"address", "caller", "client", "host", "ip", "remote"}
"""As headers nobody sends them: all calls would share one bucket."""


def check_per(per: str) -> None:
    """Raises `ConfigError` if it is neither "route" nor "peer" nor the key of a header."""
    if per.lower() in _MEANT_FOR_PEERS:
        raise ConfigError(f'{per!r} would be a header of that name; write "peer" for the caller\'s address')
    try:
        header_name(per)
    except ConfigError as error:
        raise ConfigError(f'write "route", "peer", or the key of a header: {error}') from None


def header_name(key: str) -> bytes:
    """A key of metadata as it is on the wire. Raises `ConfigError` for what is none."""
    try:
        return header_of(key, b"" if key.lower().endswith("-bin") else "")[0]
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None


class TokenBucket:
    """Up to `burst` tokens, of which `per_s` come back each second. Pure: the time is an argument, in seconds."""

    __slots__ = ("_at", "_tokens")

    def __init__(self, burst: float, now: float) -> None:
        self._tokens = burst
        self._at = now

    def take(self, limit: RateLimit, now: float) -> float:
        """Take a token. 0.0 if there was one; else how many seconds it takes until there is."""
        tokens = self._left(limit, now)
        self._at = now
        if tokens >= 1:
            self._tokens = tokens - 1
            return 0.0
        self._tokens = tokens
        return (1 - tokens) / limit.per_s

    def is_full(self, limit: RateLimit, now: float) -> bool:
        """Whether it is as good as a new one."""
        return self._left(limit, now) >= limit.burst

    def _left(self, limit: RateLimit, now: float) -> float:
        return min(limit.burst, self._tokens + max(0.0, now - self._at) * limit.per_s)


class Buckets:
    """A bucket for each key, as far as there may be so many. Pure."""

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit
        self._own: OrderedDict[bytes, TokenBucket] = OrderedDict()
        """In the order in which they have let a call through last."""
        self._shared: dict[int, TokenBucket] = {}
        self._salt = os.urandom(16)

    def __len__(self) -> int:
        return len(self._own)

    def take(self, key: bytes, now: float) -> float:
        """As `TokenBucket.take`, from the bucket of this key."""
        limit = self._limit
        if len(key) > _LONGEST_KEY:
            key = blake2b(key, digest_size=32).digest()
        bucket = self._own.get(key)
        if bucket is None:
            bucket = self._new(key, now)
            return bucket.take(limit, now)
        wait_s = bucket.take(limit, now)
        if not wait_s:
            self._own.move_to_end(key)
        return wait_s

    def _new(self, key: bytes, now: float) -> TokenBucket:
        limit = self._limit
        if len(self._own) >= limit.max_keys:
            oldest, bucket = next(iter(self._own.items()))
            if not bucket.is_full(limit, now):
                return self._one_of_the_shared(key, now)
            del self._own[oldest]
        bucket = self._own[key] = TokenBucket(limit.burst, now)
        return bucket

    def _one_of_the_shared(self, key: bytes, now: float) -> TokenBucket:
        digest = blake2b(key, digest_size=8, key=self._salt).digest()
        place = int.from_bytes(digest, "big") % _SHARED
        bucket = self._shared.get(place)
        if bucket is None:
            bucket = self._shared[place] = TokenBucket(self._limit.burst, now)
        return bucket


class RateLimiter:
    """Holds calls to a rate limit. `refused` are those that it has not let through."""

    __slots__ = ("_buckets", "_by_ip", "_header", "_key_of_peer", "limit", "refused")

    def __init__(self, limit: RateLimit) -> None:
        self.limit = limit
        self.refused = 0
        self._buckets = Buckets(limit)
        self._by_ip = limit.per == "peer"
        self._header = None if limit.per in {"route", "peer"} else limit.per.encode()
        self._key_of_peer = lru_cache(maxsize=_REMEMBERED_PEERS)(_key_of_peer)

    def check(self, context: CallContext, now: float) -> None:
        """Let the call through, or raise `RateLimited`. Calls without the header share one bucket."""
        key = b""
        if self._by_ip:
            key = self._key_of_peer(context.peer)
        elif self._header is not None:
            key = first_value(context, self._header) or b""
        wait_s = self._buckets.take(key, now)
        if wait_s:
            self.refused += 1
            wait_ms = math.ceil(wait_s * 1000)
            raise RateLimited(
                f"more calls than the rate limit of this {self.limit.per} allows; one more is allowed in {wait_ms} ms "
                "(rate_limit)",
                pushback_ms=wait_ms,
            )


def first_value(context: CallContext, name: bytes) -> bytes | None:
    """The first value that the call has under this name, as it is on the wire."""
    return next((value for key, value in context.metadata.raw if key == name), None)


def _key_of_peer(peer: str) -> bytes:
    """Whose bucket: an IPv4 address, a network /64 of IPv6; all peers on Unix sockets are one."""
    ip = ip_of(peer)
    return b"" if ip is None else ip.packed if ip.version == 4 else ip.packed[:_SITE_BYTES]  # noqa: PLR2004


def limit_rate(
    director: StreamDirector,
    rate: str,
    *,
    burst: float | None = None,
    per: str = "route",
    max_keys: int = MAX_KEYS,
) -> StreamDirector:
    """`director`, for no more calls than this rate ("100/s", "30/m", "5/h"); the others are RESOURCE_EXHAUSTED.

    `burst` calls may come at once: by default what the rate brings in a second, and at least one. `per` says whose
    calls are counted together: "route" for all that come here, "peer" for those of one IPv4 address, of one /64 of
    IPv6, or of all Unix sockets, or the key of a header for those with one value. Of `max_keys` of these at the same
    time each has a bucket of its own, some 300 bytes. The refused are told in `grpc-retry-pushback-ms` when to come
    again. For one process. Raises `ConfigError`.
    """
    limiter = RateLimiter(RateLimit.of(rate, burst=burst, per=per, max_keys=max_keys))

    def direct(context: CallContext, method: str) -> Direction | Awaitable[Direction]:
        limiter.check(context, trio.current_time())
        return director(context, method)

    return direct
