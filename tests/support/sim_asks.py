"""What is asked of the node of `sim_ledger.py`, and what is made of its answers."""

from collections.abc import Sequence
from typing import Final

from pubsub.archive import Query
from pubsub.errors import BrokerUnavailable
from pubsub.event import Draft, Published
from pubsub.position import Position
from pubsub.schedules import Added
from sim_life import CALL_TIMEOUT_S, Life
from sim_truth import Plan, is_plain

# So long a call may take: it looks at the ledger, and again behind another one.
CALL_S: Final = 40.0
# What takes its turn is answered in time, however many are before it; and somewhat later is heard.
TURN_S: Final = CALL_TIMEOUT_S + 10.0


async def publish(drafts: Sequence[Draft], life: Life) -> None:
    truth = life.truth
    since = truth.scheduler.clock.now
    keys = [(draft.channel, draft.id) for draft in drafts]
    truth.hopes.update(keys)
    try:
        answers = await life.broker.publish(drafts)
    except BrokerUnavailable:
        if all(not is_plain(draft.channel) for draft in drafts):
            truth.hopes.subtract(keys)
        raise
    for draft, key, answer in zip(drafts, keys, answers, strict=True):
        if isinstance(answer, Published):
            truth.on_answer(life.heard, draft, answer, since)
        else:
            truth.hopes[key] -= 1
            truth.on_refused(answer)


async def subscribe(channel: str, life: Life) -> None:
    _count_joins(channel, life)
    least = life.truth.least(channel)
    top = await life.broker.subscribe(channel)
    life.truth.on_subscribed(life.heard, channel, top)
    life.truth.on_top(channel, top, least)


async def unsubscribe(channel: str, life: Life) -> None:
    await life.broker.unsubscribe(channel)
    life.heard.tops.pop(channel, None)


async def top(channel: str, life: Life) -> None:
    _count_joins(channel, life)
    least = life.truth.least(channel)
    found = await life.broker.top(channel)
    if found is not None:
        life.truth.on_top(channel, found, least)
    elif least is not None and not life.truth.bounded:
        life.truth.expect(channel not in life.truth.records, f"{channel} is not known")


async def history(channel: str, life: Life) -> None:
    _count_joins(channel, life)
    least, floor = life.truth.least(channel), life.truth.floor(channel)
    found = await life.broker.history(channel, limit=100)
    if found is not None:
        life.truth.on_history(channel, found, least)
        life.truth.on_read(channel, found.events, floor)
        if floor is not None and life.truth.floor(channel) is not None:
            life.truth.expect(found.floor >= floor.offset, f"{channel} forgot a purge")


async def read(channel: str, life: Life) -> None:
    floor = life.truth.floor(channel)
    events = await life.archive.read(Query(channel=channel, limit=100))
    life.truth.on_read(channel, events, floor)


async def purge(channel: str, life: Life) -> None:
    # Until it is answered, and for ever if it is not.
    life.truth.purging[channel] += 1
    floor = await life.broker.purge(channel)
    life.truth.purging[channel] -= 1
    if floor is not None:
        life.truth.on_purged(channel, floor)


async def contradict(channel: str, evidence: Position, life: Life) -> None:
    least = life.truth.least(channel)
    life.truth.on_top(channel, await life.broker.contradict(channel, evidence), least)


async def schedule(plan: Plan, life: Life) -> None:
    added = await life.archive.schedules.add([plan.schedule], 0)
    life.truth.expect(added == [Added.NEW], "another schedule stands there")
    plan.sure = True
    life.firer.expect(plan.schedule.deliver_at)


async def cancel(plan: Plan, life: Life) -> None:
    truth, key, again = life.truth, plan.schedule.key, plan.cancelling
    plan.cancelling = True
    if await life.firing.cancel(plan.schedule):
        plan.cancelled = True
        truth.met["cancelled"] += 1
        published = truth.rows[key] or plan.delivered
        alone = not published or truth.hopes[key]
        truth.expect(alone, f"{key} was published, and is cancelled")
    elif not again and not is_plain(key[0]):
        truth.expect(truth.rows[key], f"{key} is neither published nor cancelled")


async def sweep(life: Life) -> None:
    await life.archive.sweep(life.wall_ms(), 100)


def _count_joins(channel: str, life: Life) -> None:
    life.truth.met["joined"] += channel in life.broker._recalls


def limit_s(work: object) -> float:
    """Return how long something that is asked may take."""
    in_turn = getattr(work, "func", None) in (publish, purge, contradict, cancel)
    return TURN_S if in_turn else CALL_S
