"""How does an event reach every node? This file: what a node does lest something is lost unseen.

A probe goes the way of all events and must come back: the same script, the same lane, the same
connection. Since Redis sends in order, all that was published before it has come when it comes, or
is lost. So tops that were read before a probe was sent are compared when it has come.

A cluster keeps an order for each of its masters only. So each gets a probe of its own, and is
watched for itself: one that is away or deaf does not keep the others from being watched.
"""

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from itertools import count
from typing import Final, Literal

from pubsub.envelope import Batch, read_envelope
from pubsub.errors import BrokerUnavailable, JunkReceived, PubSubError, TooManyChannels
from pubsub.event import Draft, Published
from pubsub.heard import Heard
from pubsub.position import Position, new_epoch
from pubsub.redis_channels import RedisChannels, gather
from pubsub.redis_link import RedisLink
from pubsub.redis_listener import RedisListener
from pubsub.redis_publishing import RedisPublishing
from pubsub.redis_url import Endpoint

_log = logging.getLogger(__name__)

# Partitions whose lists are cleaned up with each comparison.
_SWEPT: Final = 2
# Acknowledged positions that are compared at once.
_CHECKED: Final = 100

# How soon a probe that was refused is repeated: Redis may have been slow for a moment only.
_REPEAT_S: Final = 1.0
# Intervals for which a probe of another node with this name counts.
_REMEMBERED: Final = 3

# What became of a probe: it came; it was not taken; it did not come on a connection that stands;
# nothing can be said.
Outcome = Literal["heard", "refused", "silent", "unknown"]


