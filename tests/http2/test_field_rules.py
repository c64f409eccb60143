"""The rules for fields: what is malformed, and that nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.http2 import field_rules
from tests.http2.peer import REQUEST, RESPONSE, TRAILERS, Header

PSEUDO = REQUEST[:4]


def with_field(name: bytes, value: bytes) -> list[Header]:
    return [*REQUEST, (name, value)]


def without(*names: bytes) -> list[Header]:
    return [field for field in REQUEST if field[0] not in names]


# --- Names and values, the same in every list ---


@pytest.mark.parametrize(
    "name", [b"a", b"x-1", b"!#$%&'*+-.^_`|~", b"x" * 65, b"grpc-status", b"trace-bin", b"te-lling"]
)
def test_lower_case_tokens_are_names(name: bytes) -> None:
    assert field_rules.request_problem(with_field(name, b"v")) is None
    assert field_rules.response_problem([*RESPONSE, (name, b"v")]) is None
    assert field_rules.trailers_problem([(name, b"v")]) is None


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"Upper",
        b"x y",
        b"x\x00",
        b"x:y",
        b"x\n",
        b"\xc3\xa9",
        b"x(y)",
        b'x"',
        b"x/y",
        b"x" * 65 + b"X",
        b"a\x7f",
    ],
)
def test_anything_else_is_no_name(name: bytes) -> None:
    for problem in (
        field_rules.request_problem(with_field(name, b"v")),
        field_rules.response_problem([*RESPONSE, (name, b"v")]),
        field_rules.trailers_problem([(name, b"v")]),
    ):
        assert problem is not None
        assert "is no field name" in problem


@pytest.mark.parametrize("byte", [*range(9), *range(10, 32), 127])
def test_no_control_character_but_the_tab_may_stand_in_a_value(byte: int) -> None:
    value = b"a" + bytes([byte]) + b"b"

    for problem in (
        field_rules.request_problem(with_field(b"x", value)),
        field_rules.request_problem([(b":path", value), *without(b":path")]),
        field_rules.response_problem([*RESPONSE, (b"x", value)]),
        field_rules.trailers_problem([(b"x", value)]),
    ):
        assert problem is not None
        assert "has control characters" in problem


@pytest.mark.parametrize(
    "value", [b"", b"a\tb", b" edge ", b"\ttab", bytes(range(32, 127)), bytes(range(128, 256))]
)
def test_any_other_value_passes(value: bytes) -> None:
    """Blanks at the edges are malformed by the letter, but grpcio sends them."""
    assert field_rules.request_problem(with_field(b"x", value)) is None
    assert field_rules.response_problem([*RESPONSE, (b"x", value)]) is None
    assert field_rules.trailers_problem([(b"x", value)]) is None


@pytest.mark.parametrize(
    "name", [b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"]
)
def test_fields_of_an_http1_connection_are_malformed(name: bytes) -> None:
    for problem in (
        field_rules.request_problem(with_field(name, b"x")),
        field_rules.response_problem([*RESPONSE, (name, b"x")]),
        field_rules.trailers_problem([(name, b"x")]),
    ):
        assert problem is not None
        assert "belongs to HTTP/1.1 connections" in problem


@pytest.mark.parametrize(
    ("value", "fine"), [(b"trailers", True), (b"Trailers", True), (b"gzip", False), (b"", False)]
)
def test_te_may_say_trailers_only(value: bytes, fine: bool) -> None:
    assert (field_rules.request_problem([*without(b"te"), (b"te", value)]) is None) is fine


@given(st.binary(max_size=12))
def test_a_name_is_judged_the_same_the_second_time(name: bytes) -> None:
    """Names that passed are remembered; the memory must not change the judgement."""
    assert field_rules.trailers_problem([(name, b"v")]) == field_rules.trailers_problem([(name, b"v")])


def test_the_memory_of_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(field_rules, "_known_names", set())

    for number in range(3000):
        assert field_rules.trailers_problem([(b"x-%d" % number, b"v")]) is None
    assert field_rules.trailers_problem([(b"y" * 65, b"v")]) is None

    assert len(field_rules._known_names) == 1024
    assert field_rules.trailers_problem([(b"x-2999", b"v"), (b"X", b"v")]) is not None


def test_a_problem_does_not_flood_the_log() -> None:
    problem = field_rules.trailers_problem([(b"X" * 10_000, b"v")])

    assert problem is not None
    assert len(problem) < 200


# --- Requests ---


@pytest.mark.parametrize(
    "headers",
    [
        REQUEST,
        PSEUDO,
        [*without(b":authority"), (b"host", b"greeter.example")],
        [*REQUEST, (b"host", b"Greeter.Example")],
        [*reversed(PSEUDO), *REQUEST[4:]],
    ],
)
def test_a_request_has_method_scheme_and_path(headers: list[Header]) -> None:
    assert field_rules.request_problem(headers) is None


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ([], "is missing"),
        (REQUEST[4:], "is missing"),
        (without(b":method"), "is missing"),
        (without(b":scheme"), "is missing"),
        (without(b":path"), "is missing"),
        ([*REQUEST, PSEUDO[0]], "comes after regular fields"),
        ([PSEUDO[0], *REQUEST], "comes twice"),
        ([*PSEUDO, PSEUDO[3]], "comes twice"),
        ([(b":status", b"200"), *REQUEST], "is no pseudo-field of a request"),
        ([(b":protocol", b"websocket"), *REQUEST], "is no pseudo-field of a request"),
        ([(b":", b""), *REQUEST], "is no pseudo-field of a request"),
    ],
)
def test_a_request_is_malformed_without_its_pseudo_fields_in_front(
    headers: list[Header], problem: str
) -> None:
    assert problem in (field_rules.request_problem(headers) or "")


def with_authority(authority: bytes) -> list[Header]:
    return [(name, authority if name == b":authority" else value) for name, value in REQUEST]


@pytest.mark.parametrize(
    "authority",
    [
        b"a", b"greeter.example", b"greeter.example:443", b"localhost:", b"127.0.0.1:65535", b"[::1]", b"[::1]:0",
        b"[fe80::1%25eth0]:80", b"my_service", b"xn--bcher-kva.example", b"%2Frun%2Fserver.sock", b"a;b=c", b"A.B",
    ],
)  # fmt: skip
def test_an_authority_is_a_name_or_an_address_and_maybe_a_port(authority: bytes) -> None:
    for _ in range(2):  # it is remembered
        assert field_rules.request_problem(with_authority(authority)) is None
        assert field_rules.request_problem([*without(b":authority"), (b"host", authority)]) is None


@pytest.mark.parametrize(
    "authority", [b"127.0.0.1:1,127.0.0.1:50051", b"[::1]:1,[2001:db8::7]:443,10.0.0.7:1"]
)
def test_an_authority_may_be_several_addresses_as_grpc_clients_with_such_a_target_send_it(
    authority: bytes,
) -> None:
    assert field_rules.request_problem(with_authority(authority)) is None
    assert field_rules.request_problem([*without(b":authority"), (b"host", authority)]) is not None
    assert field_rules.request_problem([*with_authority(authority), (b"host", authority)]) is not None


@pytest.mark.parametrize(
    "authority",
    [
        b"", b"a/b", b"/", b"a b", b" a", b"a,b", b"a?b", b"a#b", b"a:99999999", b"a:65536", b"a:-1", b"a:b", b":443",
        b"[::1", b"::1", b"[]", b"b\xc3\xbccher", b"user@host", b"user:word@host", b"a\\b", b"http://a", b"a:1:2",
    ],
)  # fmt: skip
def test_what_two_readers_could_read_differently_is_no_authority(authority: bytes) -> None:
    """RFC 9113 section 8.3.1, RFC 3986 section 3.2."""
    for headers in (with_authority(authority), [*without(b":authority"), (b"host", authority)]):
        assert "a name or an address, and maybe a port" in (field_rules.request_problem(headers) or "")


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        (without(b":authority"), "neither :authority nor host"),
        ([*REQUEST, (b"host", b"other.example")], "the host is 'other.example', and the :authority"),
        ([*REQUEST, (b"host", b"greeter.example"), (b"host", b"greeter.example")], "'host' comes twice"),
        ([*REQUEST, (b"content-type", b"application/grpc")], "'content-type' comes twice"),
        (
            [*REQUEST, (b"grpc-timeout", b"1S"), (b"x", b""), (b"grpc-timeout", b"2S")],
            "'grpc-timeout' comes twice",
        ),
        ([*without(b":path"), (b":path", b"")], ":path"),
        ([(b":path", b""), *without(b":path")], "the :path is empty"),
        ([(b":scheme", b"1http"), *without(b":scheme")], "the :scheme is '1http'"),
        ([(b":scheme", b""), *without(b":scheme")], "the :scheme is ''"),
    ],
)
def test_a_request_is_for_somebody_and_says_so_once(headers: list[Header], problem: str) -> None:
    assert problem in (field_rules.request_problem(headers) or "")


def test_other_fields_may_come_twice() -> None:
    assert field_rules.request_problem([*REQUEST, (b"x", b"1"), (b"x", b"2"), (b"cookie", b"")]) is None


@pytest.mark.parametrize("name", [b"content-length", b"host", b"content-type", b"te"])
def test_what_tells_how_a_request_is_read_comes_before_it(name: bytes) -> None:
    """RFC 9110 section 6.5.1. Of a response's trailers this is not asked: a backend's call is worth more."""
    value = b"trailers" if name == b"te" else b"0"
    assert "has no place in trailers" in (field_rules.request_trailers_problem([(name, value)]) or "")
    assert field_rules.trailers_problem([(name, value)]) is None


# --- Responses ---


@pytest.mark.parametrize("status", [b"100", b"103", b"200", b"404", b"599"])
def test_a_response_begins_with_its_status(status: bytes) -> None:
    assert field_rules.response_problem([(b":status", status), *RESPONSE[1:]]) is None


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ([], "does not begin with :status"),
        (RESPONSE[1:], "does not begin with :status"),
        ([*RESPONSE[1:], RESPONSE[0]], "does not begin with :status"),
        ([(b":path", b"/"), *RESPONSE], "does not begin with :status"),
        ([*RESPONSE, RESPONSE[0]], "is out of place"),
        ([RESPONSE[0], (b":path", b"/")], "is out of place"),
        ([(b":status", b"20")], ":status is '20'"),
        ([(b":status", b"2000")], ":status is '2000'"),
        ([(b":status", b"abc")], ":status is 'abc'"),
        ([(b":status", b"")], ":status is ''"),
        ([(b":status", b"+20")], ":status is '+20'"),
        ([(b":status", b"\xb2\xb2\xb2")], ":status is"),
    ],
)
def test_a_response_is_malformed_without_one_good_status_in_front(
    headers: list[Header], problem: str
) -> None:
    assert problem in (field_rules.response_problem(headers) or "")


# --- Trailers ---


def test_trailers_may_be_empty() -> None:
    assert field_rules.trailers_problem([]) is None
    assert field_rules.trailers_problem(TRAILERS) is None


@pytest.mark.parametrize("name", [b":status", b":path", b":unknown", b":"])
def test_no_pseudo_field_may_stand_in_trailers(name: bytes) -> None:
    assert "is out of place" in (field_rules.trailers_problem([*TRAILERS, (name, b"200")]) or "")


# --- Content-length ---


@pytest.mark.parametrize(
    ("values", "length"),
    [
        ([], None),
        ([b"0"], 0),
        ([b"007"], 7),
        ([b"999999999999999999"], 10**18 - 1),
        ([b"5", b"5"], 5),
        ([b"5", b"05"], 5),
        ([b"5", b"6"], -1),
        ([b"5", b"x"], -1),
        ([b""], -1),
        ([b"+5"], -1),
        ([b"-1"], -1),
        ([b"5,5"], -1),
        ([b" 5"], -1),
        ([b"0x5"], -1),
        ([b"1_0"], -1),
        ([b"\xb2"], -1),
        ([b"9" * 19], -1),
        ([b"9" * 5000], -1),
    ],
)
def test_a_content_length_is_digits_and_the_same_each_time(values: list[bytes], length: int | None) -> None:
    assert field_rules.content_length([*REQUEST, *((b"content-length", value) for value in values)]) == length


# --- All together ---


@pytest.mark.parametrize(
    ("fewer_fields", "fewer_bytes", "limit"),
    [(0, 0, None), (1, 0, "max_header_fields"), (0, 1, "max_header_list_bytes")],
)
def test_a_list_may_have_as_many_fields_and_bytes_as_allowed(
    fewer_fields: int, fewer_bytes: int, limit: str | None
) -> None:
    size = sum(len(name) + len(value) for name, value in REQUEST)
    allowed = {"max_header_fields": len(REQUEST) - fewer_fields, "max_header_list_bytes": size - fewer_bytes}

    excess = (
        field_rules.checks_for((allowed["max_header_fields"], allowed["max_header_list_bytes"]))
        .request(REQUEST)
        .excess
    )

    if limit is None:
        assert excess is None
    else:
        assert excess is not None
        assert excess.limit == limit
        assert excess.text.endswith(f"; {limit} is {allowed[limit]}")


@pytest.mark.parametrize(
    "rule", [field_rules.request_problem, field_rules.response_problem, field_rules.trailers_problem]
)
@pytest.mark.parametrize("headers", [REQUEST, RESPONSE, TRAILERS, [*TRAILERS, (b"content-length", b"5")]])
def test_a_check_is_what_the_rules_say_one_by_one(rule: field_rules.Rule, headers: list[Header]) -> None:
    checked = field_rules.check(rule, (100, 1000), headers)

    assert checked.problem == rule(headers)
    assert checked.excess is None
    assert checked.content_length == field_rules.content_length(headers)
