"""The pool's decisions, against a plain model of the reference's table, and one by one where they are improvements."""

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from rawgrpc_proxy.upstream.choice import Objection, Phase, PoolLimits, PoolRecord

UNLIMITED = 2**31 - 1


@attrs.define(eq=False)
class Conn:
    """A connection as the record sees it; as it is made by a dial, with its first caller's stream."""

    created_at: float = 0.0
    phase: Phase = Phase.READY
    peer_limit: int = UNLIMITED
    in_doubt: bool = False
    streams: int = 1
    pooled: bool = False


def record_of(*, size: int = 100, ttl: float = 60.0, idle: int = 50, ms: int = 20) -> PoolRecord[Conn]:
    return PoolRecord(PoolLimits(size=size, ttl_s=ttl, idle=idle, ms=ms))


def pooled(record: PoolRecord[Conn], *, streams: int, phase: Phase = Phase.READY, born: float = 0.0) -> Conn:
    conn = Conn(streams=streams, phase=phase, created_at=born)
    record.add(conn)
    return conn


# ------------------------------------------------------------------------------------------ the reference's table


@attrs.define
class Row:
    """What the model keeps of one connection."""

    born: float
    state: str
    cap: int
    streams: int = 1
    kept: bool = False


class Table:
    """The reference's table once more, as plainly as it can be written: two lists and a counter of idle ones.

    Where our pool differs on purpose the line says so.
    """

    def __init__(self, size: int, ttl: float, idle: int, ms: int) -> None:
        self.size, self.ttl, self.max_idle, self.ms = size, ttl, idle, ms
        self.rows: dict[int, Row] = {}
        self.head: list[int] = []  # newest first
        self.busy: list[int] = []
        self.leaving: list[int] = []  # ours: those that carry streams and take no more
        self.idle = 0

    def cap(self, row: Row) -> int:
        return min(self.ms, row.cap)  # the reference: ms

    def get(self, now: float) -> tuple[int | None, list[int]]:
        closed = []
        for key in list(self.head):
            row = self.rows[key]
            if row.state == "connecting":
                continue
            if row.state != "ready" or now - row.born > self.ttl:
                if self.retire(key):
                    closed.append(key)
                continue
            if row.streams >= self.cap(row):
                self.head.remove(key)
                self.busy.insert(0, key)
                continue
            self.take(row)
            return key, closed
        # Ours: share a dial in progress. The reference dials.
        for key in self.head:
            row = self.rows[key]
            if row.state == "connecting" and row.streams < self.cap(row):
                self.take(row)
                return key, closed
        return None, closed

    def retire(self, key: int) -> bool:
        """The reference keeps one that has streams where it is, and counts it."""
        row = self.rows[key]
        for place in (self.head, self.busy):
            if key in place:
                place.remove(key)
                row.kept = False
                if row.streams:
                    self.leaving.append(key)
                else:
                    self.idle -= 1
        return row.streams == 0

    def take(self, row: Row) -> None:
        if row.streams == 0:
            self.idle -= 1
        row.streams += 1

    def dialled(self, key: int, row: Row) -> bool:
        self.rows[key] = row
        if len(self.head) + len(self.busy) < self.size:
            self.head.insert(0, key)
            row.kept = True
        return row.kept

    def give_back(self, key: int, now: float, *, failed: bool) -> bool:
        row = self.rows[key]
        if not row.kept:
            room = len(self.head) + len(self.busy) < self.size
            expired = now - row.born > self.ttl
            if (
                not room or failed or row.state != "ready" or expired
            ):  # the reference adopts it whatever its state
                row.streams -= 1
                if row.streams == 0 and key in self.leaving:
                    self.leaving.remove(key)
                return row.streams == 0
            self.head.insert(0, key)
            row.kept = True
        if row.streams >= self.cap(row) > row.streams - 1:
            (self.head if key in self.head else self.busy).remove(key)
            self.head.insert(0, key)
        row.streams -= 1
        if row.streams > 0:
            return False
        dying = row.state in {"draining", "closed"}  # the reference finds out at the next call
        if failed or self.idle >= self.max_idle or now - row.born > self.ttl or dying:
            (self.head if key in self.head else self.busy).remove(key)
            row.kept = False
            return True
        self.idle += 1
        return False

    def new_cap(self, key: int, cap: int) -> None:  # the reference has no such thing
        row = self.rows[key]
        row.cap = cap
        if key in self.busy and row.streams < self.cap(row):
            self.busy.remove(key)
            self.head.insert(0, key)


