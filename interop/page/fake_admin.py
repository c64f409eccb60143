"""An admin listener that serves the real page and made-up events, and does as the driver of the browser says.

What it can be told is a POST to the second port: `/world/NAME` (another proxy, from its start), `/fast/N` (the next N
events come at once, a second of the proxy's time each), `/stop` and `/start` (the proxy dies, and comes back).
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from interop.page.worlds import WORLDS, World

PAGE = Path(__file__).parents[2] / "src/rawgrpc_proxy/command/admin/page"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
}
#: The strictest that the page has to work under.
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'"
FAST_S = 0.01
CONFIG = """\
# <b>settings</b> in force
listen = ["127.0.0.1:8080"]    # serve --listen
max_connections = 4000         # default
"""


class FakeAdmin:
    """Both ports, for as long as the context lasts."""

    def __init__(self) -> None:
        self.world: World = WORLDS["empty"]()
        self.fast = 0
        self._stopping = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self._control = serving(0, handler(Control, self))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self._control.shutdown()
        self._control.server_close()

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self._port}/"

    @property
    def control_url(self) -> str:
        """Where it is told what to do."""
        return f"http://127.0.0.1:{self._control.server_port}"

    def start(self) -> None:
        """Listen, on the port of last time."""
        self._stopping = threading.Event()
        self.world = type(self.world)()
        self.fast = 0
        self._server = serving(self._port, handler(Admin, self))
        self._port = self._server.server_port

    def stop(self) -> None:
        """End all that is going on, and listen no more."""
        self._stopping.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def show(self, name: str) -> None:
        """Be another proxy, from its start."""
        self.world = WORLDS[name]()

    def wait(self) -> bool:
        """Until the next event is due; False if there is none any more."""
        if self.fast:
            self.fast -= 1
            return not self._stopping.wait(FAST_S)
        return not self._stopping.wait(1.0)


def serving(port: int, handle: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    """A server on a loopback port, in a thread."""
    server = ThreadingHTTPServer(("127.0.0.1", port), handle)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


def handler(base: type[Handler], fake: FakeAdmin) -> type[Handler]:
    """The class of handlers that know this one."""
    return type(base.__name__, (base,), {"fake": fake})


class Handler(BaseHTTPRequestHandler):
    fake: ClassVar[FakeAdmin]

    def answer(self, body: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class calls it so
        """Say nothing."""


class Admin(Handler):
    """What the browser talks to."""

    def do_GET(self) -> None:
        if self.path in FILES:
            name, kind = FILES[self.path]
            self.answer((PAGE / name).read_bytes(), kind)
        elif self.path == "/config":
            self.answer(CONFIG.encode(), "text/plain; charset=utf-8")
        elif self.path == "/events":
            self.tell_events()
        else:
            self.answer(b"nothing is here", "text/plain", 404)

    def tell_events(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        try:
            while True:
                data = json.dumps(self.fake.world.step())
                self.wfile.write(f"event: state\ndata: {data}\n\n".encode())
                self.wfile.flush()
                if not self.fake.wait():
                    return
        except OSError:
            return


class Control(Handler):
    """What the driver talks to."""

    def do_POST(self) -> None:
        match self.path.strip("/").split("/"):
            case ["world", name]:
                self.fake.show(name)
            case ["fast", count]:
                self.fake.fast = int(count)
            case ["stop"]:
                self.fake.stop()
            case ["start"]:
                self.fake.start()
        self.answer(b"done", "text/plain")


if (
    __name__ == "__main__"
):  # to look at it with a browser of one's own: python -m interop.page.fake_admin WORLD
    import sys

    with FakeAdmin() as admin:
        admin.show(sys.argv[1] if len(sys.argv) > 1 else "busy")
        admin.fast = 300
        print(admin.url)
        while True:
            time.sleep(3600)
