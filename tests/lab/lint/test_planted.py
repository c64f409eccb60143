"""Each fault, planted in an exchange that is good otherwise, is found, at the end that made it, and is all there is."""

from collections.abc import Callable

import pytest

from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.lab.events import Sender
from rawgrpc_proxy.lab.lint.rules import RULES
from tests.http2.peer import (
    ENABLE_PUSH,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    PREFACE,
    SETTINGS_ACK,
    block,
    continuation,
    data,
    goaway,
    headers,
    ping,
    push_promise,
    raw,
    rst_stream,
    settings,
    window_update,
)
from tests.lab.lint.talk import CLIENT, MESSAGE, METHOD, REQUEST, RESPONSE, SERVER, TRAILERS, Talk, changed

Play = Callable[[Talk], None]
PLANTED: list[tuple[str, Sender, str, Play]] = []
"""Rule, whose fault it is, the method that is named, and the exchange."""


def plant(rule: str, sender: Sender, method: str = METHOD) -> Callable[[Play], Play]:
    def keep(play: Play) -> Play:
        PLANTED.append((rule, sender, method, play))
        return play

    return keep


def in_request(rule: str, *extra: tuple[bytes, bytes], without: bytes = b"", method: str = METHOD) -> None:
    """A rule that the headers of a request break: with these fields, or others than usual."""

    def play(talk: Talk) -> None:
        talk.greet()
        names = {name for name, _ in extra} | {without}
        kept = [field for field in REQUEST if field[0] not in names]
        pseudo = [field for field in (*kept, *extra) if field[0].startswith(b":")]
        talk.ask([*pseudo, *(field for field in (*kept, *extra) if not field[0].startswith(b":"))])
        talk.answer()

    play.__name__ = f"in_request_{rule}"
    PLANTED.append((rule, CLIENT, method, play))


def in_response(rule: str, fields: list[tuple[bytes, bytes]]) -> None:
    def play(talk: Talk) -> None:
        talk.greet()
        talk.ask()
        talk.answer(fields)

    play.__name__ = f"in_response_{rule}"
    PLANTED.append((rule, SERVER, METHOD, play))


def in_trailers(rule: str, *fields: tuple[bytes, bytes]) -> None:
    def play(talk: Talk) -> None:
        talk.greet()
        talk.ask()
        talk.answer(trailers=list(fields))

    play.__name__ = f"in_trailers_{rule}"
    PLANTED.append((rule, SERVER, METHOD, play))


# --- header lists

in_request("te-missing", without=b"te")
in_request("te-value", (b"te", b"gzip"))
in_request("content-type-missing", without=b"content-type")
in_request("content-type-invalid", (b"content-type", b"application/json"))
in_request(
    "content-type-duplicate",
    (b"content-type", b"application/grpc"),
    (b"content-type", b"application/grpc+json"),
)
in_request("method-not-post", (b":method", b"GET"))
in_request("path-shape", (b":path", b"/SayHello"), method="/SayHello")
in_request("path-shape", (b":path", b"/a.B/C?x=1"), method="/a.B/C?x=1")
in_request("timeout-form", (b"grpc-timeout", b"1.5S"))
in_request("timeout-form", (b"grpc-timeout", b"123456789m"))
in_request("user-agent-missing", without=b"user-agent")
in_request("reserved-metadata", (b"grpc-my-flag", b"1"))
in_request("metadata-not-ascii", (b"x-name", "Zoë".encode()))
in_request("binary-metadata", (b"x-trace-bin", b"not base64!"))
in_request("binary-metadata", (b"x-trace-bin", b"AAAAA"))
in_request("binary-metadata", (b"x-trace-bin", b"AAAA,AA="))
in_request("header-name-uppercase", (b"X-User", b"bob"))
in_request("header-name-invalid", (b"x user", b"bob"))
in_request("header-value-invalid", (b"x-user", b"a\r\nb"))
in_request("header-value-invalid", (b"x-user", b" a"))
in_request("connection-header", (b"connection", b"keep-alive"))
in_request("connection-header", (b"transfer-encoding", b"chunked"))
in_request("pseudo-header-unknown", (b":status", b"200"))
in_request("pseudo-header-unknown", (b":protocol-version", b"2"))
in_request("pseudo-header-missing", without=b":scheme")
in_request("content-length-mismatch", (b"content-length", b"3"))

in_response("content-type-missing", [(b":status", b"200")])
in_response("content-type-invalid", [(b":status", b"200"), (b"content-type", b"text/html")])
in_response("http-status", changed(RESPONSE, b":status", b"503"))
in_response("pseudo-header-missing", RESPONSE[1:])
in_response("encoding-not-accepted", [*RESPONSE, (b"grpc-encoding", b"zstd")])
in_response("content-length-mismatch", [*RESPONSE, (b"content-length", b"1000")])
in_response("binary-metadata", [*RESPONSE, (b"x-bin", b"=AAA")])