PHASES = {
    "connecting": Phase.CONNECTING,
    "ready": Phase.READY,
    "draining": Phase.DRAINING,
    "closed": Phase.CLOSED,
}
caps = st.one_of(st.integers(0, 4), st.just(UNLIMITED))


class RecordAgainstTable(RuleBasedStateMachine):
    """Every call goes to both; whatever can be seen of them must be the same."""

    @initialize(size=st.integers(0, 4), ttl=st.integers(0, 5), idle=st.integers(0, 3), ms=st.integers(1, 4))
    def start(self, size: int, ttl: int, idle: int, ms: int) -> None:
        self.now = 0.0
        self.table = Table(size, ttl, idle, ms)
        self.record = record_of(size=size, ttl=ttl, idle=idle, ms=ms)
        self.conns: list[Conn] = []

    def key_of(self, conn: Conn) -> int:
        return self.conns.index(conn)

    @rule(state=st.sampled_from(["connecting", "ready", "ready", "ready"]), cap=caps)
    def get(self, state: str, cap: int) -> None:
        key, closed = self.table.get(self.now)
        picked = self.record.pick(self.now)
        assert [self.key_of(conn) for conn in picked.close] == closed
        assert (None if picked.connection is None else self.key_of(picked.connection)) == key
        if picked.connection is None:
            conn = Conn(created_at=self.now, phase=PHASES[state], peer_limit=cap)
            self.conns.append(conn)
            grows = self.record.may_grow
            if grows:
                self.record.add(conn)
            assert self.table.dialled(self.key_of(conn), Row(self.now, state, cap)) == grows

    @precondition(lambda self: any(conn.streams for conn in self.conns))
    @rule(data=st.data(), failed=st.booleans())
    def release(self, data: st.DataObject, failed: bool) -> None:
        conn = data.draw(st.sampled_from([conn for conn in self.conns if conn.streams]))
        expected = self.table.give_back(self.key_of(conn), self.now, failed=failed)
        at_once = self.record.release_at_once(conn)
        assert (not at_once and self.record.release(conn, self.now, failed=failed)) == expected

    @precondition(lambda self: self.conns)
    @rule(data=st.data(), later=st.sampled_from(["ready", "draining", "closed"]))
    def change_state(self, data: st.DataObject, later: str) -> None:
        key = data.draw(st.integers(0, len(self.conns) - 1))
        row = self.table.rows[key]
        row.state = max(row.state, later, key=list(PHASES).index)
        self.conns[key].phase = PHASES[row.state]

    @precondition(lambda self: self.conns)
    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        key = data.draw(st.integers(0, len(self.conns) - 1))
        row = self.table.rows[key]
        if row.state in {"draining", "closed"} or (
            row.state == "ready" and self.now - row.born > self.table.ttl
        ):
            assert self.record.retire(self.conns[key]) == self.table.retire(key)

    @precondition(lambda self: self.conns)
    @rule(data=st.data(), cap=caps)
    def change_cap(self, data: st.DataObject, cap: int) -> None:
        key = data.draw(st.integers(0, len(self.conns) - 1))
        self.table.new_cap(key, cap)
        self.conns[key].peer_limit = cap
        self.record.refresh(self.conns[key])

    @rule(seconds=st.sampled_from([0.5, 1, 2, 5, 6]))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def both_look_the_same(self) -> None:
        if not hasattr(self, "record"):
            return
        record, table = self.record, self.table
        assert [self.key_of(conn) for conn in reversed(record.with_room)] == table.head
        assert [self.key_of(conn) for conn in reversed(record.busy)] == table.busy
        assert [self.key_of(conn) for conn in record.leaving] == table.leaving
        assert record.count == len(table.head) + len(table.busy)
        assert record.idle == table.idle
        assert [conn.streams for conn in self.conns] == [
            table.rows[key].streams for key in sorted(table.rows)
        ]
        assert [conn.pooled for conn in self.conns] == [table.rows[key].kept for key in sorted(table.rows)]


def test_the_record_decides_as_the_table_says() -> None:
    run_state_machine_as_test(
        RecordAgainstTable, settings=settings(max_examples=100, stateful_step_count=50, deadline=None)
    )


# ------------------------------------------------------------------------------------------------- row by row


def test_the_newest_connection_with_room_is_taken() -> None:
    record = record_of()
    pooled(record, streams=1)
    newest = pooled(record, streams=3)
    assert record.pick(0).connection is newest
    assert newest.streams == 4


