"""The differential test: whatever both engines are fed, by the peer or by us, they say and write the same."""

from collections.abc import Callable
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from rawgrpc_proxy.config import Engine
from rawgrpc_proxy.http2.session import Session
from tests.http2 import peer as wire
from tests.http2.peer import PREFACE, REQUEST, RESPONSE, TRAILERS, Owed
from tests.http2.test_session_properties import begun, scripts, shown, sides

Command = Callable[[Session, Owed], object]
own_ids = st.sampled_from([1, 1, 1, 3, 5, 7])
sizes = st.sampled_from([0, 1, 19, 20, 21, 5000, 40_000, 200_000])

commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(
        lambda end: (
            lambda session, _owed: (
                session.open_stream(REQUEST, end_stream=end) if session.client_side and session.room else None
            )
        ),
        st.booleans(),
    ),
    st.builds(
        lambda stream, size, end: (
            lambda session, owed: session.send_data(
                stream, bytes(size), end_stream=end, source=owed, credit=size
            )
        ),
        own_ids,
        sizes,
        st.booleans(),
    ),
    # Only such as end the stream: response headers are sent once, and it is the call that keeps to that.
    st.builds(
        lambda stream, fields: lambda session, _owed: session.send_headers(stream, fields, end_stream=True),
        own_ids,
        st.sampled_from([RESPONSE, TRAILERS, []]),
    ),
    st.builds(
        lambda stream, code: lambda session, _owed: session.reset(stream, code),
        own_ids,
        st.sampled_from([0, 2, 7, 8]),
    ),
    st.builds(lambda stream: lambda session, _owed: session.reset_after_end(stream, 0), own_ids),
    st.builds(
        lambda stream, size: lambda session, _owed: session.credit(stream, size),
        own_ids,
        st.sampled_from([1, 100, 140_000]),
    ),
    st.builds(lambda final: lambda session, _owed: session.go_away(final=final), st.booleans()),
)
steps = st.lists(st.one_of(scripts, commands), max_size=8)


def transcript(engine: Engine, client_side: bool, script: list[Any]) -> list[object]:
    """What a session of this engine says and writes, step by step."""
    peer, owed = begun(engine, client_side=client_side), Owed()
    lines: list[object] = []
    for step in script:
        if isinstance(step, bytes):
            lines.append(shown(peer.tell(step)))
        else:
            step(peer.session, owed)
        if peer.session.ended:
            # The reason in the last GOAWAY is for people: h2 has words of its own.
            lines.append([frame.__class__ for frame in wire.parse(peer.take().removeprefix(PREFACE))])
            break
        lines.append(peer.hear())
        lines.append((sorted(peer.session.streams), peer.session.wants_output, peer.session.room))
        lines.append(peer.session.take_closed())
    return lines


@given(client_side=sides, script=steps)
@example(client_side=False, script=[wire.window_update(1, 2**31 - 1)])
@example(client_side=False, script=[wire.settings({wire.INITIAL_WINDOW_SIZE: 0}), wire.window_update(1, 10)])
@example(
    client_side=True, script=[wire.data(1, bytes(16_000)), wire.data(1, b"", end_stream=True, padding=9)]
)
def test_both_engines_say_and_write_the_same(client_side: bool, script: list[Any]) -> None:
    assert transcript("relay", client_side, script) == transcript("h2", client_side, script)
