"""The peers: how each is started, which of them have to be built, and what is known to fail without a proxy, too.

Adding one is told in README.md.
"""

from __future__ import annotations

import fnmatch
import shutil
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
BUILT = FOLDER / "build"
#: The command of each, where {role} is client or server; for some it may be load, a client of the soak.
PEERS = {
    "grpcio": [sys.executable, "-m", "interop.peers.grpcio.{role}"],
    "grpcio-aio": [sys.executable, "-m", "interop.peers.grpcio.aio_{role}"],
    "grpclib": [sys.executable, "-m", "interop.peers.grpclib.{role}"],
    "grpc-js": ["node", str(FOLDER / "grpc_js" / "{role}.js")],
    "grpc-go": [str(BUILT / "grpc_go"), "{role}"],
    "grpc-java": ["java", "-cp", f"{BUILT}/grpc_java/classes:{BUILT}/grpc_java/lib/*", "Peer", "{role}"],
}
#: Those that have a client only.
CLIENTS = {"rawgrpc-proxy": [sys.executable, "-m", "interop.peers.ours.{role}"]}
#: What `setup.sh` builds if the machine can: a file that is there then, and what it takes. The others are always there.
COMPILED = {
    "grpc-js": (FOLDER / "grpc_js" / "node_modules" / ".installed", "Node.js and npm"),
    "grpc-go": (BUILT / "grpc_go", "Go 1.24 or newer"),
    "grpc-java": (BUILT / "grpc_java" / "classes" / "Peer.class", "a JDK 17 or newer, and Maven"),
}
#: Those whose programs speak TLS as well. The interop clients and servers of the others are played in plaintext.
TLS_PEERS = ("grpcio", "grpclib", "grpc-js")
#: Cases that fail of themselves: patterns for client, server and case, and why. Equal outcomes are enough there.
KNOWN_FAILURES = [
    (
        "grpcio-aio",
        "*",
        "headers_without_message",
        "grpcio's asyncio client loses initial metadata that the status follows at once, so it is not looked at",
    ),
    (
        "*",
        "grpclib",
        "unimplemented_*",
        "grpclib's server leaves the content-type out of this answer, and some clients insist on one",
    ),
]


def left_out(name: str) -> str | None:
    """Why a peer cannot take part on this machine; None if it can."""
    if name not in COMPILED:
        return None
    file, needs = COMPILED[name]
    if file.exists() and shutil.which(PEERS[name][0]):
        return None
    return f"{name} is left out: it has not been built here, which takes {needs}"


def peer_command(name: str, role: str) -> list[str]:
    """The command of a client or server."""
    return [part.replace("{role}", role) for part in (PEERS | CLIENTS)[name]]


def known_failure(client: str, server: str, case: str) -> str | None:
    """Why a case fails with these peers even without a proxy."""
    for client_pattern, server_pattern, case_pattern, reason in KNOWN_FAILURES:
        pairs = zip((client, server, case), (client_pattern, server_pattern, case_pattern), strict=True)
        if all(fnmatch.fnmatch(name, pattern) for name, pattern in pairs):
            return reason
    return None