in_trailers("grpc-status-missing", (b"x-more", b"1"))
in_trailers("grpc-status-duplicate", (b"grpc-status", b"0"), (b"grpc-status", b"13"))
in_trailers("grpc-status-range", (b"grpc-status", b"17"))
in_trailers("grpc-status-range", (b"grpc-status", b"OK"))
in_trailers("grpc-message-encoding", (b"grpc-status", b"5"), (b"grpc-message", b"100% wrong"))
in_trailers("grpc-message-encoding", (b"grpc-status", b"5"), (b"grpc-message", "schön".encode()))
in_trailers("trailers-pseudo-header", (b":status", b"200"), (b"grpc-status", b"0"))
in_trailers("header-name-uppercase", (b"grpc-status", b"0"), (b"X-More", b"1"))


@plant("trailers-only-split", SERVER)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask()
    talk.server(headers(1, [*RESPONSE, (b"grpc-status", b"5")]), data(1, end_stream=True))


@plant("grpc-message-without-status", SERVER)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask()
    talk.answer([*RESPONSE, (b"grpc-message", b"gone")])


@plant("pseudo-header-order", CLIENT)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask([*REQUEST[:3], *REQUEST[4:], REQUEST[3]])
    talk.answer()


@plant("pseudo-header-duplicate", CLIENT)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask([REQUEST[0], *REQUEST])
    talk.answer()


@plant("grpc-status-missing", SERVER)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask()
    talk.server(headers(1, RESPONSE), data(1, MESSAGE, end_stream=True))


@plant("request-trailers", CLIENT)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask(ends=False)
    talk.client(headers(1, [(b"x-checksum", b"1")], end_stream=True))
    talk.answer()


@plant("headers-mid-stream", SERVER)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask()
    talk.server(headers(1, RESPONSE), headers(1, [(b"x-more", b"1")]))
    talk.server(data(1, MESSAGE), headers(1, TRAILERS, end_stream=True))


@plant("headers-mid-stream", CLIENT)
def _(talk: Talk) -> None:
    talk.greet()
    talk.client(headers(1, REQUEST), headers(1, [(b"x-more", b"1")]), data(1, MESSAGE, end_stream=True))
    talk.answer()


@plant("data-before-headers", SERVER)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask()
    talk.server(data(1, MESSAGE))
    talk.answer()


@plant("header-list-too-large", CLIENT)
def _(talk: Talk) -> None:
    talk.greet(server={MAX_HEADER_LIST_SIZE: 500})
    talk.ask([*REQUEST, (b"x-long", b"x" * 300)])
    talk.answer()


@plant("header-block-undecodable", CLIENT, "")
def _(talk: Talk) -> None:
    talk.greet()
    talk.client(headers(1, encoded=b"\xff\xff\xff\xff\xff\x0f"), data(1, MESSAGE, end_stream=True))
    talk.answer()


# --- messages, and ends


@plant("encoding-missing", CLIENT)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask(body=b"\x01" + MESSAGE[1:])
    talk.answer()


@plant("message-flag", SERVER)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask()
    talk.answer(body=b"\x02" + MESSAGE[1:])


@plant("message-truncated", CLIENT)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask(body=MESSAGE[:-2])
    talk.answer()


@plant("message-truncated", SERVER)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask()
    talk.answer(body=MESSAGE[:3])


@plant("reset-after-response", SERVER)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask(ends=False)
    talk.answer()
    talk.server(rst_stream(1, ErrorCode.CANCEL))


@plant("reset-after-response", SERVER)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask()
    talk.answer()
    talk.server(rst_stream(1, ErrorCode.INTERNAL_ERROR))


# --- frames


