"""How does an event reach every node? This file: what a node does lest something is lost unseen.

A probe goes the way of all events and must come back: the same script, the same lane, the same
connection. Since Redis sends in order, all that was published before it has come when it comes, or
is lost. So tops that were read before a probe was sent are compared when it has come.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from pubsub.envelope import Batch, read_envelope
from pubsub.errors import BrokerUnavailable, JunkReceived, PubSubError
from pubsub.event import Draft, Published
from pubsub.heard import Heard
from pubsub.position import Position, new_epoch
from pubsub.redis_channels import RedisChannels
from pubsub.redis_link import RedisLink
from pubsub.redis_listener import RedisListener
from pubsub.redis_publishing import RedisPublishing

_log = logging.getLogger(__name__)

# Partitions whose lists are cleaned up with each comparison.
_SWEPT: Final = 2


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
        self._probe_channel = f"$probe.{node}"
        self._probes: dict[str, asyncio.Future[bool]] = {}
        self._probe_soon = asyncio.Event()
        self._trouble: str | None = "nothing has come from Redis yet"
        self._hurry = asyncio.Event()
        self._returned = False
        self._partition = random.randrange(channels.partitions)  # noqa: S311
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to watch; called once."""
        address = self._channels.address(self._probe_channel)
        self._listener.subscribe(address, self._on_probe).cancel()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._probe_on()), loop.create_task(self._compare_on())]

    def problem(self) -> str | None:
        """Return what is wrong, or None."""
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
        self._returned = True
        self._hurry.set()

    async def close(self) -> None:
        """End the tasks; may be called twice."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # The probe

    async def probe(self, timeout_s: float) -> bool:
        """Send a probe; False if it did not come back in time, or its connection was lost.

        Raises BrokerUnavailable if it could not be published.
        """
        name = new_epoch()
        back: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._probes[name] = back
        try:
            draft = Draft(self._probe_channel, name, "probe", b"null")
            (answer,) = await self._publishing.publish([draft], listed=False)
            if not isinstance(answer, Published):
                raise answer
            async with asyncio.timeout(timeout_s):
                return await back
        except TimeoutError:
            return False
        finally:
            del self._probes[name]

    def _on_probe(self, payload: bytes) -> None:
        try:
            content = read_envelope(self._probe_channel, payload)
        except JunkReceived:
            return
        if isinstance(content, Batch):
            for event in content.events:
                back = self._probes.get(event.id)
                if back is not None and not back.done():
                    back.set_result(True)

    async def _probe_on(self) -> None:
        silent_since: float | None = None
        while True:
            began = self._monotonic()
            self._probe_soon.clear()
            try:
                silent = await self._is_silent()
            except Exception:
                _log.exception("a probe failed")
                silent = False
            now = self._monotonic()
            if not silent:
                silent_since = None
            elif silent_since is None:
                silent_since = began
            elif now - silent_since >= 2 * self._interval_s:
                silent_since = None
                self._trouble = "what is published does not come back from Redis"
                self.silences += 1
                _log.warning("Redis pub/sub is silent; the connection is replaced")
                self._listener.break_off()
            await _wait(self._probe_soon, began + self._jittered() - now)

    async def _is_silent(self) -> bool:
        """Send a probe; True if it was taken, and did not come back on a connection that stands."""
        if not self._listener.restored:
            return False
        try:
            if await self.probe(self._interval_s):
                self._trouble = None
                return False
        except PubSubError as error:
            self._trouble = "Redis takes no events"
            _log.info("a probe was refused: %s", error)
            return False
        return not self._probe_soon.is_set()

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
        if self._returned:
            await self._check_acknowledged()
        await self.compare()
        if self._channels.room.most:
            await self._channels.count()
        for _ in range(_SWEPT):
            self._partition = (self._partition + 1) % self._channels.partitions
            await self._channels.sweep(self._partition)

    async def compare(self) -> None:
        """Compare the tops of all subscribed channels with what was heard, and renew the leases.

        So are the versions of watched presence sets compared. Raises BrokerUnavailable.
        """
        before = self._heard.snapshot()
        if not before:
            return
        found = await self._channels.tops(before, self._node)
        tops: dict[str, Position] = {}
        for channel, top in found.items():
            if top is not None:
                tops[channel] = top[0]
            elif channel in self._heard:
                tops[channel] = await self._reopen(channel)
        versions = await self._versions()
        if not await self.probe(self._interval_s):
            # Nothing is known of what is on its way.
            return
        for channel, position in self._heard.doubtful(before, tops):
            self.doubts += 1
            self._tell(channel, position)
        self._tell_versions(versions)

    async def _check_acknowledged(self) -> None:
        """Let Redis compare what this node acknowledged with what it holds now.

        An acknowledged event that died with a master then shows as a fork, not as silence.
        """
        self._returned = False
        try:
            for channel, position in self._publishing.acknowledged.recent(self._monotonic()):
                await self._contradict(channel, position)
        except BrokerUnavailable:
            self._returned = True
            raise


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    """Wait until an event is set, or until the time is over."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
