"""The fields of the call log: what each says, and that whatever a peer sends stays one value of one line."""

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrpc_proxy.codes import Status
from rawgrpc_proxy.errors import ConfigError
from rawgrpc_proxy.observe.fields import FIELDS, check_fields, line_of
from rawgrpc_proxy.observe.record import CallExtras, CallRecord

TRACE = "0af7651916cd43dd8448eb211c80319c"
SUBJECT = (
    (("countryName", "DE"),),
    (("organizationName", "Ex, Inc."),),
    (("commonName", "orders"), ("userId", "7")),
)


def record(*headers: tuple[bytes, bytes], **extras: Any) -> CallRecord:
    return CallRecord(
        method="/p.S/Get",
        peer="10.0.0.1:4711",
        upstream="10.0.0.2:50051",
        status=Status.NOT_FOUND,
        origin="upstream",
        cause="FIN",
        detail="no such order",
        request_bytes=12,
        response_bytes=345,
        request_messages=1,
        response_messages=20,
        duration_s=0.0123,
        extras=CallExtras(
            headers=[(b":authority", b"shop.example"), *headers],
            stream_id=7,
            started=50.0,
            **{"tls_peer": None, **extras},
        ),
    )


def text_of(name: str, of: CallRecord) -> str:
    return line_of([name], as_json=False)(of)


def json_of(names: list[str], of: CallRecord) -> dict[str, Any]:
    found: dict[str, Any] = json.loads("{" + line_of(names, as_json=True)(of) + "}")
    return found


FULL = record(
    (b"user-agent", b"grpc-python/1.60 (linux)"),
    (b"traceparent", f"00-{TRACE}-b7ad6b7169203331-01".encode()),
    tls_peer={"subject": SUBJECT},
    route="/p.S/*",
    cluster="orders",
    attempts=2,
    first_byte_at=50.25,
    flag="UR",
)
EXPECTED = {
    "method": "/p.S/Get",
    "authority": "shop.example",
    "route": "/p.S/*",
    "cluster": "orders",
    "peer": "10.0.0.1:4711",
    "upstream": "10.0.0.2:50051",
    "status": "NOT_FOUND",
    "origin": "upstream",
    "cause": "FIN",
    "detail": "no such order",
    "flags": "UR",
    "request_bytes": 12,
    "request_messages": 1,
    "response_bytes": 345,
    "response_messages": 20,
    "duration_ms": 12.3,
    "time_to_first_byte_ms": 250.0,
    "attempts": 2,
    "user_agent": "grpc-python/1.60 (linux)",
    "trace_id": TRACE,
    "tls_subject": r"CN=orders+UID=7,O=Ex\, Inc.,C=DE",
    "stream_id": 7,
}


def test_all_fields_in_json() -> None:
    found = json_of(list(FIELDS), FULL)
    assert time.time() - 60 < found.pop("start_time") < time.time()
    assert found == EXPECTED


def test_all_fields_in_text_in_the_order_that_was_chosen() -> None:
    chosen = [name for name in FIELDS if name != "start_time"]
    line = line_of(chosen, as_json=False)(FULL)
    assert line == (
        "method=/p.S/Get authority=shop.example route=/p.S/* cluster=orders peer=10.0.0.1:4711 "
        'upstream=10.0.0.2:50051 status=NOT_FOUND origin=upstream cause=FIN detail="no such order" flags=UR '
        "request_bytes=12 request_messages=1 response_bytes=345 response_messages=20 duration_ms=12.3 "
        'time_to_first_byte_ms=250.0 attempts=2 user_agent="grpc-python/1.60 (linux)" '
        f'trace_id={TRACE} tls_subject="CN=orders+UID=7,O=Ex\\\\, Inc.,C=DE" stream_id=7'
    )
    assert line_of(reversed(chosen), as_json=False)(FULL).startswith("stream_id=7 tls_subject=")


def test_the_start_is_the_end_less_the_duration() -> None:
    long = record()
    long.duration_s = 3600.0
    started = json_of(["start_time"], long)["start_time"]
    assert abs(time.time() - 3600 - started) < 60
    stamp = text_of("start_time", long)
    assert re.fullmatch(r"start_time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", stamp)
    assert time.strftime("%Y-%m-%dT%H", time.gmtime(started)) in stamp


def test_what_a_call_does_not_have_is_a_dash_and_null() -> None:
    bare = CallRecord(method="/p.S/Get", peer="unix:")
    for name in (
        "authority",
        "route",
        "upstream",
        "detail",
        "flags",
        "time_to_first_byte_ms",
        "attempts",
        "tls_subject",
    ):
        assert text_of(name, bare) == f"{name}=-"
        assert json_of([name], bare) == {name: None}