@plant("not-http2", SERVER, "")
def _(talk: Talk) -> None:
    talk.client(PREFACE, settings())
    talk.server(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@plant("frame-size", CLIENT, "")
def _(talk: Talk) -> None:
    talk.greet()
    talk.client(raw(0x6, 0, 0, b"1234567"))


@plant("frame-size", SERVER, "")
def _(talk: Talk) -> None:
    talk.greet()
    talk.server(raw(0x4, 0, 0, b"12345"))


@plant("frame-size", CLIENT)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask(ends=False)
    talk.client(raw(0x3, 0, 1, b"123"), rst_stream(1))


@plant("frame-too-large", CLIENT)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask(ends=False, body=b"")
    talk.client(data(1, b"\0\0\0\x40\0" + bytes(16384), end_stream=True))
    talk.answer()


@plant("frame-too-large", CLIENT)
def _(talk: Talk) -> None:
    """The server reads its header alone, and ends the connection."""
    talk.greet()
    talk.client(headers(1, REQUEST), raw(0x0, 0x1, 1, bytes(100), length=16_385))
    talk.server(goaway(1, ErrorCode.FRAME_SIZE_ERROR))
    talk.view.close(talk.now)


@plant("frame-stream-id", CLIENT, "")
def _(talk: Talk) -> None:
    talk.greet()
    talk.client(raw(0x6, 0, 1, b"12345678"))


@plant("frame-stream-id", SERVER, "")
def _(talk: Talk) -> None:
    talk.greet()
    talk.server(raw(0x0, 0, 0, b"x"))


@plant("padding-too-long", CLIENT)
def _(talk: Talk) -> None:
    talk.greet()
    talk.client(headers(1, REQUEST))
    talk.client(raw(0x0, 0x8, 1, b"\x09123"), rst_stream(1))


@plant("padding-too-long", CLIENT, "")
def _(talk: Talk) -> None:
    talk.greet()
    talk.client(raw(0x1, 0xC, 1, b"\xff123"))


@plant("continuation-interleaved", CLIENT, "")
def _(talk: Talk) -> None:
    talk.greet()
    talk.client(headers(1, encoded=block(REQUEST[:3]), end_headers=False), ping())
    talk.server(ping(ack=True))


@plant("continuation-unexpected", SERVER)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask()
    talk.server(
        headers(1, RESPONSE), continuation(1, b"", end_headers=True), headers(1, TRAILERS, end_stream=True)
    )


@plant("stream-id-even", CLIENT)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask(stream=2)
    talk.answer(stream=2)


@plant("stream-id-not-increasing", CLIENT, "")
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask(stream=5)
    talk.answer(stream=5)
    talk.client(headers(3, REQUEST, end_stream=True))


@plant("frame-on-idle-stream", CLIENT, "")
def _(talk: Talk) -> None:
    talk.greet()
    talk.client(data(1, MESSAGE))


@plant("frame-on-idle-stream", SERVER, "")
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask()
    talk.answer()
    talk.server(window_update(7, 1))


@plant("frame-on-idle-stream", SERVER, "")
def _(talk: Talk) -> None:
    talk.greet()
    talk.server(headers(2, RESPONSE))


@plant("frame-on-closed-stream", SERVER)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask()
    talk.answer()
    talk.server(data(1, MESSAGE))


@plant("frame-on-closed-stream", CLIENT)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask()
    talk.client(data(1, MESSAGE))
    talk.answer()


@plant("frame-on-closed-stream", CLIENT)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask(ends=False)
    talk.client(rst_stream(1), headers(1, [(b"x-late", b"1")], end_stream=True))


@plant("too-many-streams", CLIENT)
def _(talk: Talk) -> None:
    talk.greet(server={MAX_CONCURRENT_STREAMS: 1})
    talk.ask(stream=1)
    talk.ask(stream=3)
    talk.answer(stream=1)
    talk.answer(stream=3)


@plant("push-promise", SERVER)
def _(talk: Talk) -> None:
    talk.greet(client={ENABLE_PUSH: 0})
    talk.ask()
    talk.server(push_promise(1, 2))
    talk.answer()


@plant("push-promise", CLIENT)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask(ends=False)
    talk.client(push_promise(1, 2), data(1, end_stream=True))
    talk.answer()


@plant("priority-self-dependency", CLIENT, "")
def _(talk: Talk) -> None:
    talk.greet()
    talk.client(raw(0x2, 0, 1, b"\0\0\0\x01\x0f"))


@plant("priority-self-dependency", CLIENT, "")
def _(talk: Talk) -> None:
    talk.greet()
    talk.client(raw(0x1, 0x24, 1, b"\0\0\0\x01\x0f" + block(REQUEST)))


# --- windows


@plant("flow-control-overrun", CLIENT)
def _(talk: Talk) -> None:
    talk.greet(server={INITIAL_WINDOW_SIZE: 9})
    talk.ask(ends=False)
    talk.client(data(1, end_stream=True))
    talk.answer()


@plant("flow-control-overrun", SERVER)
def _(talk: Talk) -> None:
    talk.greet(client={INITIAL_WINDOW_SIZE: 1 << 20})
    talk.ask()
    talk.server(headers(1, RESPONSE), data(1, (66_000).to_bytes(5, "big") + bytes(11_379)))
    for _ in range(3):
        talk.server(data(1, bytes(16_384)))
    talk.server(data(1, bytes(66_000 - 11_379 - 3 * 16_384)), headers(1, TRAILERS, end_stream=True))


@plant("window-update-zero", CLIENT, "")
def _(talk: Talk) -> None:
    talk.greet()
    talk.client(window_update(0, 0))


@plant("window-update-zero", SERVER)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask(ends=False)
    talk.server(window_update(1, 0))
    talk.client(rst_stream(1))


@plant("window-overflow", SERVER, "")
def _(talk: Talk) -> None:
    talk.greet()
    talk.server(window_update(0, 2**31 - 1))


@plant("window-overflow", CLIENT)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask(ends=False)
    talk.client(window_update(1, 2**31 - 1), rst_stream(1))


@plant("window-never-opened", SERVER)
def _(talk: Talk) -> None:
    talk.greet(server={INITIAL_WINDOW_SIZE: 0})
    talk.client(headers(1, REQUEST))
    talk.later(6)
    talk.client(rst_stream(1))


@plant("window-never-opened", CLIENT)
def _(talk: Talk) -> None:
    talk.greet(client={INITIAL_WINDOW_SIZE: 10})
    talk.ask()
    talk.server(headers(1, RESPONSE), data(1, MESSAGE))
    talk.later(30)
    talk.view.close(talk.now)


# --- the connection


@plant("settings-not-acknowledged", CLIENT, "")
def _(talk: Talk) -> None:
    talk.client(PREFACE, settings())
    talk.server(settings(), SETTINGS_ACK)
    talk.later(11)
    talk.client(ping())
    talk.server(ping(ack=True))


@plant("settings-not-acknowledged", SERVER, "")
def _(talk: Talk) -> None:
    talk.client(PREFACE, settings())
    talk.server(settings())
    talk.client(SETTINGS_ACK)
    talk.later(11)
    talk.view.close(talk.now)


@plant("settings-ack-unexpected", SERVER, "")
def _(talk: Talk) -> None:
    talk.greet()
    talk.server(SETTINGS_ACK)


@plant("settings-value", CLIENT, "")
def _(talk: Talk) -> None:
    talk.greet(client={ENABLE_PUSH: 2})


@plant("settings-value", SERVER, "")
def _(talk: Talk) -> None:
    talk.greet(server={ENABLE_PUSH: 1})


@plant("settings-value", SERVER, "")
def _(talk: Talk) -> None:
    talk.greet(server={INITIAL_WINDOW_SIZE: 2**31})


@plant("settings-value", CLIENT, "")
def _(talk: Talk) -> None:
    talk.greet(client={MAX_FRAME_SIZE: 1000})
    talk.client(ping(b""[:0].ljust(8, b"x")))
    talk.server(ping(b"xxxxxxxx", ack=True))


@plant("ping-not-acknowledged", SERVER, "")
def _(talk: Talk) -> None:
    talk.greet()
    talk.client(ping())
    talk.later(21)
    talk.server(ping(b"87654321"))
    talk.client(ping(b"87654321", ack=True))


@plant("ping-ack-unexpected", SERVER, "")
def _(talk: Talk) -> None:
    talk.greet()
    talk.server(ping(ack=True))


def pings(talk: Talk, every_s: float) -> None:
    talk.greet()
    for _ in range(5):
        talk.client(ping())
        talk.server(ping(ack=True))
        talk.later(every_s)


@plant("keepalive-too-frequent", CLIENT, "")
def _(talk: Talk) -> None:
    pings(talk, 1)


@plant("keepalive-below-default", CLIENT, "")
def _(talk: Talk) -> None:
    pings(talk, 60)


@plant("goaway-id-increased", SERVER, "")
def _(talk: Talk) -> None:
    talk.greet()
    talk.server(goaway(1), goaway(3))


@plant("goaway-stream-processed", SERVER)
def _(talk: Talk) -> None:
    talk.greet()
    talk.ask(stream=1)
    talk.ask(stream=3)
    talk.server(goaway(1))
    talk.server(headers(3, [*RESPONSE, *TRAILERS], end_stream=True))
    talk.answer(stream=1)


@plant("stream-after-goaway", CLIENT)
def _(talk: Talk) -> None:
    talk.greet()
    talk.server(goaway(2**31 - 1))
    talk.later(6)
    talk.ask()
    talk.answer()


@pytest.mark.parametrize(
    ("rule", "sender", "method", "play"),
    PLANTED,
    ids=[f"{rule}-{sender.value}-{place}" for place, (rule, sender, _, _) in enumerate(PLANTED)],
)
def test_it_is_found_and_nothing_else(rule: str, sender: Sender, method: str, play: Play) -> None:
    talk = Talk()
    play(talk)
    assert talk.found == [(rule, sender, method)]
    [finding] = talk.told
    assert finding.seen
    assert finding.side == f"downstream {sender.value}"


def test_every_rule_has_a_planted_fault() -> None:
    assert {rule for rule, _, _, _ in PLANTED} == set(RULES)
    assert len(PLANTED) >= 40
