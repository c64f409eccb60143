"""`serve` with `proxy_protocol` in its settings file, in a process of its own: the log names the caller."""

from pathlib import Path

import pytest
import trio

from tests.processes import program
from tests.proxy.raw_peers import start_client

FILE = """
[[listeners]]
address = "127.0.0.1:0"
proxy_protocol = ["127.0.0.1"]
[[listeners]]
address = "unix:{folder}/plain"
[clusters.a]
endpoints = ["unix:{folder}/nobody"]
pool = {{ connect_wait = 0 }}
[[routes]]
cluster = "a"
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_log_names_whom_the_load_balancer_names_on_the_listener_that_has_one(
    tmp_path: Path, workers: str
) -> None:
    async def main() -> None:
        file = tmp_path / "proxy.toml"
        file.write_text(FILE.format(folder=tmp_path))
        async with (
            program("serve", "--config", str(file), "--workers", workers) as proxy,
            trio.open_nursery() as nursery,
        ):
            host, _, port = (await proxy.address()).rpartition(":")
            await proxy.line(r"^listening on unix:", "stdout")
            balanced = await trio.open_tcp_stream(host, int(port))
            await balanced.send_all(b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n")
            plain = await trio.open_unix_socket(f"{tmp_path}/plain")
            for stream, path in ((balanced, "/a.B/Balanced"), (plain, "/a.B/Plain")):
                client = await start_client(stream, nursery)
                await (await client.request(path)).answer()
            await proxy.line(r" /a\.B/Balanced 192\.0\.2\.7:56324 -> .* UNAVAILABLE ")
            await proxy.line(r" /a\.B/Plain unix: -> .* UNAVAILABLE ")
            nursery.cancel_scope.cancel()

    trio.run(main)
