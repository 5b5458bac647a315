"""What the archive's queue adds to a publish, as Redis itself measures it.

    python bench/archive_queue.py [--events 20000] [--batch 1] [--rounds 5]

Publishes to channels that are archived and to others in turns, in one run, and compares the time
that Redis spends on a call; 128 bytes of data. Nobody archives meanwhile. Needs a redis-server on
the PATH.
"""

import argparse
import asyncio
import statistics
import sys
import time

from _load import redis
from config.rules import ChannelRule, ChannelRules
from pubsub.event import Draft, Published
from pubsub.redis_broker import RedisBroker
from pubsub.redis_client import connect
from pubsub.redis_link import RedisLink
from pubsub.redis_url import parse_redis_url

_DATA = b'{"p":"' + b"x" * 120 + b'"}'
_IN_FLIGHT = 64
_RULES = ChannelRules([ChannelRule(match="kept.>", archive=True)])


class _Deaf:
    """Takes what comes and does nothing with it."""

    def __getattr__(self, _name: str) -> object:
        return lambda *_: None


async def spent_us(broker: RedisBroker) -> tuple[int, int]:
    """Return how many scripts Redis has run, and how long they took."""
    said: bytes = await broker.link.command("INFO", "commandstats")
    calls = time_us = 0
    for line in said.decode().split():
        if line.startswith("cmdstat_eval"):
            fields = dict(each.split("=") for each in line.partition(":")[2].split(","))
            calls, time_us = calls + int(fields["calls"]), time_us + int(fields["usec"])
    return calls, time_us


async def publish(broker: RedisBroker, prefix: str, events: int, batch: int) -> tuple[float, float]:
    """Publish events; return us of Redis for each call, and events a second."""
    numbers = iter(range(0, events, batch))
    name = f"{prefix}.{time.monotonic_ns()}"

    async def publisher(lane: int) -> None:
        for number in numbers:
            drafts = [
                Draft(f"{name}.{lane}", f"{name}-{number + n}", "message", _DATA)
                for n in range(batch)
            ]
            for answer in await broker.publish(drafts):
                assert isinstance(answer, Published), answer

    calls, time_us = await spent_us(broker)
    began = time.perf_counter()
    await asyncio.gather(*map(publisher, range(_IN_FLIGHT)))
    took = time.perf_counter() - began
    calls_now, time_now_us = await spent_us(broker)
    return (time_now_us - time_us) / (calls_now - calls), events / took


async def compare(url: str, events: int, batch: int, rounds: int) -> None:
    """Print what both cost, and their ratio."""
    link = RedisLink(connect(parse_redis_url(url), timeout_s=5.0), monotonic=time.monotonic)
    broker = RedisBroker(link, _RULES, archive_queue_max=0, interval_s=3_600.0)
    broker.bind(_Deaf())  # type: ignore[arg-type]
    await broker.start()
    while broker.problem() is not None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    costs: dict[str, list[float]] = {"plain": [], "kept": []}
    rates: dict[str, list[float]] = {"plain": [], "kept": []}
    for _ in range(rounds):
        for prefix in costs:
            cost, rate = await publish(broker, prefix, events, batch)
            costs[prefix].append(cost)
            rates[prefix].append(rate)
    await broker.close()
    for prefix, word in (("plain", "not archived"), ("kept", "archived")):
        cost, rate = statistics.median(costs[prefix]), statistics.median(rates[prefix])
        print(f"{word:<13} {cost:7.1f} us of Redis a call of {batch}, {rate:8,.0f} events/s")
    ratio = statistics.median(costs["kept"]) / statistics.median(costs["plain"])
    slower = statistics.median(rates["kept"]) / statistics.median(rates["plain"])
    print(f"archived / not archived: {ratio:.2f} of Redis's time, {slower:.2f} of the events/s")


def main() -> int:
    """Run the comparison over a Redis of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", type=int, default=20_000, help="of each kind and round")
    parser.add_argument("--batch", type=int, default=1, help="events in one call")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with redis() as url:
        asyncio.run(compare(url, args.events, args.batch, args.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