def test_a_connection_past_its_ttl_is_dropped_if_it_has_no_streams_and_skipped_if_it_has() -> None:
    record = record_of(ttl=10)
    with_streams, without = pooled(record, streams=1), pooled(record, streams=0)
    assert record.pick(10).connection is without  # strictly older than the ttl is meant
    without.streams = 0
    picked = record.pick(10.5)
    assert (picked.connection, picked.close) == (None, [without])
    assert (record.with_room, record.leaving) == ([], [with_streams])


@pytest.mark.parametrize(
    ("phase", "reason"), [(Phase.CLOSED, Objection.CLOSED), (Phase.DRAINING, Objection.DRAINING)]
)
def test_a_connection_that_is_gone_or_going_is_skipped_until_it_has_no_streams(
    phase: Phase, reason: Objection
) -> None:
    record = record_of()
    conn = pooled(record, streams=1, phase=phase)
    assert record.objection(conn, 0) is reason
    assert record.pick(0).connection is None
    assert (record.with_room, record.leaving) == ([], [conn])
    assert record.release(conn, 0, failed=False) is True
    assert (record.count, record.leaving) == (0, [])
    without_streams = pooled(record, streams=0, phase=phase)
    assert record.pick(0).close == [without_streams]


def test_each_connection_that_is_passed_over_has_its_reason() -> None:
    record = record_of(ttl=10, ms=2)
    old = pooled(record, streams=1)
    going = pooled(record, streams=1, phase=Phase.DRAINING, born=5)
    full = pooled(record, streams=2, born=5)
    dialling = pooled(record, streams=2, phase=Phase.CONNECTING, born=5)
    assert [record.objection(conn, 11) for conn in (dialling, full, going, old)] == [
        Objection.CONNECTING, Objection.FULL, Objection.DRAINING, Objection.EXPIRED,
    ]  # fmt: skip
    assert record.pick(11).connection is None
    assert record.busy == [full]


def test_a_connection_that_takes_no_more_streams_counts_for_the_size_no_more() -> None:
    record = record_of(size=2, ttl=10)
    old, going = pooled(record, streams=1), pooled(record, streams=1, phase=Phase.DRAINING, born=5)
    assert not record.may_grow
    assert record.pick(11).connection is None
    assert record.retire(old) is False  # once more, by its owner: nothing changes
    assert (record.count, record.may_grow, record.leaving) == (0, True, [going, old])
    assert record.release(old, 11, failed=False) is True
    assert record.release(going, 11, failed=False) is True
    assert record.leaving == []


def test_a_connection_that_owes_the_answer_to_a_ping_is_busy_whatever_ends_on_it_until_it_has_come() -> None:
    record = record_of()
    conn = pooled(record, streams=2)
    conn.in_doubt = True
    assert record.objection(conn, 0) is Objection.IN_DOUBT
    assert record.pick(0).connection is None
    assert record.release(conn, 0, failed=False) is False
    assert record.release(conn, 0, failed=False) is False
    assert (record.busy, record.pick(0).connection) == ([conn], None)
    conn.in_doubt = False
    record.refresh(conn)
    assert record.pick(0).connection is conn


def test_a_connection_past_its_ttl_is_not_adopted() -> None:
    record = record_of(ttl=10)
    assert record.release(Conn(streams=2), 11, failed=False) is False
    assert record.count == 0


def test_a_pick_may_ask_for_another_connection_than_this_one() -> None:
    record = record_of()
    older, newest = pooled(record, streams=1), pooled(record, streams=1)
    assert record.pick(0, newest).connection is older
    record.remove(older)
    assert record.pick(0, newest).connection is None
    assert newest.streams == 1


def test_a_connection_dialled_beyond_the_size_is_adopted_on_release_if_there_is_room_by_now() -> None:
    record = record_of(size=1)
    first, beyond = pooled(record, streams=1), Conn()
    record.release(first, 0, failed=True)
    assert record.release(beyond, 0, failed=False) is False
    assert (record.with_room, beyond.pooled, record.idle) == ([beyond], True, 1)


@pytest.mark.parametrize(
    ("phase", "failed"),
    [(Phase.READY, True), (Phase.DRAINING, False), (Phase.CLOSED, False), (Phase.CONNECTING, False)],
)
def test_a_connection_that_is_no_good_is_not_adopted(phase: Phase, failed: bool) -> None:
    record = record_of()
    assert record.release(Conn(phase=phase), 0, failed=failed) is True
    assert record.count == 0


def test_idle_connections_are_kept_up_to_the_limit() -> None:
    record = record_of(idle=1)
    first, second = pooled(record, streams=1), pooled(record, streams=1)
    assert record.release(first, 0, failed=False) is False
    assert record.release(second, 0, failed=False) is True
    assert (record.with_room, record.idle) == ([first], 1)


