"""`serve` with an `http2` of single listeners and clusters: each side is told its own limits."""

from pathlib import Path

import trio

from tests.http2.peer import INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS
from tests.processes import program
from tests.proxy.raw_peers import Backend, start_client

FILE = """
[http2]
stream_window = "300KiB"
[[listeners]]
address = "127.0.0.1:0"
http2 = {{ max_concurrent_streams = 7 }}
[[listeners]]
address = "unix:{folder}/plain"
[clusters.a]
endpoints = ["{a}"]
http2 = {{ stream_window = "400KiB" }}
[clusters.b]
endpoints = ["{b}"]
[[routes]]
match = "/to.A/*"
cluster = "a"
[[routes]]
cluster = "b"
"""


def test_peers_are_told_the_settings_of_their_listener_or_cluster(tmp_path: Path) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            a, b = Backend(), Backend()
            await nursery.start(a.run)
            await nursery.start(b.run)
            file = tmp_path / "proxy.toml"
            file.write_text(FILE.format(folder=tmp_path, a=a.address, b=b.address))
            async with program("serve", "--config", str(file)) as proxy:
                host, _, port = (await proxy.address()).rpartition(":")
                await proxy.line(r"^listening on unix:", "stdout")
                first = await start_client(await trio.open_tcp_stream(host, int(port)), nursery)
                second = await start_client(await trio.open_unix_socket(f"{tmp_path}/plain"), nursery)
                await first.request("/to.A/M")
                await second.request("/to.B/M")
                served_a, served_b = await a.request(), await b.request()
                limits = [client.peer_settings[MAX_CONCURRENT_STREAMS] for client in (first, second)]
                assert limits == [7, 1024]
                windows = [
                    peer.peer_settings[INITIAL_WINDOW_SIZE] // 1024
                    for peer in (first, second, served_a.peer, served_b.peer)
                ]
                assert windows == [300, 300, 400, 300]
            nursery.cancel_scope.cancel()

    trio.run(main)
