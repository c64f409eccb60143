from rawgrpc_proxy.observe.repeats import Repeats


def test_what_repeats_is_told_once_a_minute_with_the_number_left_out() -> None:
    repeats = Repeats(interval_s=60, most=1024)

    told = [repeats.left_out("10.0.0.1", "TLS", now) for now in range(0, 200, 10)]

    assert told == [0, *[None] * 5, 5, *[None] * 5, 5, *[None] * 5, 5, None]


def test_what_goes_on_is_told_less_and_less_often_and_anew_once_it_was_quiet() -> None:
    repeats = Repeats(interval_s=1, longest_s=60, most=1024)

    def told(*moments: int) -> dict[int, int]:
        answers = {now: repeats.left_out("10.0.0.1", "refused", now) for now in moments}
        return {now: left_out for now, left_out in answers.items() if left_out is not None}

    assert told(*range(0, 240, 4)) == {0: 0, 4: 0, 8: 0, 12: 0, 20: 1, 36: 3, 68: 7, 128: 14, 188: 14}
    assert told(240) == {}
    assert told(290, 294) == {290: 13, 294: 0}


def test_each_host_and_each_event_is_told_by_itself() -> None:
    repeats = Repeats(interval_s=60, most=1024)

    assert repeats.left_out("10.0.0.1", "TLS", 0) == 0
    assert repeats.left_out("10.0.0.2", "TLS", 0) == 0
    assert repeats.left_out("[fe80::1]", "TLS", 0) == 0
    assert repeats.left_out("[fe80::2]", "TLS", 0) == 0
    assert repeats.left_out("10.0.0.1", "SSH", 0) == 0
    assert repeats.left_out("10.0.0.1", "SSH", 0) is None


def test_however_many_hosts_there_are_memory_is_bounded() -> None:
    """And a host that comes all the time is not forgotten for those that come once."""
    repeats = Repeats(interval_s=60, most=1024)
    assert repeats.left_out("10.0.0.1", "TLS", 0) == 0

    for number in range(5000):
        repeats.left_out(f"host{number}", "TLS", 1)
        assert repeats.left_out("10.0.0.1", "TLS", 1) is None

    assert len(repeats._told) == 1024
