"""The promise under a deterministic scheduler: very many seeds, each an order of events and faults.

`make simulate` runs as many as one likes; here run those that every change has to pass.
"""

import asyncio
import os
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

import sim_asks
from pubsub.archive import Unarchived
from pubsub.envelope import pack_mark
from pubsub.event import Published
from pubsub.position import Position
from pubsub.schedules import Schedule
from sim_archive import Course as ArchiveCourse
from sim_archive import archive_world
from sim_delivery import Course, Story, World, delivery_world
from sim_leases import LEASE_S, lease_world
from sim_leases import Course as LeaseCourse
from sim_ledger import Course as LedgerCourse
from sim_ledger import LedgerWorld, ledger_world
from sim_life import Call
from sim_outages import outage_world
from sim_presence import presence_world
from sim_scheduler import limited, virtual
from sim_truth import Plan
from sim_worlds import WORLDS

SUPPORT = Path(__file__).resolve().parents[1] / "support"
SEEDS = {
    "delivery": 1_000,
    "leases": 1_000,
    "outages": 400,
    "archive": 400,
    "presence": 60,
    "ledger": 200,
}

PROVOKED = [
    pytest.mark.expect_log("server.repair", "feed reset", required=False),
    pytest.mark.expect_log("pubsub.redis_watch", "silent", required=False),
    pytest.mark.expect_log("pubsub.redis_presence", "lease of this node was gone", required=False),
    pytest.mark.expect_log("pubsub.archivist", "archive", required=False),
    pytest.mark.expect_log("pubsub.redis_link", "Redis is away", required=False),
    pytest.mark.expect_log("pubsub.scheduler", "what is due could not", required=False),
]
pytestmark = [*PROVOKED, pytest.mark.unmeasured]

NAMES = sorted(WORLDS)
# So many seeds to a test: all of a world take a busy machine longer than any test may.
SEEDS_AT_ONCE = 200


def parts() -> list[tuple[str, int, int]]:
    """Return all worlds with their seeds: the first of some, and how many."""
    ends = {name: int(os.environ.get("SEEDS", SEEDS[name])) for name in NAMES}
    return [
        (name, first, min(SEEDS_AT_ONCE, end - first))
        for name, end in ends.items()
        for first in range(0, end, SEEDS_AT_ONCE)
    ]


