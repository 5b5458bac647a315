"""How does an event get its position? This file: batches of events on their way through Redis."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from pubsub.broker import HistoryRules
from pubsub.envelope import pack_body
from pubsub.errors import (
    BrokerUnavailable,
    Cancelled,
    ClaimEnded,
    NotReplicated,
    PubSubError,
    TooManyChannels,
)
from pubsub.event import Draft, Published
from pubsub.heard import Acknowledged
from pubsub.position import Position, new_epoch
from pubsub.redis_channels import RedisChannels
from pubsub.redis_client import Part
from pubsub.redis_keys import RedisKeys
from pubsub.redis_lane import CallFailed
from pubsub.redis_link import Pauses, RedisLink
from pubsub.redis_scripts import RedisScripts
from pubsub.redis_times import RedisTimes

# What one script call takes: it holds all of Redis up meanwhile, and becomes one message.
_MOST_EVENTS: Final = 256
_MOST_BYTES: Final = 512 * 1024
# What a call weighs besides its data.
_CALL_BYTES: Final = 512
_EVENT_BYTES: Final = 128

# What the scripts that make records answer first.
_UNLISTED: Final = "-"
_UNLISTED_LAPSE_MS: Final = 600_000
MADE: Final = 1
FULL: Final = 2
ENDED: Final = 3

Answers = list[Published | PubSubError | None]
# The serials of schedules, when the claim on them ends, how long their ids are remembered, in ms.
Firing = tuple[Sequence[str], int, int]


class _Job:
    """The events of one channel of a publish: `places` are theirs among all drafts."""

    __slots__ = (
        "archived",
        "begin",
        "body",
        "channel",
        "counted",
        "end",
        "keys",
        "listed",
        "places",
        "serials",
        "size",
    )

    def __init__(self, channel: str, keys: Sequence[str], listed: bool) -> None:
        self.listed = listed
        self.archived = False
        self.channel = channel
        self.keys = keys
        self.places: list[int] = []
        # Of the schedules that are fired, as many as there are places; none for others.
        self.serials: list[str] = []
        self.begin = 0
        self.end = 0
        self.body: list[Part] = []
        self.size = 0
        # Whether the channels were counted since room for this one was refused.
        self.counted = False

    def load(self, drafts: Sequence[Draft]) -> bool:
        """Pack the next events, as many as go into one call; False if none are left."""
        self.begin = self.end
        self.body.clear()
        self.size = _CALL_BYTES
        left = len(self.places)
        while self.end < left and self.end - self.begin < _MOST_EVENTS and self.size < _MOST_BYTES:
            draft = drafts[self.places[self.end]]
            packed = pack_body(draft)
            self.body += (draft.id, packed)
            self.size += len(packed) + _EVENT_BYTES
            self.end += 1
        return self.end > self.begin


class RedisPublishing:
    """Publishes drafts: all events of one channel in one script call, one channel after another.

    A call whose answer did not come is repeated until the deadline, since the ids tell what was
    done before; not without a window in which they are remembered. A channel's events go one call
    after the other, so that they keep their order.

    With `wait_replicas`, each call waits up to `wait_timeout_s` (shorter than a call may take)
    until that many replicas have its events, those that were known before too. If too few have
    them by then, they are answered with NotReplicated. Channels that are not listed do not wait.

    `queue_max` bounds the archive's queue of each partition (0: no bound; None: there is no
    archive); `on_queued` is told of a channel when events of it were put there.
    """

    def __init__(
        self,
        link: RedisLink,
        scripts: RedisScripts,
        keys: RedisKeys,
        times: RedisTimes,
        channels: RedisChannels,
        rules: HistoryRules,
        revision: Callable[[], int],
        monotonic: Callable[[], float],
        *,
        wait_replicas: int = 0,
        wait_timeout_s: float = 1.0,
        queue_max: int | None = None,
        on_queued: Callable[[str], None] = lambda _channel: None,
    ) -> None:
        self._link = link
        self._queue_max = queue_max
        self._on_queued = on_queued
        self._wait_replicas = wait_replicas
        if wait_replicas:
            link.wait_replicas(wait_replicas, wait_timeout_s)
        self._scripts = scripts
        self._keys = keys
        self._times = times
        self._channels = channels
        self._rules = rules
        self._revision = revision
        self._monotonic = monotonic
        self.acknowledged = Acknowledged()

    async def fire(
        self, drafts: Sequence[Draft], serials: Sequence[str], till_ms: int, keep_ms: int
    ) -> list[Published | PubSubError]:
        """Publish what schedules say, unless the claim on them has ended; safe to repeat.

        `serials` are those of the schedules, `till_ms` is when the claim ends by Redis's clock, and
        for `keep_ms` the ids are remembered. Raises nothing; answers with ClaimEnded and Cancelled
        too.
        """
        return await self.publish(drafts, firing=(serials, till_ms, keep_ms))

    async def publish(
        self,
        drafts: Sequence[Draft],
        *,
        listed: bool = True,
        firing: Firing | None = None,
    ) -> list[Published | PubSubError]:
        """See `Broker.publish`. Channels that are not `listed` count nowhere."""
        jobs: dict[str, _Job] = {}
        for place, draft in enumerate(drafts):
            job = jobs.get(draft.channel)
            if job is None:
                keys = self._keys_of(draft.channel, fired=firing is not None)
                job = jobs[draft.channel] = _Job(draft.channel, keys, listed)
            job.places.append(place)
            if firing is not None:
                job.serials.append(firing[0][place])
        answers: Answers = [None] * len(drafts)
        left = [job for job in jobs.values() if job.load(drafts)]
        deadline = asyncio.get_running_loop().time() + self._link.call_timeout_s
        pauses = Pauses(deadline)
        try:
            async with asyncio.timeout_at(deadline):
                while left:
                    left = await self._round(left, drafts, answers, pauses, firing)
        except TimeoutError:
            pass
        late = BrokerUnavailable("Redis did not answer in time")
        return [late if answer is None else answer for answer in answers]

    async def _round(
        self,
        jobs: list[_Job],
        drafts: Sequence[Draft],
        answers: Answers,
        pauses: Pauses,
        firing: Firing | None,
    ) -> list[_Job]:
        """Let each job make one call; return the jobs that have more to do."""
        room = self._channels.room
        calls: deque[tuple[_Job, bool, asyncio.Future[Any]]] = deque()
        left: list[_Job] = []
        failed: list[_Job] = []
        full: list[_Job] = []
        try:
            for job in jobs:
                may = job.listed and room.ask()
                try:
                    calls.append((job, may, self._send(job, may, firing)))
                except BrokerUnavailable as error:
                    if may:
                        room.done(False)
                    _refuse(job, answers, error)
            while calls:
                job, may, future = calls.popleft()
                made = False
                try:
                    answer = await future
                    made = answer[0] == MADE
                    if answer[0] == FULL and not job.counted:
                        full.append(job)
                        continue
                    self._take(job, drafts, answers, answer)
                    if job.load(drafts):
                        left.append(job)
                except NotReplicated as error:
                    # The caller asks again: to wait longer would hold up all others.
                    _refuse(job, answers, BrokerUnavailable("those before it were not replicated"))
                    for place in job.places[job.begin : job.end]:
                        answers[place] = error
                except CallFailed as error:
                    if not error.refused:
                        # Another Redis may answer next.
                        self.acknowledged.seal()
                    if error.passing and (error.refused or job.serials or self._times.window_ms):
                        failed.append(job)
                    else:
                        _refuse(job, answers, error)
                finally:
                    if may:
                        room.done(made)
        finally:
            # Nobody waits for these any more.
            for _job, may, future in calls:
                future.cancel()
                if may:
                    room.done(False)
        if full and not await self._count(full, answers):
            full = []
        if failed and not await pauses.wait():
            late = BrokerUnavailable("Redis did not answer in time")
            for job in failed:
                _refuse(job, answers, late)
            failed = []
        return [*failed, *full, *left]

    def _keys_of(self, channel: str, *, fired: bool) -> Sequence[str]:
        keys = self._keys
        partition = keys.partition(channel)
        return (
            *(keys.record(channel), keys.stream(channel), *keys.ids(channel)),
            *keys.lists(partition),
            *keys.queue(partition),
            # Not for others: they are not there where nothing was ever scheduled.
            *(keys.fired(channel) if fired else ()),
        )

    def _send(self, job: _Job, room: bool, firing: Firing | None) -> "asyncio.Future[Any]":
        times = self._times
        size, ttl_ms, lapse_ms, archive_ttl_ms = 0, 0, _UNLISTED_LAPSE_MS, 0
        replicated = job.listed and self._wait_replicas > 0
        if job.listed:
            rule = self._rules.rule(job.channel)
            size, ttl_ms = rule.history_size, round(rule.history_ttl_s * 1000)
            lapse_ms = times.lapse_ms
            job.archived = rule.archive and self._queue_max is not None
            archive_ttl_ms = round(rule.archive_ttl_s * 1000)
        parts: list[Part] = [
            times.now(),
            new_epoch(),
            job.channel,
            self._keys.address(job.channel),
            self._keys.send,
            int(room) if job.listed else _UNLISTED,
            size,
            ttl_ms,
            self._revision(),
            times.window_ms,
            lapse_ms,
            int(replicated),
            int(job.archived),
            archive_ttl_ms,
            self._queue_max or 0,
            "" if firing is None else _claim(job, firing),
        ]
        parts += job.body
        return self._link.send_publish(
            self._scripts.publish, job.keys, parts, job.size, replicated=replicated
        )

    async def _count(self, jobs: list[_Job], answers: Answers) -> bool:
        """Count the channels anew: a place may have been reserved that was not taken."""
        try:
            await self._channels.count()
        except BrokerUnavailable as error:
            for job in jobs:
                _refuse(job, answers, error)
            return False
        for job in jobs:
            job.counted = True
        return True

    def _take(
        self, job: _Job, drafts: Sequence[Draft], answers: Answers, answer: Sequence[Any]
    ) -> None:
        """Note what a call answered."""
        if answer[0] == ENDED:
            for place in job.places[job.begin : job.end]:
                answers[place] = ClaimEnded("the claim has ended")
            return
        epoch, offset = answer[1].decode(), int(answer[2])
        top, known = None, False
        for number, each in enumerate(answer[3:], job.begin):
            place = job.places[number]
            event_id = drafts[place].id
            if len(each) == 16:
                offset += 1
                top, known = Position(epoch, offset, each.decode()), False
                answers[place] = Published(job.channel, top, event_id)
            elif each[:1] == b"x":
                answers[place] = Cancelled("it was cancelled")
            elif each:
                first = Position.parse(each.decode())
                answers[place] = Published(job.channel, first, event_id, True)
                # Who published it may have died before it was acknowledged: then it is here only.
                if top is None or (top.epoch == first.epoch and top.offset < first.offset):
                    top, known = first, True
            else:
                answers[place] = too_many(self._channels)
        if job.archived:
            self._on_queued(job.channel)
        # A probe is nothing that anybody counts on.
        if top is not None and job.listed:
            self.acknowledged.add(job.channel, top, self._monotonic(), known=known)


def _claim(job: _Job, firing: Firing) -> str:
    """Return what the script is told of the claim by which schedules are fired."""
    _serials, till_ms, keep_ms = firing
    return " ".join((str(till_ms), str(keep_ms), *job.serials[job.begin : job.end]))


def too_many(channels: RedisChannels) -> TooManyChannels:
    """Return the refusal of one more channel."""
    return TooManyChannels(f"{channels.room.known} channels are kept, as many as allowed")


def _refuse(job: _Job, answers: Answers, error: PubSubError) -> None:
    """Let all of a job fail that was not answered."""
    for place in job.places[job.begin :]:
        answers[place] = error
