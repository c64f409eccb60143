"""Makes `call-log.md` from the fields and flags of the log: `python docs/make_call_log.py`. A test keeps it true."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from rawgrpc_proxy.observe.causes import CAUSES, ORIGINS
from rawgrpc_proxy.observe.fields import FIELDS
from rawgrpc_proxy.observe.flags import FLAGS

PAGE = Path(__file__).with_name("call-log.md")
INTRODUCTION = """\
# The call log

`rawgrpc-proxy serve` writes a line on standard error for each call when it has ended, and for whatever else is
worth telling. What an event has is on one line (of text, tracebacks are indented under it), whatever peers send.
Whoever reads too slowly, or not at all, never holds up a call: beyond 8 MiB lines are left out, and their number is
told in their place.

```text
2026-11-27T09:30:00.123Z /shop.Orders/Get 10.0.0.1:47 -> 10.0.0.7:50 OK (upstream) in 1 msg/12 B out 1 msg/345 B 12.3 ms
```

The table [`log`](settings.md#log) of the settings chooses which calls have a line, and what it says:

```toml
[log]
format = "json"
fields = ["start_time", "method", "route", "upstream", "status", "flags", "duration_ms", "trace_id"]
sample = 0.01 # of the calls that end with OK; all others are written
slow = "1s" # and these
start_after = "5s" # a line for calls that are open for so long, and another when they end
```

In text the chosen fields are `name=value`, behind the time (and the worker, as `w1`, if there are several); `-` is
what a call does not have, and what is no plain word is quoted as in JSON. In JSON they are members of an object,
behind `time`, `event` and `worker`; what a call does not have is `null`. A call that ends is the event `call`; one
that is still open after `start_after` is a line that begins with `open`, or the event `call_open`, with what is
known by then.

What no chosen field needs is not collected: messages are counted only for `request_messages` and
`response_messages`, and headers are looked at only for calls whose line is written. Without `fields` a line says
what it always did, which costs the least.

"""
ORIGIN = """
## Who made the status

`origin` says who has made the status that the caller got. Without `fields` a line has it in brackets, and behind it
what the status comes of: `CANCELLED (reset: RST_STREAM CANCEL)`.

"""
CAUSE = """
`cause` is the frame or the limit that it comes of; a status that an upstream, a director or a method has sent because
it wished to has none. Peers cannot make up others, so both are labels of `rawgrpc_proxy_calls_failed_total`; a
director may, with `RpcError(..., origin=, cause=)`.

"""
BETWEEN = """
## Flags

Why the proxy has ended a call, in Envoy's letters. A call that its upstream has ended with a status of its own has
none, nor has one that a director refuses; `origin` says who it was.

"""


def page() -> str:
    """The whole page."""
    whose = [ORIGIN, *_table("origin", ORIGINS), CAUSE, *_table("cause", CAUSES)]
    return INTRODUCTION + "".join([*_fields(), *whose, BETWEEN, *_table("flag", FLAGS)])


def _fields() -> Iterator[str]:
    yield "## Fields\n\n| field | | in Envoy |\n|---|---|---|\n"
    for name, field in FIELDS.items():
        yield f"| `{name}` | {field.meaning} | {f'`{field.envoy}`' if field.envoy else ''} |\n"


def _table(what: str, meanings: Mapping[str, str]) -> Iterator[str]:
    yield f"| {what} | |\n|---|---|\n"
    for word, meaning in meanings.items():
        yield f"| `{word}` | {meaning} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
