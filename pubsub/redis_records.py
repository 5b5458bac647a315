"""How does an event get its position and reach every node? This file: records of channels in Redis.

A record is what is remembered of one channel: its epoch, its top, how far it was purged. Each step
that must be one is one script; `channel.lua` says what is kept.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pubsub.broker import History, HistoryRules
from pubsub.envelope import MOST_OFFSET, read_stored
from pubsub.errors import BrokerUnavailable, JunkReceived
from pubsub.event import Event
from pubsub.position import Position, new_epoch
from pubsub.redis_channels import RedisChannels, read_top
from pubsub.redis_client import Part
from pubsub.redis_keys import RedisKeys
from pubsub.redis_link import RedisLink
from pubsub.redis_publishing import FULL, MADE, too_many
from pubsub.redis_scripts import RedisScripts
from pubsub.redis_times import RedisTimes


class RedisRecords:
    """Opens, reads, contradicts, purges and leaves what Redis remembers of a channel.

    `queue_max` is how many entries the archive's queue of a partition takes (0: no bound; None:
    there is no archive). `reads` counts reads of the past, `junk` what was not understood there.
    Every call raises BrokerUnavailable if Redis does not answer.
    """

    def __init__(
        self,
        link: RedisLink,
        scripts: RedisScripts,
        keys: RedisKeys,
        times: RedisTimes,
        channels: RedisChannels,
        rules: HistoryRules,
        *,
        node: str,
        queue_max: int | None,
    ) -> None:
        self.reads = 0
        self.junk = 0
        self._link = link
        self._scripts = scripts
        self._keys = keys
        self._times = times
        self._channels = channels
        self._rules = rules
        self._node = node
        self._queue_max = queue_max

    async def open(self, channel: str) -> Position:
        """Make the record if there is none, take a lease, and return the top.

        Raises TooManyChannels if there is no room for one more.
        """
        keys, times = self._keys, self._times

        def call(room: bool) -> Awaitable[Any]:
            return self._link.run(
                self._scripts.open,
                [
                    keys.record(channel),
                    keys.stream(channel),
                    *keys.lists(keys.partition(channel)),
                ],
                *(times.now(), new_epoch(), channel, keys.address(channel), keys.send),
                *(int(room), times.lapse_ms, self._node, times.lease_ms),
                int(self.archived(channel)),
            )

        return await self._with_room(call)

    async def leave(self, channel: str) -> None:
        """Give up this node's lease."""
        times = self._times
        await self._link.run(
            self._scripts.leave,
            [self._keys.record(channel)],
            times.now(),
            self._node,
            times.lapse_ms,
        )

    async def history(
        self, channel: str, after: int, before: int | None, limit: int, newest: bool, hidden: bool
    ) -> History | None:
        """Return a part of the past, as `Broker.history` says."""
        self.reads += 1
        answer = await self._link.run(
            self._scripts.history,
            [self._keys.record(channel), self._keys.stream(channel)],
            self._times.now(),
            min(after, MOST_OFFSET),
            "" if before is None else min(before, MOST_OFFSET),
            limit,
            int(newest),
            int(hidden),
        )
        if answer is None:
            return None
        return History(self._read(channel, answer), read_top(answer), int(answer[3]))

    async def contradict(self, channel: str, evidence: Position) -> Position:
        """Begin a new epoch if the evidence is not of this one, as `Broker.contradict` says."""
        if evidence.offset > MOST_OFFSET:
            # No broker gave it out, and Redis could not count on from there.
            raise BrokerUnavailable("the evidence is not a position of this broker")
        keys = self._keys
        lists = keys.lists(keys.partition(channel))
        times = self._times

        def call(room: bool) -> Awaitable[Any]:
            return self._link.run(
                self._scripts.contradict,
                [keys.record(channel), keys.stream(channel), lists[0]],
                *(times.now(), new_epoch(), channel, keys.address(channel), keys.send),
                *(int(room), times.lapse_ms),
                *(evidence.epoch, evidence.offset, evidence.check, int(self.archived(channel))),
            )

        return await self._with_room(call)

    async def purge(self, channel: str) -> Position | None:
        """Take all events of a channel; None if there is no record, and no archive that may."""
        keys, times = self._keys, self._times
        archive = self.archived(channel)
        parts: tuple[Part, ...] = (
            times.now(),
            keys.address(channel),
            keys.send,
            times.lapse_ms,
            channel,
            int(archive),
            self._queue_max or 0,
        )

        async def call() -> Any:
            # Not repeated: it would take what was published since.
            return await self._link.run(
                self._scripts.purge,
                [keys.record(channel), keys.stream(channel), *keys.queue(keys.partition(channel))],
                *parts,
                repeat=False,
            )

        answer = await call()
        if answer is None and archive:
            # What it was before it lapsed may be in the archive.
            await self.open(channel)
            answer = await call()
        return None if answer is None else read_top(answer)

    def archived(self, channel: str) -> bool:
        """Whether what happens on a channel goes into the archive's queue too."""
        return self._queue_max is not None and self._rules.rule(channel).archive

    async def _with_room(self, call: Callable[[bool], Awaitable[Any]]) -> Position:
        """Call a script that may make a record; return the top that it answers."""
        room = self._channels.room
        for counted in (False, True):
            if counted:
                # A place may have been reserved that was not taken.
                await self._channels.count()
            made = False
            may = room.ask()
            try:
                answer = await call(may)
                made = answer[0] == MADE
            finally:
                if may:
                    room.done(made)
            if answer[0] != FULL:
                return read_top(answer[1:])
        raise too_many(self._channels)

    def _read(self, channel: str, answer: Sequence[Any]) -> tuple[Event, ...]:
        """Return the events of a history's answer."""
        events = []
        for at in range(4, len(answer), 2):
            offset = int(answer[at].partition(b"-")[0])
            try:
                events.append(read_stored(channel, offset, answer[at + 1]))
            except JunkReceived:
                self.junk += 1
        return tuple(events)
