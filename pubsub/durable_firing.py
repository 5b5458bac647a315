"""Where is an event kept? This file: schedules that a single node publishes, which has SQLite."""

import time
from collections.abc import Callable, Sequence

from pubsub.durable_broker import DurableBroker
from pubsub.errors import Cancelled, PubSubError, TooManyChannels
from pubsub.event import Published
from pubsub.firing import Fired
from pubsub.schedules import Key, Schedule
from pubsub.sqlite_schedules import SqliteSchedules


class DurableFiring:
    """Publishes between two commits; see `Firing`. There is no other node.

    A schedule of an archived channel is deleted in the same transaction that brings its event into
    the archive. That of another channel, whose events do not outlive the node either, is deleted
    before its event is handed out.
    """

    def __init__(
        self,
        broker: DurableBroker,
        store: SqliteSchedules,
        *,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.claim_ms = 0
        self._broker = broker
        self._store = store
        self._clock_ms = clock_ms
        # Of channels that are not archived: their deletion failed, or may have been done.
        self._unsure: dict[Key, Schedule] = {}

    async def now_ms(self) -> int:
        return self._clock_ms()

    async def fire(self, schedules: Sequence[Schedule], till_ms: int) -> Fired:
        return await self._broker.in_turn(lambda: self._fire(schedules))

    async def settle(self) -> None:
        if self._unsure or self._broker.doubtful:
            await self._broker.in_turn(self._settle)

    async def done(self, schedules: Sequence[Schedule]) -> None:
        # What was published is deleted already, what never can be is not.
        await self._store.remove(schedules)

    async def cancel(self, schedule: Schedule) -> bool:
        return await self._broker.in_turn(lambda: self._cancel(schedule))

    # ---- in turn

    async def _fire(self, schedules: Sequence[Schedule]) -> Fired:
        await self._settle()
        present = await self._store.present(schedules)
        found: dict[Key, Published | PubSubError] = {}
        durable: list[Schedule] = []
        plain: list[Schedule] = []
        for schedule, stands in zip(schedules, present, strict=True):
            channel = schedule.draft.channel
            if not stands:
                found[schedule.key] = Cancelled("it does not stand any more")
            elif self._broker.archives(channel):
                durable.append(schedule)
            elif self._broker.make_room(channel):
                plain.append(schedule)
            else:
                found[schedule.key] = TooManyChannels("there is no room for its channel")
        for some, publish in ((durable, self._broker.commit), (plain, self._hand_out)):
            if some:
                try:
                    answers = await publish(some)
                except PubSubError as error:
                    answers = [error] * len(some)
                found.update(zip((each.key for each in some), answers, strict=True))
        return [found[schedule.key] for schedule in schedules]

    async def _hand_out(self, schedules: Sequence[Schedule]) -> Fired:
        self._unsure.update((schedule.key, schedule) for schedule in schedules)
        await self._store.remove(schedules)
        for schedule in schedules:
            del self._unsure[schedule.key]
        return await self._broker.hand_out([schedule.draft for schedule in schedules])

    async def _settle(self) -> None:
        await self._broker.settle()
        if self._unsure:
            await self._hand_out(list(self._unsure.values()))

    async def _cancel(self, schedule: Schedule) -> bool:
        # A commit that failed may have been done: that was before this, by the same thread.
        removed = await self._store.remove([schedule]) > 0
        if removed:
            self._unsure.pop(schedule.key, None)
        return removed
