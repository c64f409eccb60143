"""Faults in TOML: what is read, every mistake at once with its remedy, and the way back."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.codes import ErrorCode, Status
from rawgrpc_proxy.config_words import SIZE, SettingsError
from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.http2.frames import Setting
from rawgrpc_proxy.lab.faults import actions, places
from rawgrpc_proxy.lab.faults.actions import End
from rawgrpc_proxy.lab.faults.fault import Fault
from rawgrpc_proxy.lab.faults.places import Part
from rawgrpc_proxy.lab.faults.presets import PRESETS
from rawgrpc_proxy.lab.faults.reading import faults_of, faults_of_file, faults_of_text
from rawgrpc_proxy.lab.faults.vocabulary import ACTIONS, PLACES
from rawgrpc_proxy.lab.faults.writing import in_words, written


def problems(toml: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        faults_of_text(toml)
    return caught.value.problems


def problem_of(rule: str) -> str:
    """The only one of this rule."""
    (problem,) = problems(f"[[faults]]\n{rule}")
    return problem


def fault_of(rule: str) -> Fault:
    (fault,) = faults_of_text(f"[[faults]]\n{rule}").faults
    return fault


def action_of(do: str) -> Any:
    (action,) = fault_of(f"do = {do}").do
    return action


def place_of(where: str, do: str = '"silence"') -> Any:
    return fault_of(f"where = {where}\ndo = {do}").where


def test_a_rule_with_all_its_keys_is_read() -> None:
    read = faults_of_text(
        """
        seed = 7
        [[faults]]
        name = "cart"
        side = "upstream"
        method = "/shop.Cart/*"
        metadata = { x-user = "alice*" }
        peer = ["10.0.0.0/8"]
        calls = "first 2"
        share = 0.5
        where = { message = 2, of = "request" }
        do = [{ delay = "200ms", jitter = "1s" }, { reset = "CANCEL", towards = "server" }]
        """
    )
    assert read.seed == 7
    assert read.faults == (
        Fault(
            name="cart",
            side=Side.UPSTREAM,
            method="/shop.Cart/*",
            metadata={"x-user": "alice*"},
            peer=["10.0.0.0/8"],
            calls="first 2",
            share=0.5,
            where=places.AfterMessage(number=2, of=Part.REQUEST),
            do=(
                actions.Delay(seconds=0.2, jitter=1.0),
                actions.Reset(code=ErrorCode.CANCEL, towards=End.SERVER),
            ),
        ),
    )


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ('"headers"', places.BeforeHeaders()),
        ('"response_headers"', places.BeforeHeaders(of=Part.RESPONSE)),
        ("{ message = 3 }", places.AfterMessage(number=3)),
        ('{ byte = "1KiB", of = "request" }', places.AfterBytes(count=1024, of=Part.REQUEST)),
        (
            '{ frame = "DATA", nth = 2, before = true }',
            places.OnFrame(frame="DATA", nth=2, before=True),
        ),
        ('"trailers"', places.AtTrailers()),
        ('{ after = "1.5s" }', places.AfterTime(seconds=1.5)),
        ("{ after = 2, connection = true }", places.AfterTime(seconds=2, of_link=True)),
        ('"connect"', places.AtConnect()),
        ("{ connect = true }", places.AtConnect()),
    ],
)
def test_places_are_read(where: str, expected: places.Place) -> None:
    assert place_of(where) == expected


@pytest.mark.parametrize(
    ("do", "expected"),
    [
        (
            '{ status = "UNAVAILABLE", message = "later", metadata = { retry-after = "1", a-bin = "AAE" } }',
            actions.AnswerStatus(
                status=Status.UNAVAILABLE,
                message="later",
                metadata=[("retry-after", "1"), ("a-bin", b"\x00\x01")],
            ),
        ),
        ("{ status = 14 }", actions.AnswerStatus(status=Status.UNAVAILABLE)),
        (
            '{ http = 503, body = "no", content_type = "text/plain", headers = { x-a = ["1", "2"] } }',
            actions.AnswerHttp(
                status=503, body="no", content_type="text/plain", headers=[("x-a", "1"), ("x-a", "2")]
            ),
        ),
        ('"reset"', actions.Reset()),
        ("{ reset = 99 }", actions.Reset(code=99)),
        (
            '{ goaway = "NO_ERROR", below = 1, debug = "bye" }',
            actions.Goaway(code=ErrorCode.NO_ERROR, below=1, debug="bye"),
        ),
        ('"cut"', actions.Cut()),
        ('{ cut = "rst" }', actions.Cut(reset=True)),
        ('"silence"', actions.Silence()),
        ('"half_close"', actions.HalfClose()),
        (
            "{ settings = { MAX_CONCURRENT_STREAMS = 1 } }",
            actions.ChangeSettings(settings={Setting.MAX_CONCURRENT_STREAMS: 1}),
        ),
        ("{ pings = 3 }", actions.PingFlood(count=3)),
        ('{ latency = "50ms" }', actions.Latency(seconds=0.05)),
        ('{ bandwidth = "64KiB" }', actions.Bandwidth(bytes_per_s=65536)),
        ('"stall"', actions.Stall()),
        ('{ stall = "5s" }', actions.Stall(seconds=5.0)),
        ('"drop_trailers"', actions.DropTrailers()),
        ('"split_trailers_only"', actions.SplitTrailersOnly()),
        ('"trailers_before_data"', actions.TrailersBeforeData()),
        ('"drop_status"', actions.DropStatus()),
        ('{ bad_message = "%" }', actions.BadGrpcMessage(value=b"%")),
        ('"cut_message"', actions.CutMessage()),
        ("{ cut_message = 9 }", actions.CutMessage(keep=9)),
        ('"double_message"', actions.DoubleMessage()),
        ("{ flip_bits = 4 }", actions.FlipBits(bits=4)),
        ('{ split_frame = 9, frame = "HEADERS" }', actions.SplitFrame(at=9, frame="HEADERS")),
        ("{ pad_frame = 255, all = true }", actions.PadFrame(bytes=255, all=True)),
        ('{ unknown_frame = 0xfb, payload = "x" }', actions.UnknownFrame(type=0xFB, payload=b"x")),
    ],
)
def test_actions_are_read(do: str, expected: actions.Action) -> None:
    where = ' where = { message = 1, of = "request" }' if isinstance(expected, actions.OF_MESSAGES) else ""
    (action,) = fault_of(f"{where}\ndo = {do}").do
    assert action == expected


def test_each_example_of_a_word_can_be_read() -> None:
    for word, spec in ACTIONS.items():
        if spec.sample and " or " not in spec.sample:
            where = "where = { message = 1 }\n" if spec.cls in actions.OF_MESSAGES else ""
            fault_of(f"{where}do = {{ {spec.example(word)} }}")
    for word, spec in PLACES.items():
        if spec.sample:
            place_of(f"{{ {spec.example(word)} }}")


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        (
            'naem = "x"\ndo = "cut"',
            (
                "faults[0].naem is not known (did you mean name?); known here: name, side, method, metadata, peer, "
                "calls, share, where, do"
            ),
        ),
        ('name = 3\ndo = "cut"', 'faults[0].name is 3; it must be text, in quotation marks: "…"'),
        (
            'side = "upstraem"\ndo = "cut"',
            'faults[0].side is \'upstraem\'; it must be "downstream" or "upstream" (did you mean upstream?)',
        ),
        (
            'share = "20%"\ndo = "cut"',
            "faults[0].share is '20%'; it must be a number from 0 to 1: 20% is 0.2",
        ),
        ('share = 2\ndo = "cut"', "faults[0].share is 2.0; it must be between 0 and 1"),
        (
            'peer = "10.0.0.0/8"\ndo = "cut"',
            "faults[0].peer is '10.0.0.0/8'; it must be a list: [\"10.0.0.0/8\"]",
        ),
        (
            'metadata = { a = 1 }\ndo = "cut"',
            (
                'faults[0].metadata is a table; it must be a table of names with text, like { x-user = "alice*" }; '
                "* stands for anything"
            ),
        ),
        ("do = []", "faults[0].do is empty; it says what is done"),
        (
            "do = 3",
            f"faults[0].do is a number; it must be a word or a table, of {', '.join(ACTIONS)}",
        ),
        (
            'do = "delay"',
            "faults[0].do is 'delay' alone; write { delay = \"200ms\" }",
        ),
        (
            'do = ["cut", "restet"]',
            f"faults[0].do[1] is 'restet', which is no action (did you mean reset?); known: {', '.join(ACTIONS)}",
        ),
        (
            'do = { resett = "CANCEL" }',
            (
                "faults[0].do does not say which action (did you mean reset?); it must have one of "
                f"{', '.join(ACTIONS)}"
            ),
        ),
        (
            'do = { reset = 1, cut = "fin" }',
            "faults[0].do has reset and cut; write one in a table, as a list of tables",
        ),
        (
            'do = { cut = "RST" }',
            'faults[0].do.cut is \'RST\'; it must be "fin" or "rst" (did you mean rst?)',
        ),
        (
            "do = { silence = 3 }",
            'faults[0].do.silence takes no value; write "silence" alone, or silence = true',
        ),
        (
            'do = { cut = "fin", tawards = 3 }',
            "faults[0].do.tawards is not known; known here: cut",
        ),
        (
            'do = { reset = 1, towrds = "client" }',
            "faults[0].do.towrds is not known (did you mean towards?); known here: reset, towards",
        ),
        (
            'do = { delay = "1 sec" }',
            (
                "faults[0].do.delay is '1 sec'; it must be a time: a number of seconds, or text like "
                '"250ms", "1.5s", "5m", "2h"'
            ),
        ),
        (
            'do = { bandwidth = "64 kib" }',
            (
                "faults[0].do.bandwidth is '64 kib'; it must be a size: a number of bytes, or text like "
                '"64KiB", "1.5MiB"'
            ),
        ),
        ("do = { pings = 0 }", "faults[0].do.pings is 0; it must be between 1 and 10000"),
        (
            f'do = {{ goaway = "NO_ERROR", debug = "{"ä" * 8189}" }}',
            (
                "faults[0].do.debug has 16378 bytes; it may have 16376, or the frame would be longer than each peer "
                "takes (16384, SETTINGS_MAX_FRAME_SIZE)"
            ),
        ),
        (
            f'do = {{ unknown_frame = 0xfb, payload = "{"x" * 16385}" }}',
            (
                "faults[0].do.payload has 16385 bytes; it may have 16384, or the frame would be longer than each peer "
                "takes (16384, SETTINGS_MAX_FRAME_SIZE)"
            ),
        ),
        ("do = { bandwidth = inf }", f"faults[0].do.bandwidth is inf; it must be {SIZE}"),
        ("do = { pings = true }", "faults[0].do.pings is True; it must be a whole number"),
        (
            "do = { settings = { MAX_FRAME = 3 } }",
            (
                "faults[0].do.settings: MAX_FRAME is no setting (did you mean MAX_FRAME_SIZE?); known: "
                f"{', '.join(Setting.__members__)}"
            ),
        ),
        (
            'do = { settings = { MAX_FRAME_SIZE = "3" } }',
            "faults[0].do.settings: MAX_FRAME_SIZE is '3'; it must be a whole number",
        ),
        (
            'do = { status = 14, metadata = { a-bin = "?" } }',
            "faults[0].do.metadata: a-bin = '?' is no base64, as names in -bin have",
        ),
        (
            "do = { status = 14, metadata = { a = 1 } }",
            'faults[0].do.metadata: a = 1 is no text; write "1"',
        ),
        (
            'where = "trailer"\ndo = "cut"',
            f"faults[0].where is 'trailer', which is no place (did you mean trailers?); known: {', '.join(PLACES)}",
        ),
        (
            'where = "message"\ndo = "cut"',
            "faults[0].where is 'message' alone; write { message = 1 }",
        ),
        (
            'where = "connect"\nmethod = "/a.B/*"\ndo = "cut"',
            "faults[0] cannot be: method and metadata are of calls, and at this place there is none",
        ),
        (
            'where = "connect"\ndo = { status = 14 }',
            (
                "faults[0] cannot be: status is done to calls, and at this place there is none; "
                "give it a place in a call"
            ),
        ),
    ],
)
def test_a_mistake_is_told_with_its_place_and_its_remedy(rule: str, problem: str) -> None:
    assert problem_of(rule) == problem


def test_all_mistakes_are_told_at_once() -> None:
    assert len(
        problems(
            """
            seeds = 1
            preset = "flaky"
            calls = "first 2"
            [[faults]]
            method = "Cart"
            calls = "frist 2"
            do = [{ status = "UNAVAILBLE", message = 3 }, { delay = -1, jitter = "x" }]
            [[faults]]
            where = { message = 0, of = "both" }
            """
        )
    ) == len(("seeds", "preset", "calls", "method", "calls", "status", "message", "delay", "jitter")) + len(
        ("message", "of", "do")
    )


def test_a_status_that_was_misspelt_is_guessed() -> None:
    assert problem_of('do = { status = "UNAVAILBLE" }').endswith("(did you mean UNAVAILABLE?)")


def test_the_top_level_has_few_keys() -> None:
    assert problems("")[0].startswith("faults is empty: nothing would happen")
    assert problems('faults = "cut"')[0].startswith("faults is text; it must be a list of tables")
    assert problems('[[faults]]\ndo = "cut"\n[[faults]]\ndo = "cut"\n[faults.x]')[0].startswith(
        "faults[1].x is"
    )
    assert problems('share = 1\n[[faults]]\ndo = "cut"') == [
        "share is not known; it belongs into [[faults]]; known here: seed, preset, faults"
    ]
    assert problems('seed = "x"\n[[faults]]\ndo = "cut"') == ["seed is 'x'; it must be a whole number"]
    assert problems("faults = [3]") == [
        "faults[0] is a number; it must be a table, like { do = { reset = … } }"
    ]


@pytest.mark.parametrize(
    "toml",
    [
        "= 3",
        ".".join("a" * 8000) + " = 1",
        "a = " + "[" * 8000,
        "seed = " + "9" * 8000,
        "[[faults]]\ndo = { pings = 0x" + "f" * 8000 + " }",
    ],
)
def test_what_is_not_toml_or_too_much_of_it_is_refused(toml: str) -> None:
    (problem,) = problems(toml)
    assert "TOML" in problem


def test_two_rules_of_one_name_are_told() -> None:
    toml = 'preset = "lb-502"\n[[faults]]\nname = "a"\ndo = "cut"\n[[faults]]\nname = "a"\ndo = "cut"\n'
    assert problems(toml) == ["faults[1].name is 'a', as in faults[0]"]
    assert problems('preset = "lb-502"\n[[faults]]\nname = "lb-502"\ndo = "cut"\n') == [
        "faults[0].name is 'lb-502', as in preset lb-502"
    ]


def test_a_preset_and_rules_go_together_the_preset_first() -> None:
    read = faults_of_text('preset = "lb-502"\n[[faults]]\nname = "own"\ndo = "cut"')
    assert [fault.name for fault in read.faults] == ["lb-502", "own"]
    assert read.seed is None
    assert problems('preset = "lb502"')[0].startswith(
        "preset is 'lb502', which is none (did you mean lb-502?); known: goaway, "
    )


def test_a_file_is_named_in_front_of_its_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "faults.toml"
    path.write_text('[[faults]]\ndo = "cut"\n')
    assert len(faults_of_file(path).faults) == 1
    path.write_text('[[faults]]\ndo = "cutt"\nside = 3\n')
    with pytest.raises(SettingsError) as caught:
        faults_of_file(path)
    assert [problem.startswith(f"{path}: faults[0].") for problem in caught.value.problems] == [True, True]
    with pytest.raises(SettingsError, match="No such file"):
        faults_of_file(tmp_path / "none.toml")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda each: (
        st.lists(each, max_size=3)
        | st.dictionaries(
            st.sampled_from([*ACTIONS, *PLACES, "of", "towards", "x"]) | st.text(), each, max_size=3
        )
    ),
    max_leaves=8,
)


@given(
    tree=st.dictionaries(
        st.sampled_from(["seed", "preset", "faults", "x"]),
        JSON | st.lists(st.dictionaries(st.sampled_from(["do", "where", "name", "calls", "share"]), JSON)),
    )
)
def test_whatever_stands_there_is_read_or_refused_in_words(tree: dict[str, Any]) -> None:
    try:
        faults_of(tree)
    except SettingsError as error:
        assert all(error.problems)  # noqa: PT017


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_written_as_it_is_read(name: str) -> None:
    faults = PRESETS[name].faults
    assert faults_of({"faults": [written(fault) for fault in faults]}).faults == faults
    assert all(fault.name for fault in faults)


OF = st.sampled_from(Part)
TIMES = st.floats(0, 1000)
SOME_ACTIONS = st.one_of(
    st.builds(
        actions.AnswerStatus,
        status=st.sampled_from(Status),
        message=st.text(),
        metadata=st.just((("a", "1"), ("a", "2"), ("b-bin", b"\xff"))) | st.just(()),
    ),
    st.builds(actions.AnswerHttp, status=st.integers(200, 599), body=st.text()),
    st.builds(actions.Reset, code=st.integers(0, 2**32 - 1), towards=st.sampled_from(End)),
    st.builds(actions.Goaway, code=st.sampled_from(ErrorCode).map(int), below=st.integers(0, 9)),
    st.builds(actions.Cut, reset=st.booleans()),
    st.builds(actions.Silence),
    st.builds(
        actions.ChangeSettings,
        settings=st.dictionaries(st.just(Setting.MAX_CONCURRENT_STREAMS), st.integers(0, 9), min_size=1),
    ),
    st.builds(actions.Delay, seconds=TIMES, jitter=TIMES),
    st.builds(actions.Stall, seconds=st.none() | TIMES),
    st.builds(actions.BadGrpcMessage),
    st.builds(actions.SplitFrame, at=st.integers(0, 9), all=st.booleans()),
)
SOME_PLACES = st.one_of(
    st.builds(places.BeforeHeaders, of=OF),
    st.builds(places.OnFrame, frame=st.sampled_from(["DATA", "HEADERS"]), of=OF, nth=st.integers(1, 9)),
    st.builds(places.AfterTime, seconds=TIMES, of=OF),
)


@given(action=SOME_ACTIONS, where=SOME_PLACES, share=st.floats(0, 1), side=st.sampled_from([*Side][:2]))
def test_what_is_written_is_read_as_the_same(
    action: actions.Action, where: places.Place, share: float, side: Side
) -> None:
    try:
        fault = Fault(name="a", do=(action, actions.Cut()), where=where, share=share, side=side)
    except ValueError:
        return  # cannot be done there
    assert faults_of({"faults": [written(fault)]}).faults == (fault,)


@pytest.mark.parametrize(
    ("do", "words"),
    [
        ('{ status = "UNAVAILABLE", message = "x" }', "status UNAVAILABLE"),
        ('["cut", { delay = "200ms" }]', "cut, delay 0.2 s"),
        ('{ latency = 0.25, jitter = "50ms" }', "latency 0.25 to 0.3 s"),
        ('{ bandwidth = "64KiB" }', "bandwidth 65536 B/s"),
        ('["stall", { stall = "2s" }]', "stall, stall 2 s"),
        ('["reset", { reset = 99 }]', "reset INTERNAL_ERROR, reset 99"),
        ('"half_close"', "half close"),
        ("{ settings = { MAX_CONCURRENT_STREAMS = 1 } }", "settings MAX_CONCURRENT_STREAMS=1"),
    ],
)
def test_what_a_fault_does_is_said_shortly(do: str, words: str) -> None:
    assert in_words(fault_of(f"do = {do}")) == words


def test_what_just_fits_into_a_frame_is_taken() -> None:
    assert action_of(f'{{ goaway = "NO_ERROR", debug = "{"x" * 16376}" }}').debug == "x" * 16376
    assert action_of(f'{{ unknown_frame = 0xfb, payload = "{"x" * 16384}" }}').payload == b"x" * 16384
