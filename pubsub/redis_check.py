"""How does an event reach every node? This file: whether a Redis is fit for it, asked once."""

from collections.abc import Iterator, Mapping
from typing import Final, Literal

from redis.exceptions import RedisError, ResponseError

from pubsub.redis_client import Topology

LEAST_VERSION: Final = (6, 2)

Finding = tuple[Literal["ok", "warn", "fail"], str]


async def look_at(topology: Topology, *, replicas: int) -> list[Finding]:
    """Return what there is to say of a Redis that nodes are to share.

    `replicas` is how many of them a publish waits for. Closes the topology. Raises nothing.
    """
    try:
        # In a cluster these go to one server, which stands for all.
        pong, server, memory, persistence, replication = await topology.ask(
            [
                ("PING",),
                *(("INFO", section) for section in ("server", "memory", "persistence")),
                ("INFO", "replication"),
            ]
        )
    except (RedisError, OSError, TimeoutError) as error:
        return [("fail", f"cannot be reached: {str(error) or type(error).__name__}")]
    finally:
        await topology.close()
    if isinstance(pong, Exception):
        return [("fail", f"refused: {pong}")]
    said: dict[str, str] = {}
    for answer in (server, memory, persistence, replication):
        if isinstance(answer, ResponseError):
            return [("ok", "reached"), ("warn", f"no more can be said of it: {answer}")]
        said |= _fields(answer.decode())
    return list(_findings(said, replicas))


def _fields(text: str) -> dict[str, str]:
    """Return the lines `name:value` of an answer to INFO."""
    pairs = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def _findings(said: Mapping[str, str], replicas: int) -> Iterator[Finding]:
    version = said.get("redis_version", "")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        yield "fail", f"it is Redis {version or 'of an unknown version'}, {least} is needed"
    else:
        yield "ok", f"Redis {version}"
    if said.get("role") != "master":
        yield "fail", "it is a replica, which takes no events: name the master"
    policy = said.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        text = "it may drop channels to make room; set it to noeviction"
        yield "warn", f"maxmemory-policy is {policy}: {text}"
    if said.get("aof_enabled") == "0":
        text = "after a restart of Redis subscribers are told that continuity was lost"
        yield "warn", f"appendonly is off: {text}"
    connected = said.get("connected_slaves", "0")
    if connected.isdigit() and int(connected) < replicas:
        text = f"publish.wait_replicas is {replicas}, but it has {connected}"
        yield "warn", f"{text}: publishes fail"
