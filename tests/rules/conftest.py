"""What the tests of the rules of delivery stand on: every broker, and servers of one's own."""

from collections.abc import Iterator
from itertools import count

import pytest

from broker_rig import RIG_PARAMS, Clock, OpenRig
from pubsub.redis_keys import RedisKeys
from redis_server import RedisServer, shared_redis

prefixes = count()


@pytest.fixture(params=RIG_PARAMS)
def open_rig(request: pytest.FixtureRequest) -> OpenRig:
    rig: OpenRig = request.param
    return rig


@pytest.fixture
def server() -> RedisServer:
    return shared_redis()


@pytest.fixture
def keys() -> RedisKeys:
    """Names that no other test uses, for nodes that share channels."""
    return RedisKeys(f"rules{next(prefixes)}-{id(prefixes)}")


@pytest.fixture
def lasting() -> Iterator[RedisServer]:
    """A Redis whose writes are on disk."""
    with RedisServer(tcp=True, aof=True) as server:
        yield server


@pytest.fixture
def reachable() -> Iterator[RedisServer]:
    """A Redis that listens on a port."""
    with RedisServer(tcp=True) as server:
        yield server


@pytest.fixture
def clock() -> Clock:
    return Clock()
