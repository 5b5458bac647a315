"""Counting the channels of all partitions."""

import asyncio
from typing import Any, cast

from pubsub.channel_room import ChannelRoom
from pubsub.redis_channels import RedisChannels
from pubsub.redis_keys import RedisKeys
from pubsub.redis_link import RedisLink
from pubsub.redis_scripts import RedisScripts
from pubsub.redis_times import RedisTimes


class SlowLink:
    """A link whose answers wait until they are let go; it counts one channel more each time."""

    def __init__(self) -> None:
        self.asked = 0
        self.go = asyncio.Event()

    async def command(self, *_parts: Any) -> int:
        self.asked += 1
        answer = self.asked - 1
        await self.go.wait()
        return answer


async def test_a_count_does_not_share_one_that_began_before() -> None:
    """A publish that found no room counted, and was told of a count from before its channels.

    So one channel more than allowed was made.
    """
    link = SlowLink()
    room = ChannelRoom(1)
    times = RedisTimes(idempotency_window_s=1.0, position_ttl_s=1.0, clock_ms=None)
    keys = RedisKeys(partitions=1)
    channels = RedisChannels(cast(RedisLink, link), RedisScripts(), keys, times, room)
    early = asyncio.create_task(channels.count())
    while not link.asked:  # noqa: ASYNC110
        await asyncio.sleep(0)
    late = [asyncio.create_task(channels.count()) for _ in range(3)]
    await asyncio.sleep(0)
    link.go.set()
    await asyncio.gather(early, *late)
    assert (link.asked, room.known) == (2, 1)
    await channels.close()
