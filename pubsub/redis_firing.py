"""Where is an event kept? This file: schedules that one of many nodes publishes through Redis."""

from collections.abc import Sequence
from typing import Final

from pubsub.firing import Fired
from pubsub.redis_broker import RedisBroker
from pubsub.redis_scripts import Script, read_script
from pubsub.schedules import Schedule, Schedules

# Longer than a publish and what surrounds it may take; shorter than anybody waits for what a node
# has left undone that was killed.
CLAIM_MS: Final = 10_000
# How long an id is remembered that was fired: much longer than a claim, so that whoever comes after
# a killed node does not publish the same again.
KEEP_MS: Final = 86_400_000


class RedisFiring:
    """Publishes by a script that refuses what is not claimed any more; see `Firing`.

    Times are Redis's. An id that was fired is remembered for a day, and so is what was cancelled:
    both are found by whoever fires or cancels the same later.
    """

    def __init__(self, broker: RedisBroker, store: Schedules, *, claim_ms: int = CLAIM_MS) -> None:
        self.claim_ms = claim_ms
        self._broker = broker
        self._store = store
        numbers, ids = read_script("numbers"), read_script("ids")
        self._time = Script("time", numbers + read_script("time"))
        self._revoke = Script("revoke", numbers + ids + read_script("revoke"))

    async def now_ms(self) -> int:
        broker = self._broker
        return int(await broker.link.run(self._time, broker.keys.shares[:1], broker.times.now()))

    async def fire(self, schedules: Sequence[Schedule], till_ms: int) -> Fired:
        return await self._broker.fire(
            [schedule.draft for schedule in schedules],
            [schedule.serial for schedule in schedules],
            till_ms,
            KEEP_MS,
        )

    async def settle(self) -> None:
        """Nothing is left open: what was fired is remembered."""

    async def done(self, schedules: Sequence[Schedule]) -> None:
        await self._store.remove(schedules)

    async def cancel(self, schedule: Schedule) -> bool:
        broker = self._broker
        channel, event_id = schedule.key
        revoked = await broker.link.run(
            self._revoke,
            broker.keys.fired(channel),
            broker.times.now(),
            KEEP_MS,
            event_id,
            schedule.serial,
        )
        await self._store.remove([schedule])
        return bool(revoked)
