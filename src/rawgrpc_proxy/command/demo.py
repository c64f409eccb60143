"""The demo: a small gRPC backend, the proxy in front of it, and a client whose calls go through and are checked.

It shows that an installation works, and what the proxy sees of a call; `--stay` leaves both running for other clients.
The backend answers any payload with the bytes it got, so neither side needs protobuf. It is no benchmark.
"""

import argparse
import math
import os
import signal
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Self, TextIO

import attrs
import trio

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.client.client import Client
from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.command.argument_types import ENGINE
from rawgrpc_proxy.command.certs import write_certificates
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.errors import RpcError
from rawgrpc_proxy.grpc.codec import identity_codec
from rawgrpc_proxy.grpc.health import SERVICE as HEALTH_SERVICE
from rawgrpc_proxy.grpc.health import ServingStatus, request_for
from rawgrpc_proxy.net.tls_files import listener_context, upstream_context
from rawgrpc_proxy.observe.call_log import CallLog
from rawgrpc_proxy.observe.record import CallRecord
from rawgrpc_proxy.observe.words import word
from rawgrpc_proxy.proxy.transparent import transparent_handler
from rawgrpc_proxy.server.server import Server
from rawgrpc_proxy.services.health import Health
from rawgrpc_proxy.services.methods import ServedCall, stream_stream, stream_unary, unary_stream, unary_unary
from rawgrpc_proxy.upstream.pool import Pool
from rawgrpc_proxy.upstream.target import Target

ECHO_SERVICE = "rawgrpc.demo.Echo"

_ANY_PORT = "127.0.0.1:0"
_CALL_TIMEOUT_S = 10.0
_REPEATS = 3

# Whatever the payload is, the answers are valid messages of the same type: protobuf reads two messages that follow each
# other as one, with the items of both in a repeated field.
_PROTO = """\
syntax = "proto3";
package rawgrpc.demo;
message Text { repeated string text = 1; }
service Echo {
  rpc Unary(Text) returns (Text);
  rpc ServerStream(Text) returns (stream Text);
  rpc ClientStream(stream Text) returns (Text);
  rpc Bidi(stream Text) returns (stream Text);
}
"""


