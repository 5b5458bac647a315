"""How does an event reach every node? This file: connections to Redis, for each way it is run.

A topology carries pipelines of commands and makes connections for listening; what stands above
knows nothing else of where Redis is.
"""

import asyncio
import math
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

from pubsub.errors import RedisUrlRejected
from pubsub.redis_url import RedisTarget

Part = str | bytes | int

# More than the lanes of a link, a probe and a listener ever take at once.
_MOST_CONNECTIONS: Final = 16
# Pub/sub is read in pieces as large as the kernel has.
_READ_BYTES: Final = 131_072


class Topology(Protocol):
    """Makes connections to a Redis, whatever it consists of."""

    async def ask(self, commands: Sequence[tuple[Part, ...]]) -> list[Any]:
        """Send commands as one pipeline; return the answers in order, refusals as ResponseError.

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

    `timeout_s` is how long connecting, one write and one read may take.
    """

    def __init__(self, target: RedisTarget, *, timeout_s: float) -> None:
        if target.kind not in ("tcp", "unix"):
            raise RedisUrlRejected(f"redis+{target.kind} is not available in this version")
        options = _options(target, timeout_s)
        self._timeout_s = timeout_s
        self._pool = ConnectionPool(max_connections=_MOST_CONNECTIONS, **options)

    async def ask(self, commands: Sequence[tuple[Part, ...]]) -> list[Any]:
        packed = [pack_command(command) for command in commands]  # type: ignore[arg-type]
        answers: list[Any] = []
        # One time limit for all: one for each answer would cost more than reading it.
        async with asyncio.timeout(self._timeout_s):
            connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
            try:
                await connection.send_packed_command(packed, check_health=False)
                for _ in packed:
                    try:
                        answers.append(await connection.read_response(timeout=math.inf))
                    except ResponseError as refusal:
                        answers.append(refusal)
            except BaseException:
                # Answers of this pipeline may still come: nobody else must get them.
                await connection.disconnect(nowait=True)
                raise
            finally:
                await asyncio.shield(self._pool.release(connection))
        return answers

    def listening(self) -> AbstractConnection:
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        return connection

    async def close(self) -> None:
        await self._pool.aclose()


def _options(target: RedisTarget, timeout_s: float) -> dict[str, Any]:
    """Return what a connection is made with."""
    options: dict[str, Any] = {
        "db": target.db,
        "username": target.user or None,
        "password": target.password or None,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "socket_read_size": _READ_BYTES,
        # Reading pub/sub costs less with the older protocol.
        "protocol": 2,
        # Only scripts may be repeated, and only their callers know which.
        "retry": Retry(NoBackoff(), 0),
        # No CLIENT SETINFO: a user may lack the right.
        "driver_info": None,
    }
    if target.kind == "unix":
        return options | {"connection_class": UnixDomainSocketConnection, "path": target.path}
    (endpoint,) = target.endpoints
    options |= {"host": endpoint.host, "port": endpoint.port, "socket_keepalive": True}
    tls = target.tls
    if tls is None:
        return options | {"connection_class": Connection}
    return options | {
        "connection_class": SSLConnection,
        "ssl_ca_certs": tls.ca_file or None,
        "ssl_certfile": tls.cert_file or None,
        "ssl_keyfile": tls.key_file or None,
        "ssl_cert_reqs": "none" if tls.verify == "none" else "required",
        "ssl_check_hostname": tls.verify == "full",
        "ssl_min_version": ssl.TLSVersion.TLSv1_2,
    }


def connect(target: RedisTarget, *, timeout_s: float) -> Topology:
    """Return the topology of an address; connects when first used.

    Raises RedisUrlRejected for one that this version cannot reach.
    """
    return Standalone(target, timeout_s=timeout_s)
