"""`rawgrpc-proxy record`: a proxy in front of one upstream, whose connections are written to a file."""

import argparse
import signal
import sys
from pathlib import Path

import trio

from rawgrpc_proxy.command.argument_types import positive
from rawgrpc_proxy.command.lab.one_upstream import Links, OneUpstream, add_one_upstream
from rawgrpc_proxy.errors import ConfigError, Side
from rawgrpc_proxy.lab.recorder import Recorder

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
        "or SIGTERM; running calls have 5 s then, and a second signal ends at once. The file holds whatever passes, "
        "passwords and tokens included, so only its owner may read it. docs/recording.md describes its format."
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
    add_one_upstream(parser)
    parser.set_defaults(command=_record)


def _record(options: argparse.Namespace) -> int:
    return trio.run(_run, options)


async def _run(options: argparse.Namespace) -> int:
    links = Links.of(options)

    def failed(error: OSError) -> None:
        print(f"rawgrpc-proxy: {options.output}: {error.strerror}; nothing more is recorded", file=sys.stderr)

    if str(options.output) == "-":
        raise ConfigError(
            "--output: a recording is a file, and does not go to standard output: give it a name"
        )
    recorder = Recorder(
        options.output,
        sides=_SIDES[options.side],
        rotate_bytes=options.rotate_bytes,
        redact=options.redact,
        on_failure=failed,
    )
    house = OneUpstream(links, recorder)
    server = house.server
    try:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with house.pool, trio.open_nursery() as nursery:

                async def stop_on_signal() -> None:
                    async for _ in signals:
                        if server.stopping:
                            nursery.cancel_scope.cancel()
                        server.stop(grace_s=_GRACE_S)

                async with trio.open_nursery() as serving:
                    print(f"listening on {await house.start(serving)}", flush=True)
                    nursery.start_soon(stop_on_signal)
                nursery.cancel_scope.cancel()
    finally:
        recorder.close()
        if not house.has_begun:
            # An empty recording, which would be in the way of the next try.
            options.output.unlink(missing_ok=True)
    print(f"{recorder.links} connections recorded in {options.output}", flush=True)
    if recorder.lost_links:
        print(
            f"rawgrpc-proxy: {recorder.lost_links} of them not to their end: the disk was too slow",
            file=sys.stderr,
        )
    return 1 if recorder.failure is not None or recorder.lost_links else 0
