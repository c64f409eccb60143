"""Whether a proxy answers right: one small and one large call before it is measured, compared byte by byte."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence

import h2.config
import h2.connection
import h2.events

from interop.bench.backend import CHECK, SERVICE, UNARY, Files
from interop.shared.processes import Trouble


def check_answers(port: int, files: Files, *, tls: bool = False) -> None:
    """Make one call each way of the answer being small and large, and compare all that comes back."""
    for name in (UNARY, CHECK):
        headers, body, trailers = exchange(
            port, f"/{SERVICE}/{name}", files.path(UNARY).read_bytes(), tls=tls
        )
        if headers.get(":status") != "200" or trailers.get("grpc-status") != "0":
            raise Trouble(f"wrong answer: headers {headers}, trailers {trailers}")
        if body != files.path(name).read_bytes():
            raise Trouble(
                f"wrong answer: {len(body)} bytes, and not those of the {files.size(name)} that were sent"
            )


def exchange(
    port: int, path: str, body: bytes, *, tls: bool = False
) -> tuple[dict[str, str], bytes, dict[str, str]]:
    """One call on a connection of its own: the headers, the body and the trailers of its answer."""
    session = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    session.initiate_connection()
    request = (
        (":method", "POST"), (":scheme", f"http{'s' * tls}"), (":path", path), (":authority", f"127.0.0.1:{port}"),
        ("content-type", "application/grpc"), ("te", "trailers"),
    )  # fmt: skip
    session.send_headers(1, request)
    session.send_data(1, body, end_stream=True)
    headers: dict[str, str] = {}
    trailers: dict[str, str] = {}
    answer = bytearray()
    try:
        with _link(port, tls=tls) as link:
            link.sendall(session.data_to_send())
            while data := link.recv(65536):
                events = session.receive_data(data)
                for event in events:
                    match event:
                        case h2.events.ResponseReceived():
                            headers = dict(_text(event.headers))
                        case h2.events.TrailersReceived():
                            trailers = dict(_text(event.headers))
                        case h2.events.DataReceived():
                            answer += event.data
                            session.acknowledge_received_data(event.flow_controlled_length, 1)
                        case h2.events.StreamEnded():
                            return headers, bytes(answer), trailers or headers
                        case h2.events.StreamReset():
                            raise Trouble(f"wrong answer: the call was reset with code {event.error_code}")
                        case _:
                            pass
                link.sendall(session.data_to_send())
    except OSError as error:
        raise Trouble(f"no answer: {error}") from error
    raise Trouble("no answer: the connection was closed")


def _link(port: int, *, tls: bool) -> socket.socket:
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    if not tls:
        return plain
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(plain)


def _text(headers: Sequence[tuple[str | bytes, str | bytes]]) -> list[tuple[str, str]]:
    return [
        (
            name.decode() if isinstance(name, bytes) else name,
            value.decode() if isinstance(value, bytes) else value,
        )
        for name, value in headers
    ]
