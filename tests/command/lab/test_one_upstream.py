"""What the commands before one upstream have in common: where they listen."""

import errno
import os
import socket
from pathlib import Path

import pytest

from rawgrpc_proxy.command import cli


@pytest.mark.parametrize(
    "command",
    [["tap"], ["lint"], ["faults", "--preset", "ping"], ["record", "-o", "FILE"]],
    ids=lambda each: each[0],
)
def test_an_address_that_is_taken_is_told_in_one_line_and_leaves_nothing_behind(
    command: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tmp_path / "calls") if each == "FILE" else each for each in command]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = f"127.0.0.1:{listener.getsockname()[1]}"
        assert cli.main([*arguments, "--upstream", "127.0.0.1:1", "--listen", taken]) == 2
    said = capfd.readouterr()
    assert said.err == f"rawgrpc-proxy: cannot listen on {taken}: {os.strerror(errno.EADDRINUSE)}\n"
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []
