"""Metrics of a program with a proxy in it: counted by `Metrics`, and told to Prometheus by an HTTP server of its own.

    python examples/metrics.py 127.0.0.1:8080 127.0.0.1:50051 9901
    curl http://127.0.0.1:9901/metrics

The names are those of docs/metrics.md. `rawgrpc-proxy serve --admin` has all of this, and more; a program that has an
HTTP server already needs only the function `text` of this one.
"""

import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import trio

from rawgrpc_proxy import CallLog, Metrics, Observers, Pool, RouteTable, Server, transparent_handler
from rawgrpc_proxy.observe.exposition import CONTENT_TYPE, exposition
from rawgrpc_proxy.observe.metrics import Sources


def http_server(metrics: Metrics, port: int) -> ThreadingHTTPServer:
    """It runs in threads of its own, and asks the event loop, which alone may touch the metrics."""
    event_loop = trio.lowlevel.current_trio_token()

    def text() -> bytes:
        report = trio.from_thread.run_sync(metrics.report, trio_token=event_loop)
        return exposition([report])

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            """Answer /metrics."""
            if self.path != "/metrics":
                self.send_error(404, "ask for /metrics")
                return
            body = text()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Scrapes are no news."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


async def main(listen: str, upstream: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; running calls have half a minute then."""
    log, metrics = CallLog(), Metrics()
    both = Observers(log, metrics)
    async with Pool(observer=both) as pool:
        director = RouteTable([], default=upstream).director(pool)
        server = Server(unknown_service_handler=transparent_handler(director), observer=both)
        # What can be seen by looking: how many calls are open, and what they wait for.
        metrics.sources = Sources(open_calls=server.open_call_facts, dropped_lines=lambda: log.dropped_lines)
        http = http_server(metrics, port)
        with http, trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(log.run)
                threading.Thread(target=http.serve_forever, daemon=True).start()
                print(f"metrics: http://127.0.0.1:{http.server_port}/metrics", flush=True)
                async with trio.open_nursery() as serving:
                    print("listening on", await serving.start(server.serve, listen), flush=True)
                    await anext(signals)
                    server.stop(grace_s=30)
                nursery.cancel_scope.cancel()
                http.shutdown()
    log.flush()


if __name__ == "__main__":
    if len(sys.argv) <= 3:
        sys.exit(__doc__)
    trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
