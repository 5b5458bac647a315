"""Every kind of Redis that the contract suites run over, as parameters of a test."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import pytest
from _pytest.mark import ParameterSet

from redis_cluster import RedisCluster, shared_cluster
from redis_server import (
    PACKAGED,
    RedisServer,
    find_packaged_server,
    find_redis_server,
    has_wheels,
    packaged_redis,
    shared_redis,
)

Server = RedisServer | RedisCluster

KINDS: Final[dict[str, Callable[[], Server]]] = {
    "redis": shared_redis,
    **{name: partial(packaged_redis, name) for name in PACKAGED},
    "cluster": shared_cluster,
}


def redis_params(open_at: Callable[..., Any]) -> list[ParameterSet]:
    """Return what opens a rig over each kind; skipped where that kind is missing.

    `open_at` takes the server and the options of the rig.
    """
    found = []
    for name, server in KINDS.items():
        if name in PACKAGED and not has_wheels(name):
            continue
        program = find_packaged_server(name) if name in PACKAGED else find_redis_server()
        skip = pytest.mark.skipif(program is None, reason=f"there is no {name}")
        found.append(pytest.param(partial(_open, open_at, server), id=name, marks=skip))
    return found


def _open(open_at: Callable[..., Any], server: Callable[[], Server], **options: Any) -> Any:
    return open_at(server(), **options)
