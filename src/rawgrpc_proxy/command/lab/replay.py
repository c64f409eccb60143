"""`rawgrpc-proxy replay` and `serve-recording`: a recording played to a server, or to clients."""

import argparse
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from rawgrpc_proxy.command.argument_types import address, positive, seconds
from rawgrpc_proxy.command.lab.one_upstream import add_listen
from rawgrpc_proxy.errors import ConfigError, Side
from rawgrpc_proxy.grpc.codec import identity_codec
from rawgrpc_proxy.lab.events import Sender
from rawgrpc_proxy.lab.recording import RecordedLink, read
from rawgrpc_proxy.lab.replay import Verdict, replay
from rawgrpc_proxy.lab.replay_report import junit, table
from rawgrpc_proxy.lab.replaying import open_stream, play
from rawgrpc_proxy.lab.serve_recording import Answers
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.failures import reason_of
from rawgrpc_proxy.net.listen import address_of, open_listeners
from rawgrpc_proxy.net.tls_files import upstream_context
from rawgrpc_proxy.server.server import Server

_SIDES = {"downstream": Side.DOWNSTREAM, "upstream": Side.UPSTREAM}
_DIAL_TIMEOUT_S = 10.0


def add_replay(parser: argparse.ArgumentParser) -> None:
    """Add the options of `replay`."""
    parser.description = (
        "Play the client's part of each recorded connection to a server, with the recorded bytes, order and times, and "
        "say where its answers differ from the recorded ones. The exit code is 0 if all are as recorded, 1 if any "
        "differs, 2 if nothing could be played: the recording or the options are wrong, or nobody listens there."
    )
    add = parser.add_argument
    _add_recording(add)
    add("--to", type=address, metavar="ADDRESS", required=True, help="the server")
    add(
        "--speed",
        type=_speed,
        default=1.0,
        metavar="SPEED",
        help="how fast: 2x halves all pauses, max leaves none (default: 1x)",
    )
    add(
        "--concurrency",
        type=positive,
        metavar="N",
        help="connections at a time (default: as many as there were)",
    )
    add(
        "--slower",
        type=seconds,
        default=math.inf,
        metavar="SECONDS",
        help="a call that takes so much longer than it did differs (default: time makes no difference)",
    )
    add(
        "--junit",
        type=Path,
        metavar="FILE",
        help="write the result as JUnit XML as well; '-' writes it to standard output, and the table to standard error",
    )
    add("--upstream-tls", action="store_true", help="speak TLS to the server, with the system's authorities")
    add("--upstream-ca", metavar="FILE", help="speak TLS to the server, and trust these authorities instead")
    parser.set_defaults(command=lambda options: trio.run(_replay, options))


def add_serve_recording(parser: argparse.ArgumentParser) -> None:
    """Add the options of `serve-recording`."""
    parser.description = (
        "Play the server's part of a recording to any client, until SIGINT or SIGTERM: each call gets the answer of "
        "the next recorded call of its method with the same request. A call that was not recorded is "
        "FAILED_PRECONDITION. The exit code is 0 if all was asked for as recorded, 1 if a call was refused (with "
        "--exact: if a client has sent something else), 2 if nothing could be served."
    )
    add = parser.add_argument
    _add_recording(add)
    add_listen(add)
    how = parser.add_mutually_exclusive_group().add_argument
    how(
        "--lenient",
        action="store_true",
        help="answer with the next recorded call of the method whatever the request is, and with the last one again",
    )
    how(
        "--exact",
        action="store_true",
        help="play the recorded connections byte for byte, one to each client that connects, in order; for clients "
        "that send what was recorded, as replay does",
    )
    parser.set_defaults(command=lambda options: trio.run(_serve, options))


def _add_recording(add: Callable[..., object]) -> None:
    add("recording", type=Path, metavar="FILE", help="a recording")
    add(
        "--side",
        choices=tuple(_SIDES),
        default="downstream",
        help="play the connections of callers (downstream), or those to the upstream (default: downstream)",
    )


def _links(options: argparse.Namespace) -> Sequence[RecordedLink]:
    links = read(options.recording).side(_SIDES[options.side])
    if not links:
        raise ConfigError(f"{options.recording}: no {options.side} connection was recorded (see --side)")
    return links


