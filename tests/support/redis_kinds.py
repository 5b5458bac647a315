"""Every kind of Redis that the contract suites run over, as parameters of a test."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import pytest
from _pytest.mark import ParameterSet

from redis_cluster import RedisCluster, shared_cluster
from redis_server import (
    RedisServer,
    find_oldest_redis_server,
    find_redis_server,
    oldest_redis,
    shared_redis,
)

Server = RedisServer | RedisCluster

KINDS: Final[dict[str, Callable[[], Server]]] = {
    "redis": shared_redis,
    "redis-6.2": oldest_redis,
    "cluster": shared_cluster,
}


def redis_params(open_at: Callable[..., Any]) -> list[ParameterSet]:
    """Return what opens a rig over each kind; skipped where that kind is missing.

    `open_at` takes the server and the options of the rig.
    """
    found = []
    for name, server in KINDS.items():
        oldest = name == "redis-6.2"
        if oldest and sys.version_info >= (3, 13):
            # There are no wheels of it.
            continue
        missing = (find_oldest_redis_server() if oldest else find_redis_server()) is None
        skip = pytest.mark.skipif(missing, reason=f"there is no {name}")
        found.append(pytest.param(partial(_open, open_at, server), id=name, marks=skip))
    return found


def _open(open_at: Callable[..., Any], server: Callable[[], Server], **options: Any) -> Any:
    return open_at(server(), **options)
