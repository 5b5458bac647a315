"""A single node with SQLite in a simulated world: it dies and comes back, and its disk fails.

Of the node there is what gives positions and what publishes at a time: `DurableBroker` with its
queue of commits, `DurableFiring` and the scheduler, over the archive in a database in memory; see
`sim_life.py` and `sim_disk.py`. What is checked is rule 29, and what rule 30 says of a single node;
`sim_truth.py` says how.
"""

import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any, Final
from unittest import mock

import sim_asks
from config.rules import ChannelRule, ChannelRules
from pubsub.errors import ArchiveUnavailable, BrokerUnavailable, TooManyChannels
from pubsub.event import Draft
from pubsub.position import Position
from pubsub.schedules import Schedule
from sim_database import Troubles
from sim_disk import Disk
from sim_life import Call, Life
from sim_scheduler import WALL_S, PlayedWorld, Scheduler, virtual
from sim_truth import TTL_S, Plan, Truth, is_plain

ARCHIVED = ("a", "b", "c")
PLAIN = ("plain.p", "plain.q")
SETTLE_S: Final = 120.0


@dataclass(slots=True)
class Course:
    """What a seed makes of a run, beside the order of things."""

    steps: int = 20
    hurry: float = 0.02
    crashes: bool = False
    restarts: bool = False
    outages: bool = False
    # The wall clock is set right now and then, or is far out.
    jumps: bool = False
    leaps: bool = False
    impatient: bool = False
    purges: bool = False
    forks: bool = False
    schedules: bool = False
    lapses: bool = False
    # How many channels are kept (0: all), events go into a commit, and wait for one.
    most_channels: int = 0
    most_events: int = 2_000
    most_waiting: int = 20_000
    archive_ttl_s: float = 0.0
    history_size: int = 500
    troubles: Troubles = field(default_factory=Troubles)

    @classmethod
    def draw(cls, rng: random.Random) -> "Course":
        def often(part: float) -> bool:
            return rng.random() < part

        return cls(
            steps=rng.choice((15, 30, 60)),
            hurry=rng.choice((0.0, 0.02, 0.1)),
            crashes=often(0.5),
            restarts=often(0.4),
            outages=often(0.4),
            jumps=often(0.3),
            leaps=often(0.3),
            impatient=often(0.3),
            purges=often(0.5),
            forks=often(0.5),
            schedules=often(0.5),
            lapses=often(0.4),
            most_channels=rng.choice((0, 0, 0, 2, 3)),
            most_events=rng.choice((1, 3, 2_000)),
            most_waiting=rng.choice((4, 20_000, 20_000)),
            archive_ttl_s=rng.choice((0.0, 0.0, 5.0)),
            history_size=rng.choice((0, 2, 500)),
            troubles=replace(Troubles.draw(rng), part=0.0),
        )


Work = Callable[[Life], Awaitable[None]]