async def _replay(options: argparse.Namespace) -> int:
    links, address = _links(options), Address.parse(options.to)
    tls = None
    if options.upstream_tls or options.upstream_ca is not None:
        tls = upstream_context(ca=options.upstream_ca)

    was_there = False

    async def dial() -> trio.abc.HalfCloseableStream:
        nonlocal was_there
        try:
            with trio.fail_after(_DIAL_TIMEOUT_S):
                stream = await open_stream(address)
        except (OSError, trio.TooSlowError) as error:
            why = _why_no_connection(error)
            if was_there:  # it has gone meanwhile: that is an answer
                raise OSError(why) from error
            raise ConfigError(
                f"--to: nobody listens on {address} ({why}), so nothing was played; start the server, or say where it "
                "is"
            ) from None
        was_there = True
        if tls is None:
            return stream
        return _Tls(trio.SSLStream(stream, tls, server_hostname=address.host, https_compatible=True))

    verdicts: list[Verdict] = await replay(
        links, dial, speed=options.speed, concurrency=options.concurrency, slower_s=options.slower
    )
    to_stdout = str(options.junit) == "-"
    for line in table(verdicts):
        print(line, file=sys.stderr if to_stdout else sys.stdout)
    if to_stdout:
        print(junit(str(options.recording), verdicts).decode())
    elif options.junit is not None:
        try:
            options.junit.write_bytes(junit(str(options.recording), verdicts))
        except OSError as error:
            raise ConfigError(f"--junit: {options.junit}: {error.strerror}") from None
    return 1 if any(verdict.differences for verdict in verdicts) else 0


def _why_no_connection(error: OSError | trio.TooSlowError) -> str:
    if isinstance(error, trio.TooSlowError):
        return f"no connection within {_DIAL_TIMEOUT_S:g} s"
    # Of TCP trio says that all attempts have failed; why each has, is behind it.
    behind = error.__cause__
    causes = behind.exceptions if isinstance(behind, BaseExceptionGroup) else ()
    codes = dict.fromkeys(each.errno for each in causes if isinstance(each, OSError) and each.errno)
    return ", ".join(map(os.strerror, codes)) or reason_of(error)


class _Tls(trio.abc.HalfCloseableStream):
    """TLS has no half-closed connections: the end of what is sent is the end of all."""

    def __init__(self, stream: "trio.SSLStream[trio.SocketStream]") -> None:
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self._stream.aclose()

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _serve(options: argparse.Namespace) -> int:
    links = _links(options)
    return await (_serve_exact(links, options.listen) if options.exact else _serve_calls(links, options))


async def _serve_calls(links: Sequence[RecordedLink], options: argparse.Namespace) -> int:
    answers = Answers(links, lenient=options.lenient)
    server = Server(unknown_service_handler=answers.handle, codec=identity_codec())
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            address: str = await nursery.start(server.serve, options.listen)
            print(f"listening on {address}", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()
    for refused in answers.refused:
        print(refused)
    print(f"{answers.left} recorded calls were not asked for")
    return 1 if answers.refused else 0


async def _serve_exact(links: Sequence[RecordedLink], listen: str) -> int:
    asked = Address.parse(listen, to_listen=True)
    sockets = open_listeners(asked)
    left = list(links)
    different: list[str] = []

    async def serve(stream: trio.SocketStream, link: RecordedLink) -> None:
        played = await play(link, Sender.SERVER, stream, speed=math.inf)
        if played.problem is not None:
            different.append(f"link {link.number}: {played.problem}")
        elif played.bytes_of(Sender.CLIENT) != link.bytes_of(Sender.CLIENT):
            different.append(f"link {link.number}: the client has sent other bytes")

    async def accept(listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        async with listener:
            while left:
                # Which connection it is, is decided here: tasks begin in any order.
                stream = await listener.accept()
                nursery.start_soon(serve, stream, left.pop(0))

    listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(each)) for each in sockets]
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(accept, listener, nursery)
            print(f"listening on {address_of(sockets, asked)}", flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()
    for line in different:
        print(line)
    print(f"{len(left)} recorded connections were not asked for")
    return 1 if different else 0


def _speed(text: str) -> float:
    if text == "max":
        return math.inf
    try:
        speed = float(text.removesuffix("x"))
    except ValueError:
        speed = math.nan
    if not 0 < speed < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no speed; write 2x, 0.5x or max")
    return speed
