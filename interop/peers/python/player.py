"""What all Python clients do, whatever their library: play the calls of cases.json and tell what they saw."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import trio
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message

from interop.peers.cases import CASES
from interop.peers.generated import test_pb2
from interop.peers.python.messages import (
    CALL_ID_KEY,
    Metadata,
    Method,
    body,
    describe,
    metadata_entries,
    methods,
    run_blocking,
)
from interop.peers.python.tls import Tls, add_tls_options, tls_of

METHODS = {service: methods(service) for service in ("TestService", "UnimplementedService")}
GET_RECORDS = methods("RecordService")["GetCallRecords"]
#: A case that takes longer than this hangs.
CASE_SECONDS = 120.0
#: How often, and in which intervals, the server is asked whether a call has begun or ended.
POLLS = 100
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class End:
    """How a call ended."""

    status: str
    message: str | None
    trailing: Metadata


class Call(Protocol):
    """One call as its library's adapter shows it."""

    async def send(self, message: Message) -> None:
        """Send one message of a request stream."""
        ...

    async def half_close(self) -> None:
        """End the request stream."""
        ...

    async def headers(self) -> Metadata | None:
        """Wait for the initial metadata; None where the library cannot tell."""
        ...

    async def recv(self) -> Message | None:
        """The next response; None when there are no more, for whatever reason."""
        ...

    async def cancel(self) -> None:
        """Cancel the call."""
        ...

    async def end(self) -> End:
        """Wait for the status."""
        ...


class Client(Protocol):
    """A channel as its library's adapter shows it."""

    async def start(
        self, method: Method, request: Message | None, metadata: Metadata, timeout: float | None, gzip: bool
    ) -> Call:
        """Start a call; `request` is the message of a method without a request stream."""
        ...

    async def gather(self, coroutines: list[Coroutine[Any, Any, Any]]) -> list[Any]:
        """Run all at once."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class AsyncioClient:
    """What the asyncio libraries have in common."""

    async def gather(self, coroutines: list[Coroutine[Any, Any, Any]]) -> list[Any]:
        return await asyncio.gather(*coroutines)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def counted(outcomes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Equal outcomes once, with their number."""
    counts = Counter(json.dumps(outcome, sort_keys=True) for outcome in outcomes)
    return [{"count": count, **json.loads(text)} for text, count in sorted(counts.items())]


def message_of(kind: type[Message], spec: Mapping[str, Any]) -> Message:
    """A request as cases.json writes it: the fields of the .proto, and `payload_size`."""
    fields = dict(spec)
    size = fields.pop("payload_size", None)
    message: Any = ParseDict(fields, kind())
    if size is not None:
        message.payload.body = body(size)
    return message  # type: ignore[no-any-return]


def metadata_of(spec: list[list[Any]]) -> Metadata:
    """Metadata as cases.json writes it: text, {"hex": ...} for bytes, {"size": N} for N letters."""
    result: Metadata = []
    for key, value in spec:
        if isinstance(value, str):
            result.append((key, value))
        else:
            result.append((key, bytes.fromhex(value["hex"]) if "hex" in value else "x" * value["size"]))
    return result


class Player:
    """Plays cases on one client."""

    def __init__(self, client: Client, run_id: str) -> None:
        self._client = client
        self._run_id = run_id

    async def play(self, case: str) -> list[dict[str, Any]]:
        """The outcome of every call of the case."""
        outcomes = []
        for number, spec in enumerate(CASES[case]):
            call_id = f"{self._run_id}/{case}/{number}"
            repeat = spec.get("repeat", 1)
            calls = await self._client.gather([self._call(spec, call_id) for _ in range(repeat)])
            (outcome, *others) = counted(calls)
            outcome["server"] = await self._records(call_id, lambda records: "running" not in records)
            if others:
                outcome["others"] = others
            outcomes.append(outcome)
        return outcomes

    async def _call(self, spec: dict[str, Any], call_id: str) -> dict[str, Any]:
        method = METHODS[spec.get("service", "TestService")][spec["method"]]
        metadata: Metadata = [(CALL_ID_KEY, call_id), *metadata_of(spec.get("metadata", []))]
        request = (
            None if method.client_streaming else message_of(method.request_type, spec.get("request", {}))
        )
        call = await self._client.start(
            method, request, metadata, spec.get("timeout"), bool(spec.get("gzip"))
        )
        messages: list[dict[str, Any]] = []
        events: list[str] = []
        cancelled = False
        for step in spec.get("steps", []):
            events.append(step if isinstance(step, str) else "send")
            if step == "headers":
                await call.headers()
            elif step == "recv":
                message = await call.recv()
                if message is None:
                    events[-1] = "recv nothing"
                else:
                    messages.append(describe(message))
            elif step == "wait_begun":
                await self._records(call_id, bool)
            elif step == "cancel":
                cancelled = True
                await call.cancel()
            else:
                await call.send(message_of(method.request_type, step["send"]))
        if method.client_streaming and not cancelled:
            await call.half_close()
        while not cancelled and (message := await call.recv()) is not None:
            events.append("recv")
            messages.append(describe(message))
        initial = None if cancelled else await call.headers()
        end = await call.end()
        events.append("end")
        return {
            "status": end.status,
            "message": end.message,
            "initial": grouped(initial),
            "trailing": grouped(end.trailing),
            "messages": messages,
            "events": events,
        }

    async def _records(self, call_id: str, enough: Callable[[list[str]], bool]) -> list[dict[str, Any]]:
        """What the server saw of the calls with this id, as soon as that is enough or the patience is over."""
        groups: list[dict[str, Any]] = []
        for _ in range(POLLS):
            call = await self._client.start(GET_RECORDS, test_pb2.CallId(id=call_id), [], None, False)
            answer = await call.recv()
            end = await call.end()
            if answer is None:
                return [{"no answer": [end.status, end.message]}]
            groups = [
                MessageToDict(
                    group, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
                )
                for group in answer.groups  # type: ignore[attr-defined]
            ]
            if enough([group["record"]["ended"] for group in groups]):
                break
            await self._client.sleep(POLL_SECONDS)
        return [
            {
                "count": group["count"],
                **group["record"],
                "metadata": grouped(
                    [(entry["key"], entry["value"]) for entry in group["record"]["metadata"]]
                ),
            }
            for group in groups
        ]


