"""How does an event reach every node? This file: connections to Redis, for each way it is run.

A topology carries pipelines of commands and makes connections for listening; what stands above
knows nothing else of where Redis is.
"""

import asyncio
import math
import re
import ssl
from collections.abc import Sequence
from typing import Any, Final, Protocol

from hiredis import pack_command
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from pubsub.errors import NotReplicated
from pubsub.redis_url import RedisTarget

Part = str | bytes | int

# More than the lanes of a link, a probe and a listener ever take at once.
MOST_CONNECTIONS: Final = 16
# Pub/sub is read in pieces as large as the kernel has.
_READ_BYTES: Final = 131_072

_inside_script: Final = re.compile(r"@user_script: ?\d+: -([A-Z]+) ").search


class Topology(Protocol):
    """Makes connections to a Redis, whatever it consists of."""

    async def ask(
        self,
        commands: Sequence[tuple[Part, ...]],
        *,
        replicas: int = 0,
        replicas_timeout_ms: int = 0,
    ) -> list[Any]:
        """Send commands as one pipeline; return the answers in order, refusals as ResponseError.

        With `replicas`, each connection that was used also waits until that many have what it
        wrote, at most `replicas_timeout_ms` (which must not be 0 then: that is for ever). Had too
        few of them it by then, each answer that is no refusal is a NotReplicated instead.

        Raises RedisError, OSError or TimeoutError if not all were answered in time. What was
        carried out is then unknown; nothing is tried twice.
        """
        ...

    def listening(self) -> AbstractConnection:
        """Return a new connection for pub/sub, not yet connected; the caller closes it."""
        ...

    async def close(self) -> None:
        """Close all connections but those for pub/sub; may be called twice."""
        ...


class Standalone:
    """One Redis, over TCP, TLS or a unix socket.

    `timeout_s` is how long a pipeline may take, connecting included.
    """

    def __init__(self, target: RedisTarget, *, timeout_s: float) -> None:
        options = connection_options(target, timeout_s)
        if target.kind == "unix":
            options |= {"connection_class": UnixDomainSocketConnection, "path": target.path}
        else:
            (endpoint,) = target.endpoints
            options |= {"host": endpoint.host, "port": endpoint.port}
            options["connection_class"] = SSLConnection if target.tls else Connection
        self._timeout_s = timeout_s
        self._pool = ConnectionPool(max_connections=MOST_CONNECTIONS, **options)

    async def ask(
        self,
        commands: Sequence[tuple[Part, ...]],
        *,
        replicas: int = 0,
        replicas_timeout_ms: int = 0,
    ) -> list[Any]:
        # One time limit for all: one for each answer would cost more than reading it.
        async with asyncio.timeout(self._timeout_s + replicas_timeout_ms / 1000):
            connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
            try:
                return await converse(connection, commands, replicas, replicas_timeout_ms)
            except BaseException:
                # Answers of this pipeline may still come: nobody else must get them.
                await connection.disconnect(nowait=True)
                raise
            finally:
                await asyncio.shield(self._pool.release(connection))

    def listening(self) -> AbstractConnection:
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        return connection

    async def close(self) -> None:
        await self._pool.aclose()


async def converse(
    connection: AbstractConnection,
    commands: Sequence[tuple[Part, ...]],
    replicas: int = 0,
    replicas_timeout_ms: int = 0,
) -> list[Any]:
    """Carry a pipeline over a connection that nobody else uses; see `Topology.ask`.

    There is no time limit, and after an exception answers may still come: disconnect then.
    """
    packed = [pack_command(command) for command in commands]  # type: ignore[arg-type]
    if replicas:
        # On the same connection: it counts what this one wrote.
        packed.append(pack_command(("WAIT", replicas, replicas_timeout_ms)))  # type: ignore[arg-type]
    await connection.send_packed_command(packed, check_health=False)
    answers: list[Any] = []
    for _ in packed:
        try:
            answers.append(await connection.read_response(timeout=math.inf))
        except ResponseError as refusal:
            answers.append(refusal)
    if replicas:
        reached = answers.pop()
        if not isinstance(reached, int) or reached < replicas:
            text = f"{reached} of {replicas} replicas have it"
            if isinstance(reached, ResponseError):
                text = f"Redis refused to wait for replicas: {reached}"
            return [
                answer if isinstance(answer, ResponseError) else NotReplicated(text)
                for answer in answers
            ]
    return answers


def refusal_code(refusal: ResponseError) -> str:
    """Return the code of a refusal, such as READONLY; before Redis 7 scripts hide it in a text."""
    inside = _inside_script(str(refusal))
    return inside[1] if inside else refusal.status_code or str(refusal).partition(" ")[0]


def connection_options(target: RedisTarget, timeout_s: float) -> dict[str, Any]:
    """Return what a connection to any server of a target is made with, but for where it is."""
    options: dict[str, Any] = {
        "db": target.db,
        "username": target.user or None,
        "password": target.password or None,
        # With a limit, redis-py writes within asyncio.wait_for, which up to Python 3.11 swallows a
        # cancellation that comes when the write has just ended: whoever cancelled then waits for
        # ever. Whoever uses a connection sets its limit with asyncio.timeout.
        "socket_timeout": None,
        "socket_connect_timeout": timeout_s,
        "socket_read_size": _READ_BYTES,
        # Reading pub/sub costs less with the older protocol.
        "protocol": 2,
        # Only scripts may be repeated, and only their callers know which.
        "retry": Retry(NoBackoff(), 0),
        # No CLIENT SETINFO: a user may lack the right.
        "driver_info": None,
    }
    if target.kind != "unix":
        options["socket_keepalive"] = True
    tls = target.tls
    if tls is None:
        return options
    return options | {
        "ssl_ca_certs": tls.ca_file or None,
        "ssl_certfile": tls.cert_file or None,
        "ssl_keyfile": tls.key_file or None,
        "ssl_cert_reqs": "none" if tls.verify == "none" else "required",
        "ssl_check_hostname": tls.verify == "full",
        "ssl_min_version": ssl.TLSVersion.TLSv1_2,
    }


def connect(target: RedisTarget, *, timeout_s: float) -> Topology:
    """Return the topology of an address; connects when first used."""
    if target.kind == "sentinel":
        # Not above: it stands on this module.
        from pubsub.redis_sentinel import Sentinel

        return Sentinel(target, timeout_s=timeout_s)
    if target.kind == "cluster":
        from pubsub.redis_cluster import Cluster

        return Cluster(target, timeout_s=timeout_s)
    return Standalone(target, timeout_s=timeout_s)
