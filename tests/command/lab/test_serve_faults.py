"""Faults in `serve`: from a file that the settings name, and from the admin listener, in all workers."""

import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import trio_test

from rawgrpc_proxy.command import cli
from rawgrpc_proxy.command.admin.messages import Refused
from rawgrpc_proxy.command.lab.admin_faults import FaultOrders, summed
from rawgrpc_proxy.command.lab.worker_faults import answers_about
from rawgrpc_proxy.lab.faults.actions import Reset
from rawgrpc_proxy.lab.faults.fault import Fault
from rawgrpc_proxy.lab.faults.injector import Faults
from rawgrpc_proxy.upstream.pool import Pool
from tests.command.test_cli import folder
from tests.command.test_lifecycle import status_of, stop
from tests.command.test_serve_admin import Admin, Running, running
from tests.processes import TIMEOUT_S

__all__ = ["folder"]

DOWN = b'[[faults]]\nname = "down"\ndo = { status = "UNAVAILABLE", message = "on purpose" }\n'


async def set_faults(admin: Admin, toml: bytes | None) -> tuple[int, str]:
    """The answer to POST, or without text to DELETE."""

    def work() -> tuple[int, str]:
        connection = http.client.HTTPConnection(admin.address, timeout=TIMEOUT_S)
        connection.request("DELETE" if toml is None else "POST", "/faults", body=toml)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, text

    return await trio.to_thread.run_sync(work, abandon_on_cancel=True)


async def faults_of(admin: Admin) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = (await admin.ask("/faults")).json["faults"]
    return told


async def statuses(house: Running, times: int) -> list[str]:
    """Of calls, each on a connection of its own, so that all workers have some."""
    found = []
    for _ in range(times):
        async with Pool() as client:
            found.append(await status_of(client, house.address))
    return found


async def new_workers_serve(house: Running, before: set[int]) -> None:
    """Wait until none of these workers is left, and as many others are."""
    while True:
        now = set(await house.worker_pids())
        if len(now) == house.workers and not now & before:
            return
        await trio.sleep(0.05)


@trio_test
async def test_a_file_says_what_goes_wrong_and_the_log_says_that_it_does(folder: Path) -> None:
    rules = folder / "faults.toml"
    rules.write_text('[[faults]]\nname = "two"\ncalls = "first 2"\ndo = { status = "ABORTED" }\n')
    async with running(folder, workers=1, more=f'faults = "{rules}"\n') as house:
        assert await statuses(house, 4) == ["ABORTED", "ABORTED", "OK", "OK"]
        told = (await house.admin.ask("/faults")).json
        assert told == {
            "may_be_set": False,
            "faults": [
                {
                    "name": "two",
                    "fitted": 4,
                    "struck": 2,
                    "rule": {"calls": "first 2", "do": {"status": "ABORTED"}},
                }
            ],
        }
        await house.program.line(f"faults on purpose are in force, by {rules}$")
        status, text = await set_faults(house.admin, DOWN)
        assert (status, "write faults = true in [admin]" in text) == (403, True)
        await stop(house.program)


@trio_test
async def test_a_file_is_read_anew_at_a_reload_and_a_wrong_one_changes_nothing(folder: Path) -> None:
    rules = folder / "faults.toml"
    rules.write_text('[[faults]]\ndo = { status = "ABORTED" }\n')
    async with running(folder, workers=1, more=f'faults = "{rules}"\n') as house:
        assert await statuses(house, 1) == ["ABORTED"]
        rules.write_text('[[faults]]\ndo = { status = "ABORTEDD" }\nshare = 3\n')
        reply = await house.admin.ask("/reload", "POST")
        assert reply.status == 422
        assert f"{rules}: faults[0].do.status is 'ABORTEDD'" in reply.text
        assert f"{rules}: faults[0].share is 3.0; it must be between 0 and 1" in reply.text
        rules.write_text('[[faults]]\ndo = { status = "DATA_LOSS" }\n')
        assert (await house.admin.ask("/reload", "POST")).status == 200
        assert await statuses(house, 1) == ["DATA_LOSS"]
        await stop(house.program)


@trio_test
async def test_what_is_set_holds_in_all_workers_and_counts_are_their_sum(folder: Path) -> None:
    async with running(folder, workers=2, about="faults = true\n") as house:
        assert (await house.admin.ask("/faults")).json == {"may_be_set": True, "faults": []}
        assert await statuses(house, 2) == ["OK"] * 2
        assert (await set_faults(house.admin, DOWN))[0] == 200
        assert await statuses(house, 8) == ["UNAVAILABLE"] * 8
        (rule,) = await faults_of(house.admin)
        assert (rule["name"], rule["fitted"], rule["struck"]) == ("down", 8, 8)
        # In the place of the one of its name, and from the beginning.
        assert (await set_faults(house.admin, DOWN.replace(b"UNAVAILABLE", b"ABORTED")))[0] == 200
        assert await statuses(house, 4) == ["ABORTED"] * 4
        (rule,) = await faults_of(house.admin)
        assert (rule["fitted"], rule["rule"]["do"]["status"]) == (4, "ABORTED")
        assert (await set_faults(house.admin, None))[0] == 200
        assert await statuses(house, 4) == ["OK"] * 4
        assert await faults_of(house.admin) == []
        await house.program.line("admin: faults were set by 127.0.0.1:")
        await house.program.line("admin: all faults were taken away by 127.0.0.1:")
        await stop(house.program)


