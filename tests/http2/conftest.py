"""Every test of the contract runs on every engine."""

import pytest

from rawgrpc_proxy.config import ENGINES, Engine
from tests.http2 import peer as raw_peer
from tests.http2.peer import Peer


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
