"""`rawgrpc-proxy record`: a proxy in front of one upstream, whose connections are written to a file."""

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import trio

from rawgrpc_proxy.call import CallContext
from rawgrpc_proxy.config import Http2Settings
from rawgrpc_proxy.errors import ConfigError, Side
from rawgrpc_proxy.lab.recorder import Recorder
from rawgrpc_proxy.net.address import Address
from rawgrpc_proxy.net.tls_files import listener_context, upstream_context
from rawgrpc_proxy.proxy.transparent import transparent_handler
from rawgrpc_proxy.server.server import Server
from rawgrpc_proxy.upstream.pool import Pool
from rawgrpc_proxy.upstream.target import Target

_SIDES = {
    "both": (Side.DOWNSTREAM, Side.UPSTREAM),
    "downstream": (Side.DOWNSTREAM,),
    "upstream": (Side.UPSTREAM,),
}
_GRACE_S = 5.0


def add_record(parser: argparse.ArgumentParser) -> None:
    """Add the options of `record`."""
    parser.description = (
        "Forward all calls to one upstream, and write each connection's frames to a file, byte for byte, until SIGINT "
        "or SIGTERM. The file holds whatever passes, passwords and tokens included, so only its owner may read it. "
        "docs/recording.md describes its format."
    )
    add = parser.add_argument
    add(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        required=True,
        help="what to write; must not be there yet",
    )
    add(
        "--listen",
        type=address_argument(to_listen=True),
        metavar="ADDRESS",
        required=True,
        help="where callers connect",
    )
    add("--upstream", type=address_argument(), metavar="ADDRESS", required=True, help="where calls go")
    add(
        "--side",
        choices=tuple(_SIDES),
        default="both",
        help="record the connections of callers (downstream), those to the upstream, or both (default: both)",
    )
    add(
        "--redact",
        action="append",
        default=[],
        metavar="HEADER",
        help="leave out the values of this header; header blocks are then made anew, and are not as they were byte "
        "for byte; may be repeated",
    )
    add(
        "--rotate-bytes",
        type=positive,
        metavar="N",
        help="go on in FILE.2, FILE.3, ... when there are so many bytes in one (default: never)",
    )
    add("--tls-cert", metavar="FILE", help="the certificate that callers get, in PEM (default: no TLS)")
    add("--tls-key", metavar="FILE", help="its private key")
    add("--upstream-ca", metavar="FILE", help="speak TLS to the upstream, and trust these authorities")
    parser.set_defaults(command=_record)


def _record(options: argparse.Namespace) -> int:
    if (options.tls_cert is None) != (options.tls_key is None):
        raise ConfigError("--tls-cert and --tls-key belong together: give both, or none")
    return trio.run(_run, options)


async def _run(options: argparse.Namespace) -> int:
    settings = Http2Settings()
    server_tls = None if options.tls_cert is None else listener_context(options.tls_cert, options.tls_key)
    client_tls = None if options.upstream_ca is None else upstream_context(ca=options.upstream_ca)

    def failed(error: OSError) -> None:
        print(f"rawgrpc-proxy: {options.output}: {error.strerror}; nothing more is recorded", file=sys.stderr)

    recorder = Recorder(
        options.output,
        sides=_SIDES[options.side],
        rotate_bytes=options.rotate_bytes,
        redact=options.redact,
        on_failure=failed,
    )
    try:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with Pool(settings=settings, tap=recorder) as pool, trio.open_nursery() as nursery:

                def director(context: CallContext, _method: str) -> tuple[CallContext, Target]:
                    return context, pool.target(options.upstream, ssl_context=client_tls)

                server = Server(
                    unknown_service_handler=transparent_handler(director), settings=settings, tap=recorder
                )

                async def stop_on_signal() -> None:
                    async for _ in signals:
                        if server.stopping:
                            nursery.cancel_scope.cancel()
                        server.stop(grace_s=_GRACE_S)

                async def serve(task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
                    await server.serve(options.listen, ssl_context=server_tls, task_status=task_status)
                    nursery.cancel_scope.cancel()

                address: str = await nursery.start(serve)
                nursery.start_soon(stop_on_signal)
                print(f"listening on {address}", flush=True)
    finally:
        recorder.close()
    print(f"{recorder.links} connections recorded in {options.output}", flush=True)
    if recorder.lost_links:
        print(
            f"rawgrpc-proxy: {recorder.lost_links} of them not to their end: the disk was too slow",
            file=sys.stderr,
        )
    return 1 if recorder.failure is not None or recorder.lost_links else 0


def address_argument(*, to_listen: bool = False) -> Callable[[str], str]:
    """An argument that is an address."""

    def checked(text: str) -> str:
        try:
            Address.parse(text, to_listen=to_listen)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return text

    return checked


def positive(text: str) -> int:
    """An argument that is a whole number of 1 or more."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)
