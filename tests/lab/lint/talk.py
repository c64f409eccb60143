"""Two ends of a link, in raw frames, before the linter: each says what its test plants, and nothing by itself."""

from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.grpc.messages import encode_message
from rawgrpc_proxy.lab.events import Sender
from rawgrpc_proxy.lab.link_view import LinkView
from rawgrpc_proxy.lab.lint.findings import Finding, Findings
from rawgrpc_proxy.lab.lint.linter import Linter
from rawgrpc_proxy.net.tapped import Link
from tests.http2.peer import PREFACE, SETTINGS_ACK, Header, data, headers, settings

CLIENT, SERVER = Sender.CLIENT, Sender.SERVER
METHOD = "/helloworld.Greeter/SayHello"
REQUEST: list[Header] = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", METHOD.encode()),
    (b":authority", b"greeter.example"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
    (b"user-agent", b"grpc-test/1"),
]
RESPONSE: list[Header] = [(b":status", b"200"), (b"content-type", b"application/grpc")]
TRAILERS: list[Header] = [(b"grpc-status", b"0")]
MESSAGE = encode_message(b"hello")


def link(number: int = 1, side: Side = Side.DOWNSTREAM) -> Link:
    return Link(number=number, side=side, peer="127.0.0.1:5", tls=None)


def changed(fields: list[Header], name: bytes, value: bytes) -> list[Header]:
    """The list with another value of this field."""
    return [(each, value if each == name else was) for each, was in fields]


class Talk:
    """A link, and what the linter finds on it."""

    def __init__(self, *, side: Side = Side.DOWNSTREAM, proxy_passes_on: bool = False) -> None:
        self.told: list[Finding] = []
        self.findings = Findings(self.told.append)
        self.linter = Linter(self.findings, proxy_passes_on=proxy_passes_on)
        self.view = LinkView(link(side=side), self.linter.tell)
        self.now = 100.0

    def client(self, *frames: bytes) -> None:
        self.view.feed(CLIENT, b"".join(frames), self.now)

    def server(self, *frames: bytes) -> None:
        self.view.feed(SERVER, b"".join(frames), self.now)

    def greet(self, client: dict[int, int] | None = None, server: dict[int, int] | None = None) -> None:
        self.client(PREFACE, settings(client))
        self.server(settings(server), SETTINGS_ACK)
        self.client(SETTINGS_ACK)

    def ask(
        self, fields: list[Header] = REQUEST, body: bytes = MESSAGE, *, stream: int = 1, ends: bool = True
    ) -> None:
        self.client(headers(stream, fields), data(stream, body, end_stream=ends))

    def answer(
        self,
        fields: list[Header] = RESPONSE,
        body: bytes = MESSAGE,
        trailers: list[Header] = TRAILERS,
        *,
        stream: int = 1,
    ) -> None:
        self.server(headers(stream, fields), data(stream, body), headers(stream, trailers, end_stream=True))

    def later(self, seconds: float) -> None:
        self.now += seconds

    @property
    def found(self) -> list[tuple[str, Sender, str]]:
        """Rule, whose fault it is, and the method."""
        return [(each.rule.id, each.sender, each.method) for each in self.told]
