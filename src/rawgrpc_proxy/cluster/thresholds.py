"""What is thought of an endpoint by the checks that it has passed and failed. Pure.

unknown ──the first check──► healthy ──unhealthy_threshold failures in a row──► unhealthy
▲──healthy_threshold passes in a row───────────────┘
"""


class Thresholds:
    """The state of one endpoint. Each method answers whether it has changed."""

    __slots__ = ("_against", "_healthy_threshold", "_unhealthy_threshold", "healthy")

    def __init__(self, *, healthy: int, unhealthy: int) -> None:
        self.healthy: bool | None = None
        """None: nothing is known yet."""
        self._healthy_threshold = healthy
        self._unhealthy_threshold = unhealthy
        self._against = 0
        """Checks in a row that speak against the state."""

    def checked(self, *, passed: bool) -> bool:
        """A check has passed, or failed."""
        return self._heard(passed, self._healthy_threshold if passed else self._unhealthy_threshold)

    def told(self, *, healthy: bool) -> bool:
        """The endpoint has said itself how it is, which counts at once."""
        return self._heard(healthy, 1)

    def _heard(self, healthy: bool, threshold: int) -> bool:
        if healthy is self.healthy:
            self._against = 0
            return False
        self._against += 1
        if self.healthy is not None and self._against < threshold:
            return False
        self.healthy = healthy
        self._against = 0
        return True
