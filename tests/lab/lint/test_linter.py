"""The linter between two ends: whose fault a finding is, what has crossed on the way, what is counted, what is kept."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import trio_test

from rawgrpc_proxy import Client, Pool, RpcError, Server, Status, transparent_handler
from rawgrpc_proxy.codes import ErrorCode
from rawgrpc_proxy.command.demo import TRIALS, backend, make_call
from rawgrpc_proxy.config import Engine, Http2Settings
from rawgrpc_proxy.errors import Side
from rawgrpc_proxy.http2 import frames as h2
from rawgrpc_proxy.lab import link_view
from rawgrpc_proxy.lab.events import Sender
from rawgrpc_proxy.lab.link_view import LinkView
from rawgrpc_proxy.lab.lint.findings import MAX_METHODS, OTHER_METHODS, Findings
from rawgrpc_proxy.lab.lint.linter import Linter
from rawgrpc_proxy.lab.lint.rules import RULES, Severity
from rawgrpc_proxy.lab.lint.state import MAX_CLOSED
from rawgrpc_proxy.lab.views import Views
from rawgrpc_proxy.observe.call_log import CallLog
from tests.http2.peer import (
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    PREFACE,
    SETTINGS_ACK,
    Header,
    block,
    data,
    goaway,
    headers,
    ping,
    rst_stream,
    settings,
    window_update,
)
from tests.lab.lint.talk import (
    CLIENT,
    MESSAGE,
    METHOD,
    REQUEST,
    RESPONSE,
    SERVER,
    TRAILERS,
    Talk,
    changed,
    link,
)
from tests.proxy.house import on_every_engine

BAD_REQUEST = [field for field in REQUEST if field[0] != b"te"]

# --- good traffic


def test_a_good_exchange_has_no_findings() -> None:
    talk = Talk()
    talk.greet(client={INITIAL_WINDOW_SIZE: 1 << 20}, server={MAX_CONCURRENT_STREAMS: 100})
    talk.client(window_update(0, 1 << 20), ping())
    talk.server(ping(ack=True))
    for stream in range(1, 41, 2):
        talk.ask([*REQUEST, (b"x-trace-bin", b"AAEC,/+8="), (b"grpc-timeout", b"100m")], stream=stream)
        talk.answer(trailers=[(b"grpc-status", b"5"), (b"grpc-message", b"100%25 wrong")], stream=stream)
    talk.ask(stream=41, ends=False)
    talk.server(headers(41, [*RESPONSE, (b"grpc-status", b"12")], end_stream=True), rst_stream(41, 0))
    talk.server(goaway(41))
    talk.view.close(talk.now)
    assert talk.told == []


def test_what_has_crossed_on_the_way_is_no_finding() -> None:
    talk = Talk()
    talk.greet(server={INITIAL_WINDOW_SIZE: 100, MAX_CONCURRENT_STREAMS: 2})
    talk.ask(ends=False)
    talk.server(settings({INITIAL_WINDOW_SIZE: 5, MAX_CONCURRENT_STREAMS: 0}))
    talk.client(data(1, bytes(90)))  # by the window that it knows
    talk.ask(stream=3, ends=False)
    talk.client(SETTINGS_ACK)
    talk.client(rst_stream(3))
    talk.server(headers(3, RESPONSE), data(3, MESSAGE), headers(3, TRAILERS, end_stream=True))
    talk.server(headers(1, [*RESPONSE, *TRAILERS], end_stream=True), rst_stream(1, 0))
    talk.client(data(1), headers(1, [(b"x", b"y")], end_stream=True), rst_stream(1, ErrorCode.CANCEL))
    talk.server(rst_stream(1, ErrorCode.STREAM_CLOSED))
    assert talk.told == []


def test_a_stream_that_has_crossed_goaway_is_no_finding() -> None:
    talk = Talk()
    talk.greet()
    talk.server(goaway(2**31 - 1))
    talk.later(1)
    talk.ask()
    talk.answer()
    assert talk.told == []


def test_settings_that_come_in_a_row_are_acknowledged_in_a_row() -> None:
    talk = Talk()
    talk.greet()
    talk.server(settings({INITIAL_WINDOW_SIZE: 100}) * 100)
    talk.client(SETTINGS_ACK * 100)
    assert talk.told == []
    talk.client(SETTINGS_ACK)
    assert talk.found == [("settings-ack-unexpected", CLIENT, "")]


def test_a_server_may_answer_in_the_encoding_of_the_request() -> None:
    talk = Talk()
    talk.greet()
    talk.ask([*REQUEST, (b"grpc-encoding", b"zstd"), (b"grpc-accept-encoding", b"gzip, br")])
    talk.answer([*RESPONSE, (b"grpc-encoding", b"zstd")])
    talk.ask([*REQUEST, (b"grpc-accept-encoding", b"gzip, br")], stream=3)
    talk.answer([*RESPONSE, (b"grpc-encoding", b"br")], stream=3)
    assert talk.told == []


def test_who_has_nothing_to_send_misses_no_window() -> None:
    talk = Talk()
    talk.greet(client={INITIAL_WINDOW_SIZE: 0})
    talk.ask()
    talk.later(60)
    talk.client(rst_stream(1))
    assert talk.told == []


def test_a_window_that_is_made_smaller_counts_once_it_is_acknowledged() -> None:
    talk = Talk()
    talk.greet(server={INITIAL_WINDOW_SIZE: 100})
    talk.ask(ends=False)
    talk.server(settings({INITIAL_WINDOW_SIZE: 5}))
    talk.client(SETTINGS_ACK, data(1, bytes(5)))
    assert talk.found == [("flow-control-overrun", CLIENT, METHOD)]


def test_pings_that_answer_data_are_no_keepalive() -> None:
    talk = Talk()
    talk.greet()
    talk.ask()
    talk.server(headers(1, RESPONSE))
    for _ in range(10):
        talk.server(data(1, MESSAGE))
        talk.client(ping())
        talk.server(ping(ack=True))
        talk.later(1)
    assert talk.told == []


def test_no_status_is_missed_where_header_lists_cannot_be_read() -> None:
    lost = b"\xff\xff\xff\xff\xff\x0f"
    for first, last in ((lost, block(TRAILERS)), (block(RESPONSE), lost)):
        talk = Talk()
        talk.greet()
        talk.ask()
        talk.server(headers(1, encoded=first), data(1, MESSAGE), headers(1, encoded=last, end_stream=True))
        assert [rule for rule, _, _ in talk.found] == ["header-block-undecodable"]


@on_every_engine
@trio_test
async def test_our_own_client_proxy_and_server_break_no_rule(engine: Engine) -> None:
    findings = Findings()
    linter = Linter(findings, proxy_passes_on=False)
    views = Views(linter.tell)
    settings_ = Http2Settings(engine=engine)
    async with Pool(settings=settings_, tap=views) as pool, trio.open_nursery() as nursery:
        behind = await nursery.start(backend(settings_, CallLog("text", _Nowhere())).serve, "127.0.0.1:0")
        server = Server(
            unknown_service_handler=transparent_handler(
                lambda context, _: (context, pool.target(str(behind)))
            ),
            settings=settings_,
            tap=views,
        )
        address = await nursery.start(server.serve, "127.0.0.1:0")
        async with Client(str(address), settings=settings_) as client:
            for trial in TRIALS:
                assert await make_call(client, trial) == list(trial.replies)
            with pytest.raises(RpcError, match="UNIMPLEMENTED"):
                await client.unary_unary("/no.Such/Method", b"")
            async with client.stream_stream(TRIALS[3].path) as left:
                await left.send(b"x" * 200_000)
                assert await left.receive()
            assert left.status is Status.CANCELLED
        nursery.cancel_scope.cancel()
    assert [(each.first.rule.id, each.first.side, each.first.seen) for each in findings.counted] == []
    assert linter.streams_seen == 2 * (len(TRIALS) + 2)


class _Nowhere:
    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


# --- whose fault


def tell_both_links(linter: Linter, request: list[tuple[bytes, bytes]]) -> None:
    """A request on both links of a proxy, which passes it on as it is."""
    for number, side in enumerate((Side.DOWNSTREAM, Side.UPSTREAM), 1):
        view = LinkView(link(number, side), linter.tell)
        view.feed(CLIENT, PREFACE + settings() + headers(1, request) + data(1, MESSAGE, end_stream=True), 1.0)
        view.feed(SERVER, settings() + SETTINGS_ACK, 1.0)


def test_what_a_proxy_passes_on_is_the_fault_of_the_peer() -> None:
    findings = Findings()
    tell_both_links(Linter(findings), BAD_REQUEST)
    [counted] = findings.counted
    assert (counted.first.who, counted.first.side, counted.count) == ("caller", "downstream client", 1)


def test_both_links_are_judged_alike_if_the_proxy_is_to_answer_for_all() -> None:
    findings = Findings()
    tell_both_links(Linter(findings, proxy_passes_on=False), BAD_REQUEST)
    assert {each.first.who for each in findings.counted} == {"caller", "proxy"}


def test_a_proxy_answers_for_its_own_frames() -> None:
    talk = Talk(side=Side.UPSTREAM, proxy_passes_on=True)
    talk.greet()
    talk.client(window_update(0, 0))
    [finding] = talk.told
    assert (finding.who, finding.side) == ("proxy", "upstream client")


def test_the_server_of_an_upstream_link_is_the_upstream() -> None:
    talk = Talk(side=Side.UPSTREAM, proxy_passes_on=True)
    talk.greet()
    talk.ask()
    talk.answer(trailers=[])
    [finding] = talk.told
    assert (finding.rule.id, finding.who, finding.side) == (
        "grpc-status-missing",
        "upstream",
        "upstream server",
    )


# --- what is counted


def test_the_same_finding_is_told_once_and_counted() -> None:
    talk = Talk()
    talk.greet()
    for stream in (1, 3, 5):
        talk.ask(BAD_REQUEST, stream=stream)
        talk.answer(stream=stream)
    talk.ask(changed(BAD_REQUEST, b":path", b"/a.B/C"), stream=7)
    assert talk.found == [("te-missing", CLIENT, METHOD), ("te-missing", CLIENT, "/a.B/C")]
    assert [(each.first.method, each.count, each.first.stream_id) for each in talk.findings.counted] == [
        (METHOD, 3, 1),
        ("/a.B/C", 1, 7),
    ]


def test_the_worst_come_first() -> None:
    talk = Talk()
    talk.greet()
    worst = [talk.findings.worst]
    talk.ask([field for field in REQUEST if field[0] != b"user-agent"])
    worst.append(talk.findings.worst)
    talk.answer(changed(RESPONSE, b":status", b"500"))
    talk.ask(BAD_REQUEST, stream=3)
    talk.answer(stream=3)
    assert [each.first.rule.severity.word for each in talk.findings.counted] == ["error", "warning", "note"]
    worst.append(talk.findings.worst)
    assert worst == [None, Severity.NOTE, Severity.ERROR]


def test_a_status_in_headers_and_in_trailers_is_split_and_doubled() -> None:
    talk = Talk()
    talk.greet()
    talk.ask()
    talk.answer([*RESPONSE, *TRAILERS])
    assert [rule for rule, _, _ in talk.found] == ["trailers-only-split", "grpc-status-duplicate"]


def test_ignored_rules_are_not_told() -> None:
    findings = Findings()
    tell_both_links(Linter(findings, ignore={"te-missing"}), BAD_REQUEST)
    assert findings.counted == []


# --- what is kept


def test_memory_is_bounded_however_many_streams_and_methods_there_are() -> None:
    talk = Talk()
    talk.greet()
    for number in range(2000):
        stream = 2 * number + 1
        talk.ask(changed(BAD_REQUEST, b":path", b"/a.B/%d" % number), body=b"", stream=stream)
        talk.answer(body=b"", stream=stream)
    [state] = talk.linter._links.values()
    assert state.streams == {}
    assert len(state.closed) == MAX_CLOSED
    assert len(talk.findings.counted) == MAX_METHODS + 1
    [other] = [each for each in talk.findings.counted if each.first.method == OTHER_METHODS]
    assert other.count == 2000 - MAX_METHODS
    talk.view.close(talk.now)
    assert talk.linter._links == {}


def test_a_stream_that_the_view_forgets_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_view, "MAX_STREAMS", 10)
    talk = Talk()
    talk.greet()
    for stream in range(1, 101, 2):
        talk.ask(stream=stream)
    [state] = talk.linter._links.values()
    assert len(state.streams) == 10
    assert talk.told == []


@pytest.mark.parametrize("value", [b"", b"AA", b"AA==", b"AAA", b"AAA=", b"AAAA", b"AA, AAA= ,,AAAAAA", b","])
def test_base64_may_be_without_padding_and_several_values_in_one(value: bytes) -> None:
    talk = Talk()
    talk.greet()
    talk.ask([*REQUEST, (b"x-bin", value)])
    assert talk.told == []


@pytest.mark.parametrize(
    "value", [b"A", b"AAAAA", b"AA=", b"AAA==", b"=", b"A=AA", b"AA,A", b"AA AA", b"AA==AA", b"*"]
)
def test_what_stands_for_no_bytes_is_no_base64(value: bytes) -> None:
    talk = Talk()
    talk.greet()
    talk.ask([*REQUEST, (b"x-bin", value)])
    assert [rule for rule, _, _ in talk.found] == ["binary-metadata"]


def test_kinds_of_findings_are_bounded_whatever_peers_make_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rawgrpc_proxy.lab.lint.findings.MAX_KINDS", 10)
    talk = Talk()
    talk.greet()
    for number in range(100):
        talk.ask(changed(BAD_REQUEST, b":path", b"/a.B/%d" % number), stream=2 * number + 1)
    counted = talk.findings.counted
    assert len(counted) == 11
    assert counted[0].first.method == OTHER_METHODS
    assert sum(each.count for each in counted) == 100


def test_methods_of_streams_that_have_ended_are_not_kept_whole() -> None:
    talk = Talk()
    talk.greet()
    talk.ask(changed(REQUEST, b":path", b"/a.B/" + b"x" * 4000))
    talk.answer()
    [state] = talk.linter._links.values()
    assert len(state.closed[1][0]) == 256


@pytest.mark.parametrize(
    "field",
    [
        (b"authorization", b"Bearer s3cr3t\x00"),
        (b"x-api-key", b"s3cr3t\xff"),
        (b"x-token-bin", b"*s3cr3t"),
        (b"grpc-session", b"s3cr3t"),
        (b":password", b"s3cr3t"),
    ],
)
def test_the_values_of_secrets_are_in_no_finding(field: Header) -> None:
    talk = Talk()
    talk.greet()
    talk.ask([REQUEST[0], field, *REQUEST[1:]])
    assert any("[redacted]" in each.seen for each in talk.told)
    assert not any("s3cr3t" in each.seen for each in talk.told)


def test_what_peers_write_is_cut_and_printable() -> None:
    talk = Talk()
    talk.greet()
    talk.ask(changed(REQUEST, b":path", b"/a\x1b[31m" + b"x" * 10_000))
    [finding] = talk.told
    assert finding.method.isprintable()
    assert finding.seen.isprintable()
    assert len(finding.method) + len(finding.seen) < 500


@given(
    st.lists(
        st.tuples(
            st.sampled_from([CLIENT, SERVER]),
            st.integers(0, 11),
            st.integers(0, 255),
            st.integers(0, 7),
            st.one_of(
                st.binary(max_size=20),
                st.sampled_from(
                    [headers(1, fields)[9:] for fields in (REQUEST, RESPONSE, TRAILERS, BAD_REQUEST)]
                ),
            ),
            st.floats(0, 1000),
        ),
        max_size=25,
    )
)
def test_no_frames_make_it_raise(said: list[tuple[Sender, int, int, int, bytes, float]]) -> None:
    talk = Talk()
    talk.greet()
    for sender, kind, flags, stream, payload, at in said:
        talk.view.feed(sender, h2.frame_header(kind, flags, stream, len(payload)) + payload, at)
    talk.view.close(1000.0)
    assert talk.linter._links == {}
    assert all(finding.rule.id in RULES for finding in talk.told)
