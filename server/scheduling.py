"""What may a publisher do? This file: the gate for events that are to be published at a time."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from config.limits import LimitSettings
from pubsub.errors import PubSubError
from pubsub.event import Draft, Published
from pubsub.scheduler import Scheduler
from pubsub.schedules import Added, Schedule
from server.errors import BadRequest, Conflict, LimitExceeded, NotFound, Refused
from server.principal import Principal
from server.publishing import Publishing, refusal

MOST_AHEAD_MS: Final = 366 * 86_400_000


class Scheduled(msgspec.Struct, frozen=True, gc=False):
    """The acknowledgement: the event will be published at that time, whatever happens here.

    `duplicate` says that the same event was scheduled for the same time already.
    """

    channel: str
    id: str
    deliver_at: int
    duplicate: bool = False


class Scheduling:
    """Takes events for now and for later; `scheduler` is None where there is no archive.

    `clock_ms` is the time in ms since 1970, by which it is judged what is later.
    """

    def __init__(
        self,
        publishing: Publishing,
        scheduler: Scheduler | None,
        limits: LimitSettings,
        *,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._publishing = publishing
        self._scheduler = scheduler
        self._limits = limits
        self._clock_ms = clock_ms

    def due(self, deliver_at: int | None) -> int | None:
        """Return the time for which an event is to be scheduled, None for now.

        Raises BadRequest.
        """
        if deliver_at is None:
            return None
        ahead = deliver_at - self._clock_ms()
        if ahead > MOST_AHEAD_MS:
            raise BadRequest("deliver_at is more than a year ahead")
        if ahead <= 0:
            return None
        self._require()
        return deliver_at

    async def publish(
        self, drafts: Sequence[Draft], later: Mapping[int, int]
    ) -> list[Published | Scheduled | Refused]:
        """Publish events, or schedule those whose place has a time in `later`.

        The answers stand in the order of the drafts. Never raises for one of them.
        """
        if not later:
            return list(await self._publishing.publish(drafts))
        now = [place for place in range(len(drafts)) if place not in later]
        found: dict[int, Published | Scheduled | Refused] = {}
        answers = await self._publishing.publish([drafts[place] for place in now]) if now else []
        found.update(zip(now, answers, strict=True))
        found.update(zip(later, await self._schedule(drafts, later), strict=True))
        return [found[place] for place in range(len(drafts))]

    async def page(
        self, principal: Principal, channel: str, cursor: str | None, limit: int
    ) -> tuple[list[Schedule], str | None]:
        """Return what is scheduled in a channel, and the cursor of what follows; raises Refused.

        Users see what they have scheduled themselves, services all.
        """
        self._publishing.require(principal, channel)
        after = (-1, "") if cursor is None else _read_cursor(cursor)
        try:
            found = await self._require().store.page(
                channel, after=after, user=principal.user, limit=limit + 1
            )
        except PubSubError as error:
            raise refusal(error) from None
        more = len(found) > limit
        found = found[:limit]
        last = found[-1] if more else None
        return found, None if last is None else f"{last.deliver_at}-{last.draft.id}"

    async def cancel(self, principal: Principal, channel: str, event_id: str) -> None:
        """Cancel what is scheduled; from then on it is never published. Raises Refused."""
        self._publishing.require(principal, channel)
        scheduler = self._require()
        try:
            schedule = await scheduler.store.find(channel, event_id)
            if schedule is None or principal.user not in (None, schedule.draft.user):
                raise NotFound("no such event is scheduled")
            if not await scheduler.firing.cancel(schedule):
                raise NotFound("the event was published already")
        except PubSubError as error:
            raise refusal(error) from None

    async def _schedule(
        self, drafts: Sequence[Draft], later: Mapping[int, int]
    ) -> list[Scheduled | Refused]:
        scheduler = self._require()
        schedules = [
            Schedule(drafts[place], deliver_at, secrets.token_hex(8))
            for place, deliver_at in later.items()
        ]
        try:
            most = self._limits.schedules_per_channel
            answers = await scheduler.store.add(schedules, most)
        except PubSubError as error:
            return [refusal(error)] * len(schedules)
        scheduler.expect(min(later.values()))
        return [self._answer(each, added) for each, added in zip(schedules, answers, strict=True)]

    def _answer(self, schedule: Schedule, added: Added) -> Scheduled | Refused:
        if added is Added.FULL:
            most = self._limits.schedules_per_channel
            return LimitExceeded(
                f"the channel has {most} scheduled events, as many as it may",
                reason="limits.schedules_per_channel",
            )
        if added is Added.OTHER:
            return Conflict("another event of that id is scheduled")
        channel, event_id = schedule.key
        return Scheduled(channel, event_id, schedule.deliver_at, added is Added.SAME)

    def _require(self) -> Scheduler:
        if self._scheduler is None:
            raise BadRequest("a schedule needs an archive, and archive.url names none")
        return self._scheduler


def _read_cursor(cursor: str) -> tuple[int, str]:
    time_ms, _, event_id = cursor.partition("-")
    if not time_ms.isascii() or not time_ms.isdigit() or len(time_ms) > 16 or not event_id:
        raise BadRequest("cursor is none that was given out")
    return int(time_ms), event_id
