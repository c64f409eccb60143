"""`GET /tap`: what may be asked for, and by whom."""

import json

import pytest

from tests.command.admin.house import a_house, run
from tests.proxy.house import until


def test_what_is_asked_for_reaches_the_workers_and_what_they_tell_comes_line_by_line() -> None:
    async def main() -> None:
        async with a_house() as house:
            house.source.rows = [b'{"event":"begin"}\n', b"\n", b'{"event":"end"}\n']
            path = "/tap?mode=frames&filter=method=/p.S/*&filter=status!=OK&redact=x-user&payload=1"
            reply = await house.ask(path)
            assert (reply.status, reply.fields["content-type"]) == (200, "application/x-ndjson")
            assert [json.loads(line)["event"] for line in reply.text.split("\n") if line] == ["begin", "end"]
            [wishes] = house.source.wishes
            assert (wishes.mode, wishes.side, wishes.payload) == ("frames", "both", True)
            assert (list(wishes.filters), list(wishes.redact)) == (
                ["method=/p.S/*", "status!=OK"],
                ["x-user"],
            )
            await until(lambda: house.source.closed == 1)
            # Who has looked at others' messages is to be found in the log.
            [said] = house.changes
            assert said.startswith("tap of frames (method=/p.S/*; status!=OK), by 127.0.0.1:")

    run(main)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("colour=red", "'colour' is nothing that can be said of a tap"),
        ("mode=all", "mode is 'all'; write one of messages, frames, findings"),
        ("side=left", "side is 'left'"),
        ("filter=x=1", "'x' is nothing to filter by"),
        # Else its value could be found out by who sees which calls match.
        ("filter=metadata.authorization=Bearer*", "authorization is a secret"),
        ("filter=metadata.x-user!=a&redact=X-User", "x-user is a secret"),
        ("payload=yes", "payload is 'yes'; write 1 or 0"),
        ("mode=frames&mode=messages", "mode stands there more than once"),
        ("filter=method=/" + "x" * 500, "more than 500 characters"),
        ("&".join(["redact=x"] * 50), "Max number of fields exceeded"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(query: str, said: str) -> None:
    async def main() -> None:
        async with a_house() as house:
            house.source.rows = [b"{}\n"]
            reply = await house.ask(f"/tap?{query}")
            assert reply.status == 400
            assert said in reply.text
            assert (house.source.wishes, house.changes) == ([], [])

    run(main)


def test_where_it_is_not_allowed_it_is_refused_and_nobody_is_said_to_have_looked() -> None:
    async def main() -> None:
        async with a_house() as house:
            assert (await house.ask("/tap")).status == 403
            assert (await house.ask("/tap", "HEAD")).status == 200
            assert (await house.ask("/tap", "POST")).status == 405
            assert house.changes == []

    run(main)


@pytest.mark.parametrize(
    "fields",
    [
        {"Origin": "http://evil.example"},
        {"Sec_Fetch_Site": "cross-site"},
        # A link leads to what is shown, and to nothing that takes a place for as long as it is open.
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"},
        {"Host": "evil.example"},
    ],
)
def test_no_page_of_others_sees_what_passes_or_takes_a_place(fields: dict[str, str]) -> None:
    async def main() -> None:
        async with a_house() as house:
            house.source.rows = [b'{"event":"begin"}\n']
            reply = await house.ask("/tap", "GET", None, **fields)
            assert reply.status in {403, 421}
            assert house.source.wishes == []

    run(main)
