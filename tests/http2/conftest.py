"""Every test of the contract runs on every engine."""

import pytest
from hypothesis import HealthCheck, settings

from rawgrpc_proxy.config import ENGINES, Engine
from tests.http2 import peer as raw_peer
from tests.http2.peer import Peer

# A busy machine is no reason to fail.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Which implementation is under test."""
    chosen: Engine = request.param
    return chosen


@pytest.fixture
def server(engine: Engine) -> Peer:
    """A server's session past the exchange of SETTINGS, with the default settings."""
    return raw_peer.server(engine)


@pytest.fixture
def client(engine: Engine) -> Peer:
    """A client's session past the exchange of SETTINGS, with the default settings."""
    return raw_peer.client(engine)