class RedisWatch:
    """Probes delivery and compares tops, each every few seconds; owns the tasks that do.

    - `tell` is told of each channel whose top is not what was heard.
    - `versions` returns how far presence changes were announced, `tell_versions` is told of that
      when all of them have come or are lost.
    - `reopen` makes the record of a subscribed channel that has none any more.
    - `contradict` reports a position that this node acknowledged.

    `silences` counts connections that were replaced since no probe came back, `doubts` the channels
    whose tops were not what was heard.
    """

    def __init__(
        self,
        link: RedisLink,
        listener: RedisListener,
        channels: RedisChannels,
        publishing: RedisPublishing,
        heard: Heard,
        *,
        node: str,
        interval_s: float,
        tell: Callable[[str, Position], None],
        versions: Callable[[], Awaitable[Mapping[str, int]]],
        tell_versions: Callable[[Mapping[str, int]], None],
        reopen: Callable[[str], Awaitable[Position]],
        contradict: Callable[[str, Position], Awaitable[Position]],
        monotonic: Callable[[], float],
    ) -> None:
        self.silences = 0
        self.doubts = 0
        self._link = link
        self._listener = listener
        self._channels = channels
        self._publishing = publishing
        self._heard = heard
        self._node = node
        self._interval_s = interval_s
        self._tell = tell
        self._versions = versions
        self._tell_versions = tell_versions
        self._reopen = reopen
        self._contradict = contradict
        self._monotonic = monotonic
        self._probe_channels = self._choose_channels(node)
        self._probes: dict[str, asyncio.Future[bool]] = {}
        # What the ids of this node's probes begin with: another node may have its name.
        self._mark = new_epoch()
        self._namesake_heard = -math.inf
        self._probe_soon = asyncio.Event()
        # How much the connection of a probe had yet to confirm the last time.
        self._unconfirmed: dict[str, int] = {}
        self._silent_since: dict[Endpoint | None, float] = {}
        self._trouble: str | None = "nothing has come from Redis yet"
        self._hurry = asyncio.Event()
        self._returned = False
        # When all was well last, and when it was before what is yet to be looked into.
        self._well = self._well_before = monotonic()
        self._partition = random.randrange(channels.partitions)  # noqa: S311
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to watch; called once."""
        for channel in self._probe_channels:
            address = self._channels.address(channel)
            self._listener.subscribe(address, partial(self._on_probe, channel)).cancel()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._probe_on()), loop.create_task(self._compare_on())]

    def problem(self) -> str | None:
        """Return what is wrong, or None."""
        if self._has_namesake():
            return f"another node is called {self._node}"
        return self._trouble

    def hurry(self) -> None:
        """Compare at once."""
        self._hurry.set()

    def on_return(self) -> None:
        """A connection was lost and is there again: probe, check what was acknowledged, compare."""
        for back in self._probes.values():
            # What was sent on the lost connection cannot come on this one.
            if not back.done():
                back.set_result(False)
        self._probe_soon.set()
        if not self._returned:
            self._well_before = self._well
        self._returned = True
        self._hurry.set()

    async def close(self) -> None:
        """End the tasks; may be called twice."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # The probe

    def _choose_channels(self, node: str) -> list[str]:
        """Return a channel to probe, and in a cluster one in each partition."""
        if self._listener.spread is None:
            return [f"$probe.{node}"]
        partitions = self._channels.partitions
        found: dict[int, str] = {}
        for number in count():
            channel = f"$probe.{node}.{number}"
            found.setdefault(self._channels.partition(channel), channel)
            if len(found) == partitions:
                return list(found.values())
        raise AssertionError

    def _homes(self) -> dict[Endpoint | None, str]:
        """Return the servers that events come from, and a channel to probe each."""
        homes: dict[Endpoint | None, str] = {}
        for channel in self._probe_channels:
            homes.setdefault(self._listener.home(self._channels.address(channel)), channel)
        return homes

    async def probe(self, timeout_s: float) -> bool:
        """Send probes to all; False if one did not come back in time, or its connection was lost.

        Raises BrokerUnavailable if one could not be published.
        """
        return all(await gather([self._probe(each, timeout_s) for each in self._homes().values()]))

    async def _probe(self, channel: str, timeout_s: float) -> bool:
        name = self._mark + new_epoch()
        back: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._probes[name] = back
        try:
            draft = Draft(channel, name, "probe", b"null")
            (answer,) = await self._publishing.publish([draft], listed=False)
            if not isinstance(answer, Published):
                raise answer
            async with asyncio.timeout(timeout_s):
                return await back
        except TimeoutError:
            return False
        finally:
            del self._probes[name]

    def _on_probe(self, channel: str, payload: bytes) -> None:
        try:
            content = read_envelope(channel, payload)
        except JunkReceived:
            return
        if isinstance(content, Batch):
            for event in content.events:
                if not event.id.startswith(self._mark):
                    self._on_namesake()
                back = self._probes.get(event.id)
                if back is not None and not back.done():
                    back.set_result(True)

    def _on_namesake(self) -> None:
        """A probe of another node came: orders to one of the two would miss the other."""
        if not self._has_namesake():
            _log.warning("another node is called %s: each needs a name of its own", self._node)
        self._namesake_heard = self._monotonic()

    def _has_namesake(self) -> bool:
        return self._monotonic() - self._namesake_heard < _REMEMBERED * self._interval_s

    async def _probe_on(self) -> None:
        while True:
            began = self._monotonic()
            self._probe_soon.clear()
            homes = self._homes()
            try:
                outcomes = await gather([self._try(channel) for channel in homes.values()])
            except Exception:
                _log.exception("a probe failed")
                outcomes = ["unknown"] * len(homes)
            now = self._monotonic()
            self._judge(dict(zip(homes, outcomes, strict=True)), homes, began)
            pause_s = self._jittered()
            if "refused" in outcomes:
                pause_s = min(pause_s, _REPEAT_S)
            await _wait(self._probe_soon, began + pause_s - now)

    def _judge(
        self,
        outcomes: Mapping[Endpoint | None, Outcome],
        channels: Mapping[Endpoint | None, str],
        began: float,
    ) -> None:
        """Note what is wrong; replace connections that have been silent for long enough."""
        if all(outcome == "heard" for outcome in outcomes.values()):
            self._trouble = None
            self._well = began
        elif "refused" in outcomes.values():
            self._trouble = "Redis takes no events"
        before, self._silent_since = self._silent_since, {}
        for home, outcome in outcomes.items():
            if outcome != "silent":
                continue
            since = before.get(home, began)
            if home not in before or self._monotonic() - since < 2 * self._interval_s:
                self._silent_since[home] = since
                continue
            self._trouble = "what is published does not come back from Redis"
            self.silences += 1
            _log.warning("Redis pub/sub is silent; the connection is replaced")
            self._listener.break_off(self._channels.address(channels[home]))

    async def _try(self, channel: str) -> Outcome:
        """Send a probe; a connection that stands and confirms no subscription is silent too.

        No probe can come on that one.
        """
        address = self._channels.address(channel)
        if not self._listener.stands(address):
            return "silent" if self._is_stuck(channel) else "unknown"
        self._unconfirmed.pop(channel, None)
        try:
            if await self._probe(channel, self._interval_s):
                return "heard"
        except PubSubError as error:
            _log.info("a probe was refused: %s", error)
            return "refused"
        # Or its connection was lost, which is noticed elsewhere.
        return "unknown" if self._probe_soon.is_set() else "silent"

    def _is_stuck(self, channel: str) -> bool:
        """Say whether Redis answers, and has confirmed no subscription since the last time."""
        now = self._listener.pending(self._channels.address(channel))
        before = self._unconfirmed.get(channel)
        self._unconfirmed[channel] = now
        return self._link.problem() is None and 0 < now == before

    def _jittered(self) -> float:
        return random.uniform(0.75, 1.25) * self._interval_s  # noqa: S311

    # Comparing

    async def _compare_on(self) -> None:
        while True:
            await _wait(self._hurry, self._jittered())
            self._hurry.clear()
            try:
                await self._look()
            except PubSubError as error:
                _log.info("comparing tops waits: %s", error)
            except Exception:
                _log.exception("comparing tops failed")

    async def _look(self) -> None:
        failures: list[PubSubError] = []
        for each in (self._check_acknowledged, self.compare):
            try:
                await each()
            except PubSubError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        if self._channels.room.most:
            await self._channels.count()
        for _ in range(_SWEPT):
            self._partition = (self._partition + 1) % self._channels.partitions
            await self._channels.sweep(self._partition)

    async def compare(self) -> None:
        """Compare the tops of all subscribed channels with what was heard, and renew the leases.

        So are the versions of watched presence sets compared. Raises BrokerUnavailable, after it
        has compared what it could.
        """
        before = self._heard.snapshot()
        if not before:
            return
        homes = self._homes()
        shares: dict[Endpoint | None, dict[str, Position]] = {home: {} for home in homes}
        for channel, position in before.items():
            home = self._listener.home(self._channels.address(channel))
            shares.setdefault(home, {})[channel] = position
        all_tops = await asyncio.gather(*map(self._tops, shares.values()), return_exceptions=True)
        versions: Mapping[str, int] = {}
        failures: list[BaseException] = []
        try:
            versions = await self._versions()
        except PubSubError as error:
            failures.append(error)
        probes = await asyncio.gather(
            *(self._probe(channel, self._interval_s) for channel in homes.values()),
            return_exceptions=True,
        )
        came = dict(zip(homes, probes, strict=True))
        for (home, share), tops in zip(shares.items(), all_tops, strict=True):
            # Else nothing is known of what is on its way.
            if came.get(home) is True and not isinstance(tops, BaseException):
                for channel, position in self._heard.doubtful(share, tops):
                    self.doubts += 1
                    self._tell(channel, position)
        if all(each is True for each in probes):
            self._tell_versions(versions)
        failures += [each for each in (*all_tops, *probes) if isinstance(each, BaseException)]
        if failures:
            raise failures[0]

    async def _tops(self, share: Mapping[str, Position]) -> dict[str, Position]:
        """Return the tops of channels, and make records that are gone; raises BrokerUnavailable."""
        found = await self._channels.tops(share, self._node)
        tops: dict[str, Position] = {}
        for channel, top in found.items():
            if top is not None:
                tops[channel] = top[0]
            elif channel in self._heard:
                try:
                    tops[channel] = await self._reopen(channel)
                except TooManyChannels as error:
                    # Nothing is published there either; the others must be compared.
                    _log.info("a record that is gone is not made anew: %s", error)
        return tops

    async def _check_acknowledged(self) -> None:
        """Let Redis compare what this node acknowledged with what it holds now.

        An acknowledged event that died with a master then shows as a fork, not as silence. However
        long Redis was away: what counts is the minute before. Raises BrokerUnavailable, after it
        has compared what it could.
        """
        if not self._returned:
            return
        self._returned = False
        well = self._well_before
        failures: dict[Endpoint | None, BrokerUnavailable] = {}

        async def check(channel: str, position: Position) -> None:
            home = self._listener.home(self._channels.address(channel))
            if home in failures:
                return
            try:
                await self._contradict(channel, position)
            except BrokerUnavailable as error:
                failures[home] = error
            except TooManyChannels as error:
                # Its next record, if there is one, begins a new epoch.
                _log.info("what was acknowledged has no record, and no room for one: %s", error)

        recent = self._publishing.acknowledged.recent(well)
        for at in range(0, len(recent), _CHECKED):
            await gather([check(*each) for each in recent[at : at + _CHECKED]])
        for failure in failures.values():
            self._returned, self._well_before = True, well
            raise failure
        if not self._returned:
            self._publishing.acknowledged.join()


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    """Wait until an event is set, or until the time is over."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
