"""/etc/hosts, as those read it who ask DNS themselves."""

import os
from pathlib import Path

from rawgrpc_proxy.discovery.hosts_file import HostsFile


def test_a_name_has_all_the_addresses_that_stand_before_it(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(
        "# 10.0.0.9 orders\n10.0.0.1  Orders.Internal orders # bills\n::1 orders\n10.0.0.2\torders-old\n\norders\n"
    )
    hosts = HostsFile(str(path))
    assert hosts.addresses("orders") == ["10.0.0.1", "::1"]
    assert hosts.addresses("ORDERS.internal") == ["10.0.0.1"]
    assert hosts.addresses("bills") == []
    assert hosts.addresses("10.0.0.1") == []


def test_a_file_that_has_changed_is_read_again_and_one_that_is_not_there_has_no_names(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    hosts = HostsFile(str(path))
    assert hosts.addresses("orders") == []
    path.write_text("10.0.0.1 orders\n")
    assert hosts.addresses("orders") == ["10.0.0.1"]
    path.write_text("10.0.0.22 orders\n")
    os.utime(path, (1, 1))  # whatever the clock of the file system
    assert hosts.addresses("orders") == ["10.0.0.22"]
    path.unlink()
    assert hosts.addresses("orders") == []


def test_bytes_that_are_no_text_spoil_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(b"10.0.0.1 \xff\xfe\n10.0.0.2 orders\n")
    assert HostsFile(str(path)).addresses("orders") == ["10.0.0.2"]