def grouped(metadata: Metadata | None) -> dict[str, list[str]] | None:
    """Metadata as a mapping from key to values."""
    if metadata is None:
        return None
    result: dict[str, list[str]] = {}
    for key, value in metadata_entries(metadata):
        result.setdefault(key, []).append(value)
    return result


def arguments() -> tuple[str, int, Tls | None, list[str], str]:
    """Host, port, TLS, cases and run id from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True, help="HOST:PORT")
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated")
    parser.add_argument("--run-id", default="run", help="makes the call ids of this run unique on the server")
    add_tls_options(parser)
    given = parser.parse_args()
    host, port = given.target.rsplit(":", 1)
    return host, int(port), tls_of(given), given.cases.split(","), given.run_id


def report(case: str, start: float, **outcome: Any) -> None:
    """Print one outcome."""
    print(json.dumps({"case": case, "seconds": round(time.monotonic() - start, 3), **outcome}), flush=True)


def run_sync(open_client: Callable[[str, int, Tls | None], Client], cannot: Mapping[str, str]) -> None:
    """Play the cases of the command line on a client whose awaits block."""
    host, port, tls, cases, run_id = arguments()
    player = Player(open_client(host, port, tls), run_id)

    def run(case: str, start: float) -> None:
        try:
            report(case, start, calls=run_blocking(player.play(case)))
        except Exception as error:
            report(case, start, failure=repr(error))

    for case in cases:
        start = time.monotonic()
        if case in cannot:
            report(case, start, cannot=cannot[case])
            continue
        thread = threading.Thread(target=run, args=(case, start), daemon=True)
        thread.start()
        thread.join(CASE_SECONDS)
        if thread.is_alive():
            report(case, start, failure="hangs")
            os._exit(1)  # a blocked call cannot be abandoned in this API


def run_async(open_client: Callable[[str, int, Tls | None], Client], cannot: Mapping[str, str]) -> None:
    """Play the cases of the command line on an asyncio client, which is opened on the running event loop."""

    async def run() -> None:
        host, port, tls, cases, run_id = arguments()
        player = Player(open_client(host, port, tls), run_id)
        for case in cases:
            start = time.monotonic()
            if case in cannot:
                report(case, start, cannot=cannot[case])
                continue
            try:
                report(case, start, calls=await asyncio.wait_for(player.play(case), CASE_SECONDS))
            except TimeoutError:
                report(case, start, failure="hangs")
            except Exception as error:
                report(case, start, failure=repr(error))

    asyncio.run(run())


def run_trio(
    open_client: Callable[[str, int, Tls | None], AbstractAsyncContextManager[Client]],
    cannot: Mapping[str, str],
) -> None:
    """Play the cases of the command line on a client for trio."""

    async def run() -> None:
        host, port, tls, cases, run_id = arguments()
        async with open_client(host, port, tls) as client:
            player = Player(client, run_id)
            for case in cases:
                start = time.monotonic()
                if case in cannot:
                    report(case, start, cannot=cannot[case])
                    continue
                try:
                    with trio.fail_after(CASE_SECONDS):
                        report(case, start, calls=await player.play(case))
                except trio.TooSlowError:
                    report(case, start, failure="hangs")
                except Exception as error:
                    report(case, start, failure=repr(error))

    trio.run(run)