@trio_test
async def test_rules_that_are_wrong_are_told_and_change_nothing(folder: Path) -> None:
    async with running(folder, workers=1, about="faults = true\n") as house:
        assert (await set_faults(house.admin, DOWN))[0] == 200
        status, text = await set_faults(house.admin, b'[[faults]]\nshare = 2\ndo = "restet"\n')
        assert status == 422
        assert "faults[0].share is 2.0; it must be between 0 and 1\n" in text
        assert "(did you mean reset?)" in text
        assert await statuses(house, 2) == ["UNAVAILABLE"] * 2
        await stop(house.program)


@trio_test
async def test_rules_of_any_length_that_is_taken_reach_all_workers(folder: Path) -> None:
    comment = b"# " + "ü".encode() * 8000 + b"\n"
    async with running(folder, workers=2, about="faults = true\n") as house:
        assert (await set_faults(house.admin, comment + DOWN))[0] == 200
        assert await statuses(house, 4) == ["UNAVAILABLE"] * 4
        assert (await set_faults(house.admin, b"#" * 16_384 + b"\n" + DOWN))[0] == 413
        await stop(house.program)


@trio_test
async def test_workers_that_come_later_have_what_was_set(folder: Path) -> None:
    rules = folder / "faults.toml"
    rules.write_text('[[faults]]\nname = "from the file"\ndo = { status = "ABORTED" }\n')
    async with running(folder, workers=2, more=f'faults = "{rules}"\n', about="faults = true\n") as house:
        assert (await set_faults(house.admin, None))[0] == 200
        assert (await set_faults(house.admin, DOWN))[0] == 200
        # After a crash, after a reload, and when the admin process is another one.
        before = set(await house.worker_pids())
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await new_workers_serve(house, before)
        await told_by_all(house, ["down"])
        assert await statuses(house, 4) == ["UNAVAILABLE"] * 4
        before = set(await house.worker_pids())
        os.kill(await house.admin_pid(), signal.SIGKILL)
        await house.admin.serving()
        assert (await house.admin.ask("/reload", "POST")).status == 200
        await new_workers_serve(house, before)
        await told_by_all(house, ["down"])
        assert await statuses(house, 4) == ["UNAVAILABLE"] * 4
        await stop(house.program)


async def told_by_all(house: Running, names: list[str]) -> None:
    """Wait until the workers have these rules, and no others: those that have just come are told in a moment."""
    await house.admin.until("/faults", lambda reply: [each["name"] for each in reply.json["faults"]] == names)


def test_check_tells_what_is_wrong_with_the_faults_and_shows_where_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules, settings = tmp_path / "faults.toml", tmp_path / "proxy.toml"
    settings.write_text(
        f'faults = "{rules}"\n[[listeners]]\naddress = ":1"\n[clusters.c]\nendpoints = ["a:1"]\n'
        '[[routes]]\ncluster = "c"\n'
    )
    assert cli.main(["check", str(settings)]) == 2
    assert "No such file" in capsys.readouterr().err
    rules.write_text('[[faults]]\ndo = "cutt"\nshare = 2\n')
    assert cli.main(["check", str(settings)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"rawgrpc-proxy: {rules}: faults[0].do is 'cutt'")
    assert second.startswith(f"rawgrpc-proxy: {rules}: faults[0].share is 2.0")
    rules.write_text('[[faults]]\ndo = "cut"\n')
    assert cli.main(["check", str(settings)]) == 0
    assert f'faults = "{rules}"' in capsys.readouterr().out


def test_serve_does_not_load_what_faults_need_unless_there_are_some() -> None:
    script = (
        "import sys, rawgrpc_proxy.command.cli, rawgrpc_proxy.command.worker, rawgrpc_proxy.command.admin_process; "
        "print(sorted(name for name in sys.modules if 'lab.faults' in name))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert loaded.stdout == "[]\n"


# ------------------------------------------------------------------ what is kept for workers to come


def rules_named(*names: str) -> str:
    return "".join(f'[[faults]]\nname = "{name}"\ndo = "cut"\n' for name in names)


def test_what_was_replaced_as_a_whole_need_not_be_told_any_more() -> None:
    orders = FaultOrders()
    for toml in (rules_named("a", "b"), rules_named("a"), rules_named("c"), rules_named("c", "a")):
        assert orders.put(toml) == []
    assert orders.orders == [("put_faults", rules_named("a", "b")), ("put_faults", rules_named("c", "a"))]
    orders.clear()
    assert orders.orders == [("clear_faults", None)]
    assert FaultOrders(json.loads(json.dumps(orders.orders))).orders == orders.orders


def test_what_is_wrong_is_no_order() -> None:
    orders = FaultOrders()
    assert orders.put("seed = 1")[0].startswith("faults is empty")
    assert orders.orders == []


def test_orders_are_bounded() -> None:
    orders = FaultOrders()
    for number in range(64):
        assert orders.put(rules_named(f"n{number}")) == []
    with pytest.raises(Refused, match="DELETE /faults"):
        orders.put(rules_named("one too many"))
    assert orders.put(rules_named("n5")) == []
    assert len(orders.orders) == 64


def test_the_rules_of_workers_are_summed_by_name() -> None:
    one, other = {"name": "a", "rule": {}}, {"name": "b", "rule": {}}
    assert summed(
        [
            [{**one, "fitted": 2, "struck": 1}],
            [{**one, "fitted": 3, "struck": 3}, {**other, "fitted": 1, "struck": 0}],
        ]
    ) == [{**one, "fitted": 5, "struck": 4}, {**other, "fitted": 1, "struck": 0}]


def test_secrets_that_a_rule_looks_for_are_not_told() -> None:
    metadata = {"authorization": "Bearer s3cret", "x-user": "alice"}
    faults = Faults([Fault(metadata=metadata, do=Reset())])
    told: Any = answers_about(faults)["faults"](None)
    assert told[0]["rule"]["metadata"] == {"authorization": "[redacted]", "x-user": "alice"}