def test_a_value_that_looks_like_nothing_is_not_nothing() -> None:
    assert text_of("user_agent", record((b"user-agent", b"-"))) == 'user_agent="-"'
    assert text_of("user_agent", record((b"user-agent", b""))) == 'user_agent=""'


@pytest.mark.parametrize(
    "traceparent",
    [
        b"",
        b"00-",
        b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01",
        b"00-XYZ",
        TRACE.encode(),
        b"00-" + b"g" * 32 + b"-1-01",
    ],
)
def test_a_traceparent_that_is_none_has_no_trace_id(traceparent: bytes) -> None:
    assert json_of(["trace_id"], record((b"traceparent", traceparent))) == {"trace_id": None}


def test_a_traceparent_of_a_later_version_may_go_on() -> None:
    later = f"cc-{TRACE}-b7ad6b7169203331-01-what.the.future.brings".encode()
    assert json_of(["trace_id"], record((b"traceparent", later))) == {"trace_id": TRACE}


def test_without_an_authority_the_host_is_it() -> None:
    only_host = record((b"host", b"old.example"))
    assert only_host.extras is not None
    del only_host.extras.headers[0]
    assert text_of("authority", only_host) == "authority=old.example"


def test_a_subject_is_written_as_directors_get_it_and_an_empty_one_is_none() -> None:
    of = record(tls_peer={"subject": ((("commonName", "a,b=c\n"),), (("1.2.3", "x"),))})
    assert json_of(["tls_subject"], of) == {"tls_subject": r"1.2.3=x,CN=a\,b=c\0A"}
    assert json_of(["tls_subject"], record(tls_peer={"subject": ()})) == {"tls_subject": None}


def test_messages_that_are_not_counted_to_the_end_say_so() -> None:
    many = record()
    many.messages_are_exact = False
    assert text_of("response_messages", many) == "response_messages=20+"
    assert json_of(["response_messages", "status"], many) == {
        "response_messages": 20,
        "status": "NOT_FOUND",
        "messages_are_exact": False,
    }
    assert json_of(["status"], many) == {"status": "NOT_FOUND"}


def test_an_open_call_has_no_fields_of_its_end() -> None:
    names = ["method", "status", "origin", "detail", "flags", "duration_ms"]
    assert line_of(names, as_json=False, open_call=True)(FULL) == "method=/p.S/Get duration_ms=12.3"


@given(st.text() | st.text(st.characters(categories=["Cc", "Cf", "Zl", "Zp", "Cs"])), st.binary())
def test_whatever_a_peer_sends_stays_one_value_on_one_line(text: str, raw: bytes) -> None:
    of = record((b"user-agent", raw), flag="", route=text)
    of.method = of.detail = text
    names = ["method", "detail", "user_agent", "route", "peer"]
    line = line_of(names, as_json=False)(of)
    assert line.isascii()
    assert line.isprintable()
    values = re.fullmatch(" ".join(rf'{name}=([^ "]+|"(?:[^"\\]|\\.)*")' for name in names), line)
    assert values, line
    assert values[5] == "10.0.0.1:4711"
    told = json.loads(values[1]) if values[1].startswith('"') else values[1]
    assert same(told, text)
    written = line_of(names, as_json=True)(of)
    assert "\n" not in written
    assert same(json.loads("{" + written + "}")["method"], text)


def same(told: str, text: str) -> bool:
    """Two surrogates may have come together: to JSON they are one character."""
    return told.encode("utf-16", "surrogatepass") == text.encode("utf-16", "surrogatepass")


def test_what_is_absurdly_long_is_cut() -> None:
    of = record((b"user-agent", b"x" * 60_000))
    for as_json in (True, False):
        assert len(line_of(["user_agent"], as_json=as_json)(of)) < 5000


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (
            ["statsu"],
            r"'statsu' is no field of the log \(did you mean status\?\); there are: start_time, method",
        ),
        (["%RESPONSE_FLAGS%"], r"did you mean flags\?"),
        (["upstream_host"], r"did you mean upstream\?"),
        (["xyzzy"], "'xyzzy' is no field of the log; there are"),
        (["status", "status"], "'status' comes twice"),
    ],
)
def test_a_choice_that_is_none_is_refused_with_what_there_is(names: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_fields(names)


def test_what_costs_something_for_each_call_is_asked_for_only_by_fields_that_need_it() -> None:
    free = {name for name, field in FIELDS.items() if not field.wants}
    assert {"method", "peer", "upstream", "status", "detail", "duration_ms", "request_bytes"} <= free
    assert [name for name, field in FIELDS.items() if "messages" in field.wants] == [
        "request_messages",
        "response_messages",
    ]
    assert [name for name, field in FIELDS.items() if "first_byte" in field.wants] == [
        "time_to_first_byte_ms"
    ]