def add_demo(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `demo`."""
    parser.description = (
        "Start a small built-in gRPC backend and the proxy in front of it on free loopback ports, make a call of each "
        "shape through them, and check the answers. The exit code is 0 if all is as expected, else 1."
    )
    parser.add_argument(
        "--stay",
        action="store_true",
        help="then leave both running, for other clients, until SIGINT or SIGTERM",
    )
    parser.add_argument(
        "--tls",
        action="store_true",
        help="all speak TLS, with throw-away certificates on both sides (pip install 'rawgrpc-proxy[certs]')",
    )
    parser.add_argument("--engine", default=Http2Settings().engine, **ENGINE)
    parser.set_defaults(command=_demo)


def _demo(options: argparse.Namespace) -> int:
    return run_demo(stay=options.stay, tls=options.tls, settings=Http2Settings(engine=options.engine))


# ----------------------------------------------------------------------- backend


def backend(settings: Http2Settings, observer: CallLog) -> Server:
    """The echo service in gRPC's four shapes, and health."""
    server = Server(codec=identity_codec(), settings=settings, observer=observer)
    server.add_method(f"/{ECHO_SERVICE}/Unary", unary_unary(_unary, bytes))
    server.add_method(f"/{ECHO_SERVICE}/ServerStream", unary_stream(_server_stream, bytes))
    server.add_method(f"/{ECHO_SERVICE}/ClientStream", stream_unary(_client_stream, bytes))
    server.add_method(f"/{ECHO_SERVICE}/Bidi", stream_stream(_bidi, bytes))
    health = Health()
    health.set(ECHO_SERVICE, ServingStatus.SERVING)
    for path, method in health.methods().items():
        server.add_method(path, method)
    return server


async def _unary(request: bytes, _call: ServedCall) -> bytes:
    return request


async def _server_stream(request: bytes, _call: ServedCall) -> AsyncIterator[bytes]:
    for _ in range(_REPEATS):
        yield request


async def _client_stream(requests: AsyncIterator[bytes], _call: ServedCall) -> bytes:
    return b"".join([request async for request in requests])


async def _bidi(requests: AsyncIterator[bytes], _call: ServedCall) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


# ------------------------------------------------------------------------ client


@attrs.frozen
class Trial:
    """A call to make, and what has to come back."""

    path: str
    requests: tuple[bytes, ...]
    replies: tuple[bytes, ...]
    lockstep: bool = False
    """Wait for a reply to each request before the next is sent."""


TRIALS = (
    Trial(f"/{ECHO_SERVICE}/Unary", (b"hello",), (b"hello",)),
    Trial(f"/{ECHO_SERVICE}/ServerStream", (b"hello",), (b"hello",) * _REPEATS),
    Trial(f"/{ECHO_SERVICE}/ClientStream", (b"one ", b"two ", b"three"), (b"one two three",)),
    Trial(
        f"/{ECHO_SERVICE}/Bidi",
        (b"ping 1", b"ping 2", b"ping 3"),
        (b"ping 1", b"ping 2", b"ping 3"),
        lockstep=True,
    ),
    # The answer is a HealthCheckResponse: field 1, SERVING.
    Trial(f"/{HEALTH_SERVICE}/Check", (request_for(ECHO_SERVICE),), (b"\x08\x01",)),
)


async def make_call(client: Client, trial: Trial) -> list[bytes]:
    """Make the call and answer what came back. Raises `RpcError` for any status but OK."""
    replies: list[bytes] = []
    async with client.stream_stream(trial.path) as call:
        if trial.lockstep:
            for request in trial.requests:
                await call.send(request)
                if (reply := await call.receive()) is None:
                    return replies
                replies.append(reply)
            await call.done_sending()
        else:
            await call.send_all(trial.requests)
        replies += [reply async for reply in call]
    return replies


# ------------------------------------------------------------------------- story


@attrs.frozen
class _Tls:
    """A pair for whoever serves and one for whoever calls, and their authority, in a folder that goes with the demo."""

    folder: Path
    server: ssl.SSLContext
    client: ssl.SSLContext

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Make them. Raises `ConfigError`."""
        write_certificates(folder)
        ca = str(folder / "ca.pem")
        server, client = (
            (str(folder / f"{name}.pem"), str(folder / f"{name}.key")) for name in ("server", "client")
        )
        return cls(
            folder,
            listener_context(*server, client_ca=ca),
            upstream_context(ca=ca, certificate=client[0], key=client[1]),
        )


def run_demo(
    *,
    stay: bool = False,
    tls: bool = False,
    settings: Http2Settings | None = None,
    trials: Sequence[Trial] = TRIALS,
) -> int:
    """Run the demo and answer the exit code: 0 if every call was answered as expected, else 1.

    With `stay` backend and proxy then run on, until SIGINT or SIGTERM comes. Without, a signal ends the demo early,
    with exit code 1. With `tls` all speak TLS, with certificates on both sides; raises `ConfigError` where none can be
    made.
    """
    with tempfile.TemporaryDirectory(prefix="rawgrpc-proxy-") as folder:
        made = _Tls.of(Path(folder) / "certs") if tls else None
        return trio.run(_run, trials, stay, settings or Http2Settings(), made)


class _Records(CallLog):
    """Hands records of calls to whoever waits for them; all else that happens is written to standard error."""

    def __init__(self) -> None:
        super().__init__()
        self._send, self._receive = trio.open_memory_channel[CallRecord](math.inf)

    def call_ended(self, record: CallRecord) -> None:
        self._send.send_nowait(record)

    async def next(self) -> CallRecord:
        """Wait for the next call that ends."""
        return await self._receive.receive()


async def _run(trials: Sequence[Trial], stay: bool, settings: Http2Settings, tls: _Tls | None) -> int:
    exit_code = 1
    server_tls, client_tls = (None, None) if tls is None else (tls.server, tls.client)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with (
            Pool(settings=settings) as upstreams,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(_cancel_on_signal, signals, nursery.cancel_scope)
            backend_address: str = await nursery.start(
                partial(backend(settings, _Records()).serve, _ANY_PORT, ssl_context=server_tls)
            )

            def director(context: CallContext, _method: str) -> tuple[CallContext, Target]:
                return context, upstreams.target(backend_address, ssl_context=client_tls)

            records = _Records()
            proxy = Server(
                unknown_service_handler=transparent_handler(director), settings=settings, observer=records
            )
            proxy_address: str = await nursery.start(partial(proxy.serve, _ANY_PORT, ssl_context=server_tls))
            screen = _Screen(sys.stdout, proxy_address, tls)
            screen.introduce(backend_address, settings.engine)
            failures = 0
            async with Client(
                proxy_address, ssl_context=client_tls, settings=settings, user_agent="rawgrpc-proxy-demo"
            ) as client:
                for trial in trials:
                    problem, record = await _try(trial, client, records)
                    screen.row(record, problem)
                    failures += bool(problem)
            screen.conclude(len(trials), failures)
            exit_code = 1 if failures else 0
            if stay:
                screen.invite()
                while True:
                    screen.row(await records.next())
            nursery.cancel_scope.cancel()
    return exit_code


async def _cancel_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel()


async def _try(trial: Trial, client: Client, records: _Records) -> tuple[str | None, CallRecord]:
    """Make the call. Answers what was not as expected, None if nothing, and what the proxy saw of the call."""
    problem = None
    with trio.move_on_after(_CALL_TIMEOUT_S) as timeout:
        try:
            replies = await make_call(client, trial)
            if replies != list(trial.replies):
                problem = f"the replies are {replies}, not {list(trial.replies)}"
        except RpcError as error:
            problem = str(error)
    if timeout.cancelled_caught:
        problem = f"no answer within {_CALL_TIMEOUT_S:g} s"
    with trio.move_on_after(_CALL_TIMEOUT_S):
        record = await records.next()
        if problem is None and (record.request_messages, record.response_messages) != (
            len(trial.requests),
            len(trial.replies),
        ):
            problem = "the proxy did not see the messages that the client sent and received"
        return problem, record
    return problem or "the call never came to the proxy", CallRecord(method=trial.path, peer="-")


# ------------------------------------------------------------------------ screen

_COLUMNS = "{:<30} {:>4} {:>8} {} {:>9}  {}"
_STATUS_WIDTH = 6


class _Screen:
    """Tells on a terminal, or in a file, what goes on. Colours and arrows only where they can be shown."""

    def __init__(self, file: TextIO, proxy_address: str, tls: "_Tls | None" = None) -> None:
        self._file = file
        self._tls = tls
        self._proxy = proxy_address
        self._colours = file.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._arrow = "→" if _can_show("→", file) else "->"

    def introduce(self, backend_address: str, engine: str) -> None:
        """Say what runs, and begin the table."""
        self._say(f"backend  {backend_address}  serves {ECHO_SERVICE} and {HEALTH_SERVICE}")
        self._say(f"proxy    {self._proxy}  forwards every call to the backend (HTTP/2 engine: {engine})")
        self._say("client   makes a call of each shape through the proxy, and checks the answers\n")
        if self._tls is not None:
            self._say("         All three speak TLS, and each has a certificate that the others check\n")
        path = f" {self._arrow} ".join(("client", "proxy", "backend"))
        head = _COLUMNS.format("call", "sent", "received", "status", "duration", path)
        self._say(self._coloured(head, "1"))

    def row(self, record: CallRecord, problem: str | None = None) -> None:
        """Show one call: messages, not bytes, as the proxy counted them."""
        good = record.status is Status.OK and problem is None
        name = record.status.name
        self._say(
            _COLUMNS.format(
                word(record.method.removeprefix("/")),
                record.request_messages,
                record.response_messages,
                self._coloured(name, "32" if good else "31") + " " * (_STATUS_WIDTH - len(name)),
                f"{record.duration_s * 1e3:.1f} ms",
                f" {self._arrow} ".join((record.peer, self._proxy, record.upstream or "nowhere")),
            )
        )
        if problem is not None:
            print(f"rawgrpc-proxy: {record.method}: {problem}", file=sys.stderr, flush=True)
        elif record.detail:
            self._say(f"  {record.detail!r} (status from: {record.origin})")

    def conclude(self, calls: int, failures: int) -> None:
        """Say how it went."""
        if failures:
            self._say(
                "\n" + self._coloured(f"{failures} of {calls} calls were not answered as expected", "31")
            )
        else:
            self._say("\n" + self._coloured(f"all {calls} calls were answered as expected", "32"))

    def invite(self) -> None:
        """Say how to make more calls."""
        folder = self._tls and self._tls.folder
        how = (
            "-plaintext"
            if folder is None
            else f"-cacert {folder}/ca.pem -cert {folder}/client.pem -key {folder}/client.key"
        )
        probe = (
            f"-tls -tls-ca-cert={folder}/ca.pem -tls-client-cert={folder}/client.pem "
            f"-tls-client-key={folder}/client.key"
        )
        self._say(
            f"""
Both stay up until you press Ctrl-C, and each call is shown here. From another terminal:

  cat > echo.proto <<'END'
{_PROTO}END

  grpcurl {how} -proto echo.proto -d '{{"text": ["hello"]}}' {self._proxy} {ECHO_SERVICE}/Unary
  grpc_health_probe {f"{probe} " if folder else ""}-addr={self._proxy} -service={ECHO_SERVICE}
"""
        )

    def _say(self, text: str) -> None:
        encoding = self._file.encoding or "ascii"
        try:
            print(text.encode(encoding, "backslashreplace").decode(encoding), file=self._file, flush=True)
        except BrokenPipeError:
            # Nobody reads any more (`| head`). The checks go on, and Python's flush at the end must not fail either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._file.fileno())

    def _coloured(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours else text


def _can_show(text: str, file: TextIO) -> bool:
    try:
        text.encode(file.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
