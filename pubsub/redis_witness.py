"""How does an event reach every node? This file: what a Sentinel says of who is master."""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from typing import Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from pubsub.redis_client import converse
from pubsub.redis_url import Endpoint

_log = logging.getLogger(__name__)

# How long the others may take when most Sentinels have answered.
_PATIENCE_S: Final = 0.05

# A server that is away, or refuses.
GONE: Final = (RedisError, OSError, TimeoutError)


class Witness:
    """One Sentinel, on connections that are kept; asked by one task at a time."""

    def __init__(self, connect: Callable[[], AbstractConnection], service: str) -> None:
        self._connection = connect()
        self._news = connect()
        self.service = service

    async def tell(self, timeout_s: float) -> tuple[Endpoint, int] | None:
        """Return the master and the number of the fail-over that made it, None if it knows none.

        Raises RedisError, OSError or TimeoutError.
        """
        connection = self._connection
        try:
            async with asyncio.timeout(timeout_s):
                await connection.connect()  # type: ignore[no-untyped-call]
                (answer,) = await converse(connection, [("SENTINEL", "MASTER", self.service)])
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        if isinstance(answer, ResponseError):
            if "no such master" in str(answer).lower():
                return None
            raise answer
        fields = dict(zip(answer[::2], answer[1::2], strict=True))
        place = Endpoint(fields[b"ip"].decode(), int(fields[b"port"]))
        return place, int(fields[b"config-epoch"])

    async def listen(self, on_switch: Callable[[], None], timeout_s: float) -> None:
        """Call back whenever this Sentinel has seen a fail-over; raises as `tell` does.

        See https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/, Pub/Sub.
        """
        connection = self._news
        try:
            async with asyncio.timeout(timeout_s):
                await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command("SUBSCRIBE", "+switch-master", check_health=False)
            # A link that fell silent costs no more than the second until they are asked again.
            while True:
                kind, _name, what = await connection.read_response(timeout=math.inf)
                if kind == b"message" and what.split()[0] == self.service.encode():
                    on_switch()
        finally:
            await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """Let go of the connection that is kept; may be called twice."""
        await self._connection.disconnect(nowait=True)


async def ask_witnesses(
    witnesses: Sequence[Witness], timeout_s: float
) -> tuple[list[tuple[Endpoint, int]], str]:
    """Ask all Sentinels at once, until most have answered; return also why none did."""
    loop = asyncio.get_running_loop()
    waiting = {loop.create_task(each.tell(timeout_s)) for each in witnesses}
    most = len(waiting) // 2 + 1
    told: list[tuple[Endpoint, int]] = []
    trouble = "no Sentinel answers"
    patience_s: float | None = None
    try:
        while waiting:
            done, waiting = await asyncio.wait(
                waiting, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
            for task in done:
                try:
                    found = task.result()
                except GONE as error:
                    _log.debug("a Sentinel does not answer: %s", error)
                    if isinstance(error, ResponseError | AuthenticationError):
                        trouble = "the Sentinels refuse to answer"
                    continue
                if found is None:
                    trouble = f"the Sentinels know no service {witnesses[0].service!a}"
                else:
                    told.append(found)
            if len(told) >= most:
                patience_s = _PATIENCE_S
    finally:
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)
    return told, trouble