def test_an_error_closes_a_connection_with_its_last_stream_and_not_before() -> None:
    record = record_of()
    conn = pooled(record, streams=2)
    assert record.release(conn, 0, failed=True) is False
    assert record.with_room == [conn]
    assert record.release(conn, 0, failed=True) is True
    assert record.count == 0


def test_giving_back_more_than_was_taken_is_an_error_and_changes_nothing() -> None:
    record = record_of()
    conn = pooled(record, streams=0)
    with pytest.raises(ValueError, match="more often than it was taken"):
        record.release(conn, 0, failed=False)
    assert (conn.streams, record.with_room) == (0, [conn])


# ------------------------------------------------------------------------------------------------ improvements


def test_a_dial_in_progress_is_shared_by_as_many_as_may_have_streams_there() -> None:
    record = record_of(ms=3)
    dialling = pooled(record, streams=1, phase=Phase.CONNECTING)
    assert [record.pick(0).connection for _ in range(3)] == [dialling, dialling, None]
    assert dialling.streams == 3


def test_an_established_connection_is_taken_before_a_dial_is_shared() -> None:
    record = record_of()
    ready = pooled(record, streams=1)
    pooled(record, streams=1, phase=Phase.CONNECTING)
    assert record.pick(0).connection is ready


def test_the_newest_dial_with_room_is_the_one_that_is_shared() -> None:
    record = record_of(ms=2)
    pooled(record, streams=1, phase=Phase.CONNECTING)
    second = pooled(record, streams=1, phase=Phase.CONNECTING)
    pooled(record, streams=2, phase=Phase.CONNECTING)
    assert record.pick(0).connection is second


def test_what_the_peer_allows_caps_the_streams_below_ms() -> None:
    record = record_of(ms=20)
    conn = pooled(record, streams=0)
    conn.peer_limit = 2
    assert [record.pick(0).connection for _ in range(3)] == [conn, conn, None]
    conn.peer_limit = 100
    record.refresh(conn)
    for _ in range(18):
        assert record.pick(0).connection is conn
    assert record.pick(0).connection is None


def test_a_limit_lowered_to_nothing_and_raised_again_is_followed() -> None:
    record = record_of()
    conn = pooled(record, streams=1)
    conn.peer_limit = 0
    record.refresh(conn)
    assert record.pick(0).connection is None
    assert record.busy == [conn]
    assert record.release(conn, 0, failed=False) is False  # idle, though it may have no streams at present
    assert (record.busy, record.idle) == ([conn], 1)
    conn.peer_limit = 1
    record.refresh(conn)
    assert record.pick(0).connection is conn


def test_a_connection_above_a_lowered_limit_stays_busy_until_it_is_below() -> None:
    record = record_of()
    conn = pooled(record, streams=4)
    conn.peer_limit = 2
    assert record.pick(0).connection is None
    for streams in (3, 2):
        record.release(conn, 0, failed=False)
        assert (conn.streams, record.busy) == (streams, [conn])
    record.release(conn, 0, failed=False)
    assert (conn.streams, record.with_room) == (1, [conn])


def test_a_connection_that_failed_or_drains_is_closed_with_its_last_stream() -> None:
    record = record_of()
    for phase in (Phase.DRAINING, Phase.CLOSED):
        assert record.release(pooled(record, streams=1, phase=phase), 0, failed=False) is True
    assert record.count == 0


def test_a_dial_that_everybody_has_left_counts_as_idle_and_is_kept_or_given_up_like_one() -> None:
    for idle, given_up in ((1, False), (0, True)):
        record = record_of(idle=idle)
        dialling = pooled(record, streams=1, phase=Phase.CONNECTING)
        assert record.release(dialling, 0, failed=False) is given_up


def test_beyond_ms_a_connection_takes_what_its_peer_takes_and_no_more() -> None:
    record = record_of(ms=2, ttl=60)
    conn = pooled(record, streams=2)
    assert record.pick_at_once(0.0) is None
    conn.peer_limit = 3
    assert record.pick_beyond_ms(0.0) is conn
    assert (conn.streams, record.pick_beyond_ms(0.0)) == (3, None)
    for _ in range(2):
        assert not record.release(conn, 0.0, failed=False)
    assert record.pick_at_once(0.0) is conn, "it has room again"
    assert record.pick_at_once(0.0) is None
    conn.in_doubt = True
    assert record.pick_beyond_ms(0.0) is None
    conn.in_doubt = False
    assert record.pick_beyond_ms(60.1) is None, "it is past its ttl"
    conn.phase = Phase.DRAINING
    assert record.pick_beyond_ms(0.0) is None
