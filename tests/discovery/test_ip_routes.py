"""Whether this machine knows a way to an address."""

import shutil
import subprocess
import sys

import pytest

from rawgrpc_proxy.discovery.ip_routes import has_route


def test_there_is_a_way_to_oneself() -> None:
    assert has_route("127.0.0.1")


def test_with_files_of_which_there_are_too_few_it_cannot_tell_and_takes_it_that_there_is() -> None:
    code = (
        "import resource; from rawgrpc_proxy.discovery.ip_routes import has_route;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); print(has_route('127.0.0.1'))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=-1, check=True).stdout == b"True\n"


@pytest.mark.skipif(shutil.which("unshare") is None, reason="Linux has it")
def test_a_machine_without_a_network_knows_no_way() -> None:
    code = (
        "from rawgrpc_proxy.discovery.ip_routes import has_route;"
        "print(has_route('10.0.0.1'), has_route('2001:db8::1'), has_route('fe80::1%1'))"
    )
    command = ["unshare", "--user", "--net", "--map-root-user", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, check=False)
    if b"unshare" in done.stderr:
        pytest.skip("this machine has no namespaces for everybody")
    assert done.stdout == b"False False True\n", done.stderr