@pytest.mark.parametrize(("name", "first", "count"), parts())
def test_every_seed_keeps_the_promise(name: str, first: int, count: int) -> None:
    command = [sys.executable, str(SUPPORT / "simulate.py"), name]
    command += ["--first", str(first), "--seeds", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_is_the_same_run(name: str) -> None:
    """Also after others, which share what is made once."""
    traces = []
    for seed in (*range(12), *range(11, -1, -1)):
        with WORLDS[name](seed) as run:
            run.play()
            traces.append(run.trace())
    assert traces[:12] == traces[:11:-1]
    assert len({str(trace) for trace in traces}) == 12


def test_the_seeds_meet_what_they_are_to_meet() -> None:
    """A simulation in which nothing goes wrong proves nothing."""
    met = WorldsMet()
    for seed in range(150):
        with delivery_world(seed) as world:
            world.play()
            met.add(world)
    assert min(met.counts.values()) > 5, met.counts


def test_the_seeds_of_a_single_node_meet_what_they_are_to_meet() -> None:
    met: Counter[str] = Counter()
    for seed in range(200):
        with ledger_world(seed) as world:
            world.play()
            met += world.met()
    wanted = (
        *("refused", "forgotten", "slow", "dropped", "crashes", "restarts", "jumps", "lapsed"),
        *("written", "heard", "repeats", "repeats in later lives", "joined", "epochs", "forks"),
        *("purges", "scheduled", "cancelled", "TooManyChannels", "BrokerUnavailable"),
    )
    assert min(met[name] for name in wanted) > 5, met


class WorldsMet:
    """What some runs met, in sum."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, world: World) -> None:
        for name, number in world.met().items():
            self.counts[name] = self.counts.get(name, 0) + number


# ---- the checks are not blind


def quiet_world() -> Course:
    return Course(steps=0, nodes=1)


@pytest.mark.parametrize("wrong", ["none", "left out", "twice", "swapped", "last missing", "reset"])
def test_the_story_of_a_client_is_followed_step_by_step(wrong: str) -> None:
    with delivery_world(1, quiet_world()) as world:
        world.come()
        client = world.clients[0]
        world.scheduler.run_until(lambda: client.visit.attached(), 60, "subscribed")
        client.visit.connection.stalled = False
        client.visit.connection.read()
        for _ in range(3):
            world.publish()
            world.scheduler.run_until(lambda: not world.publishers, 60, "published")
        world.settle()
        told = client.visit.connection.messages()
        events = [place for place, each in enumerate(told) if each["type"] == "event"]
        first, second = events[:2]
        if wrong == "left out":
            del told[first]
        elif wrong == "twice":
            told.insert(second, told[first])
        elif wrong == "swapped":
            told[first], told[second] = told[second], told[first]
        elif wrong == "last missing":
            del told[events[-1]]
        elif wrong == "reset":
            told.insert(
                second, told[first] | {"type": "reset"} | {"position": told[second]["position"]}
            )
            del told[second + 1]
        if wrong == "none":
            world.check()
        else:
            with pytest.raises(AssertionError):
                world.check()


def test_a_loss_that_nobody_was_told_of_is_seen() -> None:
    """A fail-over took an acknowledged event back, and another has its place."""
    with delivery_world(1, Course(steps=0, nodes=1, fail_overs=True)) as world:
        world.come()
        client = world.clients[0]
        world.publish()
        world.settle()
        (event, *_rest) = world.truth
        story = Story(world, {str(each.position): each for each in world.truth}, client)
        story.check(str(world.truth[-1].position))
        story.seen.discard(str(world.truth[-1].position))
        with pytest.raises(AssertionError, match="nobody told"):
            story._miss(set())
        assert event


@pytest.mark.parametrize("harm", ["left behind", "taken out"])
def test_what_redis_holds_is_compared_with_who_is_here(harm: str) -> None:
    with presence_world(1) as world:
        world.play()
        world.come()
        world.settle()
        channel = world.clients[-1].visit.channel
        members, order, _version = world.keys.presence(channel)
        held = world.held(channel)
        if harm == "left behind":
            world.redis.ask(("HSET", members, "ghost", "x"), ("ZADD", order, 0, "ghost"))
        else:
            world.redis.ask(("HDEL", members, held[0]), ("ZREM", order, held[0]))
        assert not world._holds()


@pytest.mark.parametrize("harm", ["none", "a leave more", "a leave less", "a life", "an entry"])
def test_what_was_announced_is_compared_with_who_is_here(harm: str) -> None:
    with lease_world(1, course=LeaseCourse(steps=0)) as world:
        for _ in range(3):
            world.come()
        world.settle()
        world.go()
        world.settle()
        guest = next(each for each in world.guests if each.here)
        members, order, _version = world.keys.presence(guest.channel)
        told, store = world.store.published, world.store
        if harm == "a leave more":
            told.append(told[-1])
        elif harm == "a leave less":
            del told[-1]
        elif harm == "a life":
            store.look(("ZADD", world.keys.leases[0], 1, f"{'0' * 16} node9"))
        elif harm == "an entry":
            store.look(("HDEL", members, guest.name), ("ZREM", order, guest.name))
        if harm == "none":
            world.check()
            assert world._is_settled()
        elif harm.startswith("a leave"):
            with pytest.raises(AssertionError):
                world.check()
        else:
            assert not world._is_settled()


def test_a_life_that_ended_without_a_reason_is_seen() -> None:
    with outage_world(1) as world:
        world.play()
        life = world.alive()[0].presence.lease.life
        world.store.look(("ZREM", world.keys.leases[0], life))
        world.scheduler.run_for(LEASE_S)
        with pytest.raises(AssertionError, match="taken for dead"):
            world.check()


@pytest.mark.parametrize(
    "harm", ["none", "left out", "told missing", "purged", "made up", "later first"]
)
def test_what_is_archived_is_compared_with_what_was_published(harm: str) -> None:
    with archive_world(1, course=ArchiveCourse(steps=0, nodes=1)) as world:
        for _ in range(6):
            world.publish()
            world.settle()
        database = world.database
        key, kept = next(iter(database.kept.items()))
        at = kept.event.position
        if harm == "left out":
            del database.kept[key]
        elif harm == "told missing":
            gap = Unarchived(key[0], at.epoch, at.offset, at.offset, kept.event.time)
            database.gaps.append(gap)
        elif harm == "purged":
            mark = pack_mark("purge", at)
            world.store.published.append((world.keys.address(key[0]).encode(), mark))
        elif harm == "made up":
            database.kept[("a", "0" * 16, 1, "0" * 16)] = kept
        elif harm == "later first":
            database.log.append(kept)
        if harm == "none":
            world.check()
        else:
            with pytest.raises(AssertionError):
                world.check()


# What an adversary would do to a disk.
HARMS = {
    "set back": 'UPDATE channels SET "offset" = 0, "check" = epoch WHERE channel = \'a\'',
    "forgotten": "DELETE FROM channels WHERE channel = 'a'",
    "left out": "DELETE FROM events WHERE channel = 'a' AND \"offset\" = 1",
    "another there": "INSERT INTO events SELECT channel, epoch, \"offset\", 'f', time, 0, 'x', "
    "name, body FROM events WHERE channel = 'a' AND \"offset\" = 1",
    "a fork": "UPDATE channels SET epoch = 'f' WHERE channel = 'a'",
}


def harm_ledger(world: LedgerWorld, harm: str) -> None:
    truth, life = world.truth, world.life
    at = truth.records["a"]
    if harm in HARMS:
        world.disk.look(HARMS[harm])
    elif harm == "not purged":
        truth.on_purged("a", at)
    elif harm == "not written":
        draft = world.draft("a")
        answer = Published("a", Position(at.epoch, at.offset + 1, "f" * 16), draft.id)
        truth.on_answer(life.heard, draft, answer, 0.0)
    elif harm == "not handed out":
        life.heard.tops["a"] = Position(at.epoch, at.offset - 1, "f" * 16)
    elif harm == "never fired":
        plan = Plan(Schedule(world.draft("a", "s"), 0, "0" * 16), sure=True)
        truth.plans[plan.schedule.key] = plan
    elif harm == "no answer":
        hangs = life.process.loop.create_task(asyncio.Event().wait())
        world.calls.append(Call(life, hangs, 0.0))


@pytest.mark.parametrize(
    "harm",
    [
        *("none", *HARMS, "not purged", "not written", "not handed out", "never fired"),
        "no answer",
    ],
)
def test_what_a_single_node_says_is_compared_with_what_is_on_its_disk(harm: str) -> None:
    with ledger_world(1, LedgerCourse(steps=0)) as world:
        world.settle()
        world.ask(partial(sim_asks.subscribe, "a"))
        for _ in range(2):
            world.drafts.append(draft := world.draft("a"))
            world.ask(partial(sim_asks.publish, [draft]))
        world.settle()
        harm_ledger(world, harm)
        if harm == "none":
            world.check()
        else:
            with pytest.raises(AssertionError):
                world.check()


def test_a_turn_that_does_not_end_is_a_failure() -> None:
    async def spin() -> None:
        while True:
            pass

    with virtual(1) as scheduler:
        process = scheduler.process("spins")
        process.call(lambda: process.loop.create_task(spin()))
        with limited(scheduler, 0.05):
            scheduler.run(20)
        assert "a turn does not end" in scheduler.failures[0]
