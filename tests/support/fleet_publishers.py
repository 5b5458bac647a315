"""Publishers of a fleet, and what they and those who follow have to show together."""

import asyncio
import json
import random
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

from fleet import KEY
from fleet_clients import LOST, Followed, Follower, until
from fleet_http import Exchange
from pubsub.position import Position


@dataclass(slots=True)
class Acknowledged:
    """An event that was acknowledged."""

    channel: str
    position: Position
    id: str


class Publisher:
    """Publishes event after event over one connection, each with an id that says its place.

    `how`: "key" (Idempotency-Key), "id" (in the body) or "none" (the server makes one). A publish
    that fails is noted; if the publisher is `patient`, it is sent again until it succeeds.
    """

    def __init__(
        self,
        url: str,
        tls: ssl.SSLContext | None,
        name: str,
        channels: Sequence[str],
        *,
        how: str = "key",
        pause_s: float = 0.1,
        patient: bool = False,
    ) -> None:
        self.url = url
        self.tls = tls
        self.name = name
        self.acknowledged: list[Acknowledged] = []
        # Status, body and how long each took that failed.
        self.failures: list[tuple[int, str, float]] = []
        # Since when it waits for an answer, if it does.
        self.waits_since: float | None = None
        self._channels = channels
        self._how = how
        self._pause_s = pause_s
        self._patient = patient
        self._closing = asyncio.Event()
        self._exchange: Exchange | None = None
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            for number in count():
                channel = self._channels[number % len(self._channels)]
                while not await self._publish(channel, f"{self.name}.{number:06}"):
                    if not self._patient or self._closing.is_set():
                        break
                    await asyncio.sleep(random.uniform(0.5, 1) * self._pause_s)
                with suppress(TimeoutError):
                    pause_s = random.uniform(0.5, 1.5) * self._pause_s
                    await asyncio.wait_for(self._closing.wait(), pause_s)
                if self._closing.is_set():
                    return
        finally:
            self._drop()

    async def _publish(self, channel: str, name: str) -> bool:
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        event: dict[str, Any] = {"channel": channel, "data": name}
        if self._how == "id":
            event["id"] = name
        elif self._how == "key":
            headers["Idempotency-Key"] = name
        began = self.waits_since = asyncio.get_running_loop().time()
        try:
            if self._exchange is None:
                self._exchange = await Exchange.open(self.url, self.tls)
            answer = await self._exchange.ask("POST", "/v1/events", event, headers=headers)
        except LOST as error:
            self._drop()
            took_s = asyncio.get_running_loop().time() - began
            self.failures.append((0, repr(error), took_s))
            return False
        finally:
            self.waits_since = None
        if answer.headers.get("connection") == "close":
            self._drop()
        if answer.status != 200:
            took_s = asyncio.get_running_loop().time() - began
            self.failures.append((answer.status, answer.body.decode(), took_s))
            return False
        found = json.loads(answer.body)
        position = Position.parse(found["position"])
        self.acknowledged.append(Acknowledged(channel, position, found["id"]))
        return True

    def _drop(self) -> None:
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None

    @property
    def stuck(self) -> bool:
        """Whether it has waited for an answer for longer than a node needs that goes on."""
        now = asyncio.get_running_loop().time()
        return self.waits_since is not None and now - self.waits_since > 0.5

    async def close(self) -> None:
        """Let it finish what it is about, and end it."""
        self._closing.set()
        await self._task


@asynccontextmanager
async def publishing(
    url: str,
    tls: ssl.SSLContext | None,
    channels: Sequence[str],
    number: int,
    *,
    hows: Sequence[str] = ("key",),
    pause_s: float = 0.1,
    patient: bool = False,
) -> AsyncIterator[list[Publisher]]:
    """Let publishers publish while the block runs; all has been answered after it."""
    publishers = [
        Publisher(
            url,
            tls,
            f"p{place:02}",
            channels,
            how=hows[place % len(hows)],
            pause_s=pause_s,
            patient=patient,
        )
        for place in range(number)
    ]
    try:
        yield publishers
    finally:
        await asyncio.gather(*(publisher.close() for publisher in publishers))


def acknowledged(publishers: Iterable[Publisher], channel: str) -> dict[str, Position]:
    """Return what was acknowledged in a channel: each id with its position, which is one only."""
    found: dict[str, Position] = {}
    for publisher in publishers:
        for each in publisher.acknowledged:
            if each.channel == channel:
                assert found.setdefault(each.id, each.position) == each.position
    return found


def gaps(followed: Followed) -> list[tuple[Position, Position]]:
    """Return where an event does not follow the one before: a loss, a repetition, a reset."""
    assert followed.first is not None
    before, found = followed.first, []
    for position, _event_id in followed.events:
        if position.epoch != before.epoch or position.offset != before.offset + 1:
            found.append((before, position))
        before = position
    return found


async def all_came(followers: Iterable[Follower], publishers: Iterable[Publisher]) -> None:
    """Wait until everybody has everything, and check that: exactly once, and in order."""
    publishers = list(publishers)
    for follower in followers:
        for channel, followed in follower.channels.items():
            expected = acknowledged(publishers, channel)
            await until(lambda e=expected, f=followed: e.keys() <= set(f.ids))  # type: ignore[misc]
            assert followed.cuts == []
            assert gaps(followed) == []
            ids = followed.ids
            assert len(ids) == len(set(ids)), "an event came twice"
            placed = {event_id: position for position, event_id in followed.events}
            assert {event_id: placed[event_id] for event_id in expected} == expected
            in_order(publishers, channel, ids)
        assert follower.unexpected == []


def in_order(publishers: Iterable[Publisher], channel: str, ids: Sequence[str]) -> None:
    """Check that the events of each publisher come in the order in which it published them."""
    places = {event_id: place for place, event_id in enumerate(ids)}
    for publisher in publishers:
        own = [places[each.id] for each in publisher.acknowledged if each.channel == channel]
        assert own == sorted(own)
