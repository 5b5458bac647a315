"""What the archive's queue adds to a publish, as Redis itself measures it.

Publishes to channels that are archived and to others in turns, in one run, and compares the time
that Redis spends on a call; 128 bytes of data. Nobody archives meanwhile. Needs a redis-server on
the PATH.
"""

import asyncio
import sys
import time
from argparse import Namespace

from _case import Case, claim_ratio
from _results import OURS, Figure, Result, Rounds
from _servers import redis
from config.rules import ChannelRule, ChannelRules
from pubsub.event import Draft, Published
from pubsub.redis_broker import RedisBroker
from pubsub.redis_client import connect
from pubsub.redis_link import RedisLink
from pubsub.redis_url import parse_redis_url

OPTIONS = {
    "events": (2000, 20_000, "events of each kind in a round"),
    "batch": (1, 1, "events in one call"),
    "rounds": (2, 5, "how often"),
}
_KINDS = {"plain": "not archived", "kept": "archived"}
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


async def compare(url: str, options: Namespace, result: Result) -> None:
    """Publish to both kinds of channels in turns."""
    link = RedisLink(connect(parse_redis_url(url), timeout_s=5.0), monotonic=time.monotonic)
    broker = RedisBroker(link, _RULES, archive_queue_max=0, interval_s=3_600.0)
    broker.bind(_Deaf())  # type: ignore[arg-type]
    await broker.start()
    while broker.problem() is not None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    rounds = Rounds()
    for _ in range(options.rounds):
        for prefix, variant in _KINDS.items():
            cost, rate = await publish(broker, prefix, options.events, options.batch)
            values = {"redis_call_us": cost, "published_per_s": rate}
            rounds.add(Figure(who=OURS, variant=variant, values=values))
    await broker.close()
    result.figures = rounds.figures()
    for key, what in (
        ("redis_call_us", "time of Redis for a call"),
        ("published_per_s", "events published per second"),
    ):
        claim_ratio(
            result,
            rounds,
            f"archive_queue.{key}",
            f"{what}, archived against not archived",
            key,
            OURS,
            OURS,
            variant=_KINDS["kept"],
            other_variant=_KINDS["plain"],
        )


def run(options: Namespace, result: Result) -> None:
    """Run the comparison over a Redis of its own."""
    with redis() as url:
        asyncio.run(compare(url, options, result))


CASE = Case("archive_queue", __doc__, OPTIONS, run)

if __name__ == "__main__":
    sys.exit(CASE.main())
