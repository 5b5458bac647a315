"""Who is present in a channel, over all nodes? This file: whether a node lives, as Redis has it.

A life of a node begins when it takes a lease and ends when the lease is gone; its generation, which
is random, marks all that the node enters meanwhile. Every heartbeat also looks for a life whose
lease has lapsed, and claims it; so exactly one node cleans up behind another, and if that one dies
too, the claim lapses like a lease.

Leases also lapse while Redis is away. So only a node may claim that has renewed its own for a whole
lease without a gap: it never found Redis away, every call was answered, and none came more than
half a lease after the one before, by Redis's clock. Meanwhile all others that live renew theirs.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Any, Final

from pubsub.position import new_epoch
from pubsub.presence_scripts import PresenceScripts
from pubsub.redis_keys import RedisKeys
from pubsub.redis_link import RedisLink

# Beyond this part of a lease it is not trusted without asking Redis.
_TRUSTED: Final = 2 / 3


def generation_of(life: str) -> str:
    """Return the generation that marks the entries of a life."""
    return life.partition(" ")[0]


class NodeLease:
    """The lease of this node, and the claim on another's life that it may have.

    - `lease_s`: how long a lease, and a claim, last; `beat` is due three times as often.
    - `on_new`: told when a new life began, with the one before (empty at first).
    - `monotonic`: a clock in s. `clock_ms` is for tests: a time for the scripts instead of Redis's.

    `life` is this node's, `claimed` the one that it has to clean up behind; both may be empty.
    `lives` counts the lives that were begun.
    """

    def __init__(
        self,
        link: RedisLink,
        scripts: PresenceScripts,
        keys: RedisKeys,
        *,
        node: str,
        lease_s: float,
        on_new: Callable[[str], None],
        monotonic: Callable[[], float],
        clock_ms: Callable[[], int] | None,
    ) -> None:
        self.life = ""
        self.claimed = ""
        self.lives = 0
        self.lease_s = lease_s
        self._link = link
        self._scripts = scripts
        self._keys = keys
        self._node = node
        self._on_new = on_new
        self._monotonic = monotonic
        self._clock_ms = clock_ms
        self._renewed = -math.inf
        self._gap = False
        self._one = asyncio.Lock()

    async def hold(self) -> str:
        """Return the life to enter under; raises BrokerUnavailable.

        A node that was asleep learns here that its life has ended.
        """
        if not self._is_trusted():
            async with self._one:
                if not self._is_trusted():
                    await self._beat()
        return self.life

    async def beat(self) -> None:
        """Renew the lease, or begin a new life if it is gone; raises BrokerUnavailable."""
        async with self._one:
            await self._beat()

    def on_return(self) -> None:
        """Redis was away, and others may see later than this node that it is back."""
        self._gap = True

    async def bury(self, life: str) -> None:
        """Forget a life, all of whose entries were removed; raises BrokerUnavailable."""
        await self._link.run(self._scripts.bury, self._keys.leases, life, self.life)
        if self.claimed == life:
            self.claimed = ""

    async def end(self) -> None:
        """Give this node's lease back; raises BrokerUnavailable."""
        async with self._one:
            life, self.life = self.life, ""
            self._renewed = -math.inf
            if life:
                await self._link.run(self._scripts.bury, self._keys.leases, life, life)

    def _is_trusted(self) -> bool:
        return self._monotonic() - self._renewed < self.lease_s * _TRUSTED

    async def _beat(self) -> None:
        began = self._monotonic()
        answer: Any = await self._ask(self.life, False) if self.life else [0]
        if answer[0] == 0:
            before, life = self.life, f"{new_epoch()} {self._node}"
            answer = await self._ask(life, True)
            self.life = life
            self.lives += 1
            self._on_new(before)
        self._renewed = began
        claimed: bytes = answer[1]
        try:
            self.claimed = claimed.decode()
        except UnicodeDecodeError:
            # No node wrote it, and no entries can be of it.
            self.claimed = ""
            await self._link.run(self._scripts.bury, self._keys.leases, claimed, self.life)

    async def _ask(self, life: str, take: bool) -> Any:
        now = "" if self._clock_ms is None else self._clock_ms()
        lasts_ms = round(self.lease_s * 1000)
        claimed = self.claimed if not take else ""
        # What is noted while the call is under way is for the next one.
        gap, self._gap = self._gap, False
        try:
            return await self._link.run(
                self._scripts.lease,
                self._keys.leases,
                *(now, life, lasts_ms, int(take), claimed, int(gap)),
            )
        except BaseException:
            self._gap = True
            raise
