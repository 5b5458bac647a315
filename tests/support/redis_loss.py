"""What a Redis loses, or goes back to: keys of channels, taken away or put back as they were."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pubsub.redis_broker import RedisBroker


@dataclass(frozen=True)
class RedisLoss:
    """Loses data of a broker's channels; what others keep in the same Redis stays."""

    broker: RedisBroker

    async def lose_all(self, channels: Iterable[str]) -> None:
        """Lose everything, as a master without persistence does."""
        await self._delete(self._keys(channels))

    async def lose_record(self, channel: str) -> None:
        """Lose where a channel stands, as by eviction."""
        await self._delete([self.broker.keys.record(channel)])

    async def lose_events(self, channel: str) -> None:
        """Lose a channel's events, as by eviction."""
        await self._delete([self.broker.keys.stream(channel)])

    async def copy(self, channels: Iterable[str]) -> dict[str, bytes | None]:
        """Return everything as it is, as a replica has it that hears no more of its master."""
        return {key: await self._command("DUMP", key) for key in self._keys(channels)}

    async def go_back(self, copy: Mapping[str, bytes | None]) -> None:
        """Fail over to a replica that has a copy from earlier."""
        for key, value in copy.items():
            await self._delete([key])
            if value is not None:
                await self._command("RESTORE", key, 0, value)

    def _keys(self, channels: Iterable[str]) -> list[str]:
        keys = self.broker.keys
        found: dict[str, None] = {}
        for each in channels:
            own = (keys.record(each), keys.stream(each), *keys.ids(each))
            found.update(dict.fromkeys((*own, *keys.lists(keys.partition(each)))))
        return list(found)

    async def _delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            await self._command("DEL", key)

    async def _command(self, *parts: str | bytes | int) -> bytes | None:
        answer = await self.broker.link.command(*parts)
        return answer if isinstance(answer, bytes) else None
