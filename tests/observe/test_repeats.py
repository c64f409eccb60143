from rawgrpc_proxy.observe.repeats import Repeats


def test_what_repeats_is_told_once_a_minute_with_the_number_left_out() -> None:
    repeats = Repeats(interval_s=60, most=1024)

    told = [repeats.left_out("10.0.0.1", "TLS", now) for now in range(0, 200, 10)]

    assert told == [0, *[None] * 5, 5, *[None] * 5, 5, *[None] * 5, 5, None]


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
