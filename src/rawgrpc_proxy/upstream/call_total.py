"""`CallTotal`: how many calls some targets have together, for those who would have to add them up for every call.

A target that is in one tells it of each call that comes and goes (`Target.count_in`, `count_out`), and one that is in
none pays for a look. The invariant: it is the sum of their `calls` at any time.
"""


class CallTotal:
    """The calls of all targets that count in it."""

    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0
