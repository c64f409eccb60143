"""A caller and a backend that speak TLS and have never heard of ALPN: web clients, or a TCP proxy in front."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HUNG_UP = "the proxy hung up"
_SECONDS = 20.0


def call(target: str, folder: Path) -> str:
    """Shake hands, and answer what comes of it."""
    context = ssl.create_default_context(cafile=str(folder / "ours.ca"))
    host, port = target.rsplit(":", 1)
    try:
        with (
            socket.create_connection((host, int(port)), _SECONDS) as link,
            context.wrap_socket(link, server_hostname=host) as secure,
        ):
            return "answered" if secure.recv(1) else HUNG_UP
    except OSError as error:
        return repr(error)


@contextmanager
def backend(folder: Path) -> Iterator[str]:
    """A server, and where it listens. It reads what comes, and answers nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")

    def serve(link: socket.socket) -> None:
        with suppress(OSError), link, context.wrap_socket(link, server_side=True) as secure:
            while secure.recv(1 << 16):
                pass

    def accept() -> None:
        with suppress(OSError):  # closed: the end
            while True:
                link, _ = listener.accept()
                link.settimeout(_SECONDS)
                threading.Thread(target=serve, args=(link,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