class LedgerWorld(PlayedWorld):
    """The node's lives, one after the other, and who asks things of it."""

    def __init__(self, scheduler: Scheduler, course: Course, disk: Disk) -> None:
        self.scheduler = scheduler
        self.rng = scheduler.rng
        self.course = course
        self.disk = disk
        self.truth = Truth(
            scheduler, leaps=course.jumps and course.leaps, bounded=course.most_channels > 0
        )
        disk.on_note = self.truth.on_note
        archived = ChannelRule(
            match=">",
            archive=True,
            archive_ttl_s=course.archive_ttl_s,
            history_size=course.history_size,
            history_ttl_s=30.0,
        )
        self.rules = ChannelRules((ChannelRule(match="plain.>", history_ttl_s=30.0),), archived)
        self.lives: list[Life] = []
        self.calls: list[Call] = []
        self.drafts: list[Draft] = []
        self._last = ""
        self._ahead_s = 0.0
        self._numbers = count(1)
        scheduler.hurry = course.hurry
        self.begin_life()

    @property
    def life(self) -> Life:
        return self.lives[-1]

    def wall_ms(self) -> int:
        return int((WALL_S + self.scheduler.clock.now + self._ahead_s) * 1000)

    # Lives

    def begin_life(self) -> None:
        number = len(self.lives)
        process = self.scheduler.process(f"life{number}")
        life = Life(process, self.truth, number, self.wall_ms)
        self.truth.life = life.heard
        self.lives.append(life)
        self._soon(life, self._open)

    async def _open(self, life: Life) -> None:
        if await life.open(self.rules, self.course.most_channels):
            if not self.course.most_channels:
                for channel in PLAIN:
                    await sim_asks.subscribe(channel, life)
                for channel in ARCHIVED:
                    if self.rng.random() < 0.4:
                        self._soon(life, partial(sim_asks.subscribe, channel))
            life.up = True
            if self.course.schedules:
                life.firer.start()

    # What may happen

    def ask(self, work: Work) -> None:
        if self.life.up:
            self._soon(self.life, work)

    def _soon(self, life: Life, work: Work) -> None:
        life.asked += 1
        life.process.call(self._begin, life, work)

    def _begin(self, life: Life, work: Work) -> None:
        life.asked -= 1
        task = life.process.loop.create_task(self._watch(life, work))
        self.calls.append(Call(life, task, self.scheduler.clock.now + sim_asks.limit_s(work)))

    async def _watch(self, life: Life, work: Work) -> None:
        try:
            await work(life)
        except (ArchiveUnavailable, BrokerUnavailable, TooManyChannels) as error:
            self.truth.on_refused(error)
        except Exception as error:
            self.truth.expect(life.process.dead, f"unexpected: {error!r}")

    def pick(self, channels: Sequence[str] = ARCHIVED) -> str:
        """A channel, now and then the one before again: so more happens to it at once."""
        if self._last not in channels or self.rng.random() < 0.5:
            self._last = self.rng.choice(channels)
        return self._last

    def draft(self, channel: str, name: str = "e") -> Draft:
        event_id = f"{name}{next(self._numbers)}"
        return Draft(channel, event_id, "n", json.dumps(event_id).encode())

    def publish(self) -> None:
        """New events, or some that were published before."""
        rng, drafts = self.rng, []
        some = rng.choice(((self.pick(),), ARCHIVED, (*ARCHIVED, *PLAIN), PLAIN))
        for _ in range(rng.choice((1, 1, 2, 5))):
            if self.drafts and rng.random() < 0.3:
                drafts.append(rng.choice(self.drafts[-12:]))
            else:
                drafts.append(self.draft(rng.choice(some)))
        self.drafts += [each for each in drafts if each not in self.drafts]
        self.ask(partial(sim_asks.publish, drafts))

    def subscribe(self) -> None:
        channel = self.pick((*ARCHIVED, *PLAIN))
        # Many come at once.
        for _ in range(self.rng.choice((1, 1, 3))):
            self.ask(partial(sim_asks.subscribe, channel))

    def unsubscribe(self) -> None:
        self.ask(partial(sim_asks.unsubscribe, self.pick()))

    def look(self) -> None:
        """Ask where a channel stands, for its history, or for what is archived."""
        for _ in range(self.rng.choice((1, 3))):
            work = self.rng.choice((sim_asks.top, sim_asks.top, sim_asks.history, sim_asks.read))
            self.ask(partial(work, self.pick()))

    def purge(self) -> None:
        self.ask(partial(sim_asks.purge, self.pick((*ARCHIVED, *PLAIN))))

    def contradict(self) -> None:
        """Somebody has seen what is not so, or what is."""
        channel = self.pick()
        known = [each for each in self.truth.acknowledged if each.channel == channel]
        top = self.truth.records.get(channel)
        if known and self.rng.random() < 0.3:
            self.ask(partial(sim_asks.contradict, channel, self.rng.choice(known).position))
        elif top is not None:
            self.truth.contradicted.add((channel, top.epoch))
            evidence = Position(top.epoch, top.offset + self.rng.choice((0, 1, 3)), "f" * 16)
            self.ask(partial(sim_asks.contradict, channel, evidence))

    def schedule(self) -> None:
        draft = self.draft(self.pick((*ARCHIVED, *PLAIN)), "s")
        due = self.wall_ms() + self.rng.choice((0, 100, 1_000, 10_000))
        plan = Plan(Schedule(draft, due, f"{next(self._numbers):016x}"))
        self.truth.plans[plan.schedule.key] = plan
        if self.rng.random() < 0.1:
            # Somebody publishes it before.
            self.ask(partial(sim_asks.publish, [draft]))
        self.ask(partial(sim_asks.schedule, plan))

    def cancel(self) -> None:
        plans = [each for each in self.truth.plans.values() if each.sure]
        if plans:
            self.ask(partial(sim_asks.cancel, self.rng.choice(plans[-3:])))

    def sweep(self) -> None:
        if self.life.up:
            self.life.process.call(self.life.broker.sweep)
        self.ask(sim_asks.sweep)

    def sleep(self) -> None:
        self.scheduler.run_for(self.rng.choice((0.3, 3.0, 12.0)))

    def lapse(self) -> None:
        """So long nobody wants anything that channels lapse, or do as somebody comes."""
        self.scheduler.run_for(1.5 * TTL_S)
        self.rng.choice((self.publish, self.look, self.sleep))()
        self.scheduler.run(self.rng.choice((5, 20)))
        self.sweep()

    def give_up(self) -> None:
        if self.calls:
            call = self.rng.choice(self.calls)
            if call.life.up:
                call.life.process.call(call.task.cancel)

    def jump(self) -> None:
        most_s = 300.0 if self.course.leaps else 10.0
        self._ahead_s = self.rng.choice((-most_s, 0.0, most_s))
        self.truth.met["jumps"] += 1

    def crash(self) -> None:
        self.life.up = False
        self.life.over = self.life.process.dead = True
        # It does not tell any more what it leaves undone.
        self.life.process.loop.set_exception_handler(lambda _loop, _context: None)
        self.truth.met["crashes"] += 1

    def restart(self) -> None:
        """The node ends as it should."""
        life = self.life
        if life.up:
            life.up = False
            self._soon(life, Life.close)
            self.truth.met["restarts"] += 1

    def outage(self) -> None:
        """The disk does nothing for a while, or does not say what it did."""
        if self.disk.away or self.disk.mute:
            self.disk.away = self.disk.mute = False
        else:
            self.disk.mute = self.rng.random() < 0.6
            self.disk.away = not self.disk.mute

    # The run

    def run(self) -> None:
        course = self.course
        choices: dict[Any, float] = {
            self.publish: 55,
            self.subscribe: 10,
            self.unsubscribe: 3,
            self.look: 12,
            self.sleep: 8,
            self.sweep: 4,
            self.purge: 12 * course.purges,
            self.contradict: 14 * course.forks,
            self.schedule: 30 * course.schedules,
            self.cancel: 24 * course.schedules,
            self.lapse: 4 * course.lapses,
            self.give_up: 6 * course.impatient,
            self.jump: 4 * course.jumps,
            self.crash: 5 * course.crashes,
            self.restart: 4 * course.restarts,
            self.outage: 12 * course.outages,
        }
        for _ in range(course.steps):
            self.scheduler.act(choices, (0, 5, 20, 60))
            self.tend()

    def tend(self) -> None:
        """Whatever was asked has ended in time; a node that is no more is started again."""
        assert not self.scheduler.failures, self.scheduler.failures
        self.calls = [x for x in self.calls if not (x.task.done() or x.life.process.dead)]
        late = [x.task for x in self.calls if x.until < self.scheduler.clock.now]
        assert not late, f"calls hang: {late}"
        if self.life.over:
            self.begin_life()

    def settle(self) -> None:
        """Without any more faults all goes on, and nothing stays in doubt."""
        self.disk.away = self.disk.mute = False
        self.disk.troubles.heal()
        self._until(self._is_idle, "all calls end")
        if self.course.schedules and not self.course.most_channels:
            self._until(lambda: not self.life.broker.doubtful, "what is in doubt is looked up")
        for channel in ARCHIVED:
            self._until(partial(self._is_published, self.draft(channel)), f"{channel} goes on")
        if not self.course.most_channels:
            self._until(lambda: not self.life.broker.doubtful, "nothing stays in doubt")
            if self.course.schedules:
                self._until(self._is_fired, "all is published that was due")

    def _until(self, condition: Callable[[], object], what: str) -> None:
        def holds() -> object:
            self.tend()
            return condition()

        # A clock that is set back lets what is due wait.
        limit_s = SETTLE_S + 700 * self.course.leaps
        self.scheduler.run_until(holds, limit_s, what)

    def _is_idle(self) -> bool:
        return self.life.up and not self.life.asked and not self.calls

    def _is_published(self, draft: Draft) -> bool:
        if not self._is_idle():
            return False
        key = (draft.channel, draft.id)
        if self.truth.rows[key] or (self.course.most_channels and key in self.truth.hopes):
            return True
        self.ask(partial(sim_asks.publish, [draft]))
        return False

    def _is_fired(self) -> bool:
        return not self.disk.look("SELECT 1 FROM schedules")

    # What must hold in the end

    def check(self) -> None:
        """After a restart too."""
        self._check_heard()
        self.sleep()
        self.restart()
        self._until(self._is_idle, "it starts again")
        for channel in ARCHIVED:
            self.ask(partial(sim_asks.subscribe, channel))
            self.ask(partial(sim_asks.history, channel))
        # Again, and with the same positions if it was within the window.
        self.ask(partial(sim_asks.publish, self.drafts[-12:] or [self.draft("a")]))
        self._until(self._is_idle, "all calls end")
        self._check_heard()
        for channel in ARCHIVED:
            rows = self.disk.look(
                'SELECT epoch, "offset", "check" FROM events WHERE channel = ? AND body NOT NULL',
                channel,
            )
            expire = self.course.archive_ttl_s > 0
            self.truth.check_rows(channel, [Position(*row) for row in rows], expire=expire)
        self._check_plans()
        assert not self.life.broker.waiting, "something waits for ever"
        assert not self.scheduler.failures, self.scheduler.failures

    def _check_heard(self) -> None:
        """Who listens has heard all that was written."""
        for channel, top in self.life.heard.tops.items():
            told = channel not in self.life.broker._doubtful
            if not is_plain(channel) and told:
                assert top == self.truth.records[channel], f"{channel} was not heard to its end"

    def _check_plans(self) -> None:
        if self.course.most_channels:
            return
        for key, plan in self.truth.plans.items():
            if plan.sure and not plan.cancelling:
                lost = is_plain(key[0]) and len(self.lives) > 2
                done = plan.delivered or self.truth.rows[key] or self.truth.hopes[key]
                assert done or lost, f"{key} was never published"

    def met(self) -> Counter[str]:
        """What happened in the run, so that a world in which nothing does would show."""
        disk = self.disk
        done = Counter(
            {
                "refused": disk.refused,
                "forgotten": disk.forgotten,
                "slow": disk.slow,
                "dropped": disk.dropped,
                "lives": len(self.lives),
            }
        )
        return done + self.truth.met

    def trace(self) -> list[object]:
        """All that could be seen of the run: two of the same seed are the same."""
        scheduler = self.scheduler
        told = [self.truth.acknowledged, sorted(self.truth.met.items())]
        return [*scheduler.trace, scheduler.steps, scheduler.clock.now, *told]


@contextmanager
def ledger_world(seed: int, course: Course | None = None) -> Iterator[LedgerWorld]:
    """A world that has not begun to go."""
    with ExitStack() as stack:
        scheduler = stack.enter_context(virtual(seed))
        course = course or Course.draw(scheduler.rng)
        for place, most in (
            ("pubsub.commit_queue.MOST_EVENTS", course.most_events),
            ("pubsub.durable_broker.MOST_EVENTS", course.most_events),
            ("pubsub.commit_queue._MOST_WAITING", course.most_waiting),
        ):
            stack.enter_context(mock.patch(place, most))
        disk = Disk(scheduler, replace(course.troubles))
        stack.enter_context(disk.mounted())
        yield LedgerWorld(scheduler, course, disk)
