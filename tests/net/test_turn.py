"""What happens at the end of a turn, and in which order."""

from rawgrpc_proxy.net.turn import Turn


class Place:
    """A connection that notes when it is written to, and does something of its own then."""

    def __init__(self, name: str, noted: list[str], turn: Turn, then: "Place | None" = None) -> None:
        self.name, self.noted, self.turn, self.then = name, noted, turn, then

    def flush(self) -> None:
        self.noted.append(self.name)
        if self.then is not None:
            self.turn.dirty.append(self.then)
            self.turn.before_writing(lambda: self.noted.append(f"before {self.name} goes on"))


def test_what_is_to_be_done_before_writing_is_done_first_and_once() -> None:
    noted: list[str] = []
    turn = Turn()
    with turn:
        turn.dirty.append(Place("one", noted, turn))
        turn.before_writing(lambda: noted.append("first"))
        assert noted == []
    assert noted == ["first", "one"]
    turn.flush()
    assert noted == ["first", "one"]


def test_what_a_write_has_caused_is_done_before_the_next_write() -> None:
    noted: list[str] = []
    turn = Turn()
    with turn:
        turn.dirty.append(Place("one", noted, turn, Place("two", noted, turn)))
    assert noted == ["one", "before one goes on", "two"]


def test_with_nothing_to_write_it_is_done_at_the_end_all_the_same() -> None:
    noted: list[str] = []
    turn = Turn()
    with turn:
        turn.before_writing(lambda: noted.append("done"))
    assert noted == ["done"]


def test_outside_a_turn_it_is_done_at_once() -> None:
    noted: list[str] = []
    Turn().before_writing(lambda: noted.append("done"))
    assert noted == ["done"]
