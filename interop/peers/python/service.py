"""What all Python servers do, whatever their library: the test service and its call records."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Protocol

from google.protobuf.message import Message

from interop.peers.generated import test_pb2
from interop.peers.python.messages import (
    CALL_ID_KEY,
    ECHO_INITIAL_KEY,
    ECHO_TRAILING_KEY,
    Metadata,
    Method,
    body,
    describe,
    metadata_entries,
    methods,
)

#: Some libraries show a cancelled request stream as one that has ended. A call with this key is one that the
#: client will not end by itself, so its handler waits to be told of the cancellation.
HOLD_KEY = "x-interop-hold"
HOLD_SECONDS = 30.0
SERVED = {
    name: method
    for name, method in {**methods("TestService"), **methods("RecordService")}.items()
    if name != "UnimplementedCall"
}


class Refused(Exception):
    """The handler ends the call with a status that is not OK."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


class ServerCall(Protocol):
    """One call as its library's adapter shows it."""

    metadata: Metadata
    authority: str
    has_deadline: bool

    def requests(self) -> AsyncIterator[Message]:
        """The request messages."""
        ...

    async def send_headers(self, metadata: Metadata, *, gzip: bool) -> None:
        """Send the initial metadata now; with `gzip` the responses may be compressed."""
        ...

    def set_trailers(self, metadata: Metadata) -> None:
        """Set the trailing metadata."""
        ...

    def compress_next(self, on: bool) -> None:
        """Whether the next response of a call with gzip is to be compressed."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait, or raise when the call is cancelled before."""
        ...

    def on_end(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the call is over, in whatever way."""
        ...


class CallLog:
    """What the server saw of every call that had a call id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: defaultdict[str, list[test_pb2.CallRecord]] = defaultdict(list)

    def begin(self, method: Method, call: ServerCall) -> test_pb2.CallRecord:
        """Start the record of a call; it is cancelled if it is over before the handler is."""
        record = test_pb2.CallRecord(
            method=method.path, authority=call.authority, has_deadline=call.has_deadline, ended="running"
        )
        for key, value in metadata_entries(call.metadata):
            record.metadata.add(key=key, value=value)
        for call_id in (value for key, value in call.metadata if key == CALL_ID_KEY):
            with self._lock:
                self._records[str(call_id)].append(record)

        def over() -> None:
            if record.ended == "running":
                record.ended = "cancelled"

        call.on_end(over)
        return record

    def groups(self, call_id: str) -> test_pb2.CallRecords:
        """The records of one call id, equal ones counted."""
        with self._lock:
            counts = Counter(
                record.SerializeToString(deterministic=True) for record in self._records.get(call_id, ())
            )
        answer = test_pb2.CallRecords()
        for serialized, count in sorted(counts.items()):
            answer.groups.add(record=test_pb2.CallRecord.FromString(serialized), count=count)
        return answer


class Service:
    """The handlers, each an asynchronous generator of responses."""

    def __init__(self) -> None:
        self._log = CallLog()

    async def handle(self, method: Method, call: ServerCall) -> AsyncGenerator[Message, None]:
        """Handle one call; raises `Refused` where the call has to end with a status."""
        if method.name == "GetCallRecords":
            async for query in call.requests():
                assert isinstance(query, test_pb2.CallId)
                yield self._log.groups(query.id)
            return
        record = self._log.begin(method, call)
        call.set_trailers([(key, value) for key, value in call.metadata if key == ECHO_TRAILING_KEY])
        aggregated = 0
        try:
            if method.client_streaming:
                await call.send_headers(_echo_initial(call), gzip=False)
            async for request in call.requests():
                seen = describe(request)
                record.messages.add(size=seen["size"], sha256=seen["sha256"])
                aggregated += seen["size"]
                if isinstance(request, test_pb2.Empty):
                    yield test_pb2.Empty()
                elif isinstance(request, test_pb2.SimpleRequest):
                    _refuse_if_asked(request.response_status)
                    await call.send_headers(_echo_initial(call), gzip=request.response_compressed.value)
                    yield test_pb2.SimpleResponse(payload=_payload(call, request.response_size))
                elif isinstance(request, test_pb2.StreamingOutputCallRequest):
                    _refuse_if_asked(request.response_status)
                    if not method.client_streaming:
                        gzip = any(parameters.compressed.value for parameters in request.response_parameters)
                        await call.send_headers(_echo_initial(call), gzip=gzip)
                    for parameters in request.response_parameters:
                        await call.sleep(parameters.interval_us / 1e6)
                        call.compress_next(parameters.compressed.value)
                        yield test_pb2.StreamingOutputCallResponse(payload=_payload(call, parameters.size))
            if any(key == HOLD_KEY for key, _ in call.metadata):
                await call.sleep(HOLD_SECONDS)
            if method.name == "StreamingInputCall":
                yield test_pb2.StreamingInputCallResponse(aggregated_payload_size=aggregated)
        except Refused:
            record.ended = "finished"
            raise
        record.ended = "finished"


def announce(port: int, cannot: Mapping[str, str]) -> None:
    """Tell the runner which cases this server cannot do, and where it listens."""
    for case, reason in cannot.items():
        print(f"cannot {case}: {reason}")
    print(f"listening on 127.0.0.1:{port}", flush=True)


def _echo_initial(call: ServerCall) -> Metadata:
    return [(key, value) for key, value in call.metadata if key == ECHO_INITIAL_KEY]


def _payload(call: ServerCall, size: int) -> test_pb2.Payload:
    # The interop suite's own clients, whose calls have no id, want zeros.
    has_id = any(key == CALL_ID_KEY for key, _ in call.metadata)
    return test_pb2.Payload(body=body(size) if has_id else bytes(size))


def _refuse_if_asked(status: test_pb2.EchoStatus) -> None:
    if status.code:
        raise Refused(status.code, status.message)
