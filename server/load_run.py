"""Who is connected here? This file: the phases of a load run, from the warm-up to the report."""

import math
import time
from array import array
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Final

import msgspec

from server.load_histogram import Histogram
from server.load_loop import LoadLoop
from server.load_machine import Usage, shares, usage
from server.load_publisher import LoadPublisher
from server.load_report import LoadReport, Slice
from server.load_schedule import Schedule
from server.load_target import Wire
from server.load_verdict import Session, Standard

_TICK_S: Final = 0.25
_DRAIN_TICK_S: Final = 0.05
_CATCH_UP_S: Final = 0.25
_MOST_SLICES: Final = 60


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How to publish, and for how long.

    With `in_flight` messages that wait for their acknowledgement on each connection; or, with
    `rate`, so many events per second in all, whatever the server does. `batch` events to a
    message. The run ends after `warmup_s` and `seconds`, or with `events` published if that comes
    first; then it waits until all has come, or nothing more has for `patience_s`. Of sessions that
    are no witnesses the content is compared too of every `compare_every`-th (0: of none). Time in
    which this process was held up is no time in which nothing came, nor is what was due then left
    out.
    """

    seconds: float = 10.0
    warmup_s: float = 1.0
    in_flight: int = 1
    rate: float | None = None
    batch: int = 1
    events: int | None = None
    patience_s: float = 5.0
    compare_every: int = 1


class Moment(msgspec.Struct, frozen=True):
    """How far a run has come, and events delivered per second of late: None while it warms up."""

    elapsed_s: float
    total_s: float
    published: int
    delivered_per_s: float | None
    draining: bool


class _Mark(msgspec.Struct, frozen=True):
    """Where the counters stood at some time: events published, and bytes received on each wire."""

    at: float
    published: int
    received: list[int]


class Run:
    """One run over sessions and publishers that are open; `report` once."""

    def __init__(
        self,
        loop: LoadLoop,
        wires: Sequence[Wire],
        sessions: Sequence[Session],
        publishers: Sequence[LoadPublisher],
        plan: Plan,
        servers: Sequence[int],
        heard: Callable[[Moment], None],
    ) -> None:
        self._loop = loop
        self._wires = wires
        self._sessions = sessions
        self._publishers = publishers
        self._plan = plan
        self._servers = servers
        self._heard = heard
        self._standard = Standard(sessions, [wire.ping for wire in wires])
        self._numbers = array("l", [each.sock.fileno() for each in sessions])
        self._of_wire = [
            [each.sock.fileno() for each in sessions if each.wire == place]
            for place in range(len(wires))
        ]
        self._latency = Histogram()
        self._lag = Histogram()
        self._stopped = False
        self._turn = 0
        self._start = time.perf_counter()
        self._since = self._start + plan.warmup_s
        self._until = self._since + plan.seconds
        count = max(1, min(_MOST_SLICES, int(plan.seconds / _TICK_S)))
        width = plan.seconds / count
        self._slices = [
            Slice(plan.warmup_s + width * i, plan.warmup_s + width * (i + 1)) for i in range(count)
        ]
        self._slice_s = width
        self._marks: list[_Mark] = []
        self._kept_alive = self._start

    def stop(self) -> None:
        """Publish no more; what was published is still waited for. Safe in a signal handler."""
        self._stopped = True

    def on_event(self, due: float, late: float) -> None:
        """Count the latency of an event that was due in the measured phase."""
        self._latency.add(late)
        place = int((due - self._since) / self._slice_s)
        if place < len(self._slices):
            self._slices[place].latency.add(late)

    def report(self) -> LoadReport:
        """Run to the end and return what was found; raises LoadFailed."""
        for session in self._sessions:
            if session.witness is not None:
                session.witness.since = self._since
                session.witness.until = self._until
        before = after = self._usages()
        self._marks = []
        publishing = self._publish_at_rate() if self._plan.rate else self._publish_in_flight
        tick_at = self._start
        while (now := time.perf_counter()) < self._until and not self._over():
            if now >= tick_at:
                if not self._marks and now >= self._since:
                    before = self._usages()
                    self._marks.append(self._mark(now))
                elif self._marks and now >= self._since + len(self._marks) * self._slice_s:
                    self._marks.append(self._mark(now))
                self._tick(now)
                tick_at = min(now + _TICK_S, self._next_mark(), self._until)
            due_at = publishing(now)
            wait_s = min(tick_at, due_at, self._until) - time.perf_counter()
            self._loop.turn(max(0.0, wait_s))
        if self._plan.rate:
            self._catch_up(publishing)
        now = time.perf_counter()
        if self._marks:
            self._marks.append(self._mark(now))
            after = self._usages()
        self._drain()
        return self._judge(before, after, partial=self._stopped and now < self._until)

    # ---- publishing

    def _over(self) -> bool:
        return self._stopped or self._published() >= (self._plan.events or math.inf)

    def _published(self) -> int:
        return sum(each.published for each in self._publishers)

    def _publish_in_flight(self, now: float) -> float:
        """Send what the acknowledgements allow; nothing is due at a time."""
        batch = self._plan.batch
        allowed = (self._plan.in_flight - 1) * batch
        left = (self._plan.events or math.inf) - self._published()
        for each in self._publishers:
            while left > 0 and each.published - each.acked <= allowed:
                each.publish((now,) * batch)
                left -= batch
                now = time.perf_counter()
        return math.inf

    def _publish_at_rate(self) -> Callable[[float], float]:
        assert self._plan.rate is not None  # noqa: S101 - callers checked
        batch, publishers = self._plan.batch, self._publishers
        schedule = Schedule(self._plan.rate, batch, self._start)

        def publish(now: float) -> float:
            for due in schedule.due(now, self._until):
                if self._over():
                    break
                publishers[self._turn % len(publishers)].publish((due,) * batch)
                self._turn += 1
                if due >= self._since:
                    self._lag.add(time.perf_counter() - due)
            return schedule.next_due

        return publish

    def _catch_up(self, publishing: Callable[[float], float]) -> None:
        """Send what was due before the end, if this was held up just then.

        Who lags far behind, since the rate is too high for it, does not get to the end of that.
        """
        given_up_at = time.perf_counter() + _CATCH_UP_S
        while not self._over() and publishing(now := time.perf_counter()) < self._until:
            if now >= given_up_at:
                break
            self._loop.turn(0.0)

    # ---- in between

    def _mark(self, now: float) -> _Mark:
        counts = self._loop.counts
        received = [
            sum(itemgetter(*numbers)(counts))
            if len(numbers) > 1
            else sum(counts[n] for n in numbers)
            for numbers in self._of_wire
        ]
        return _Mark(now, self._published(), received)

    def _next_mark(self) -> float:
        return self._since + len(self._marks) * self._slice_s

    def _tick(self, now: float, *, draining: bool = False) -> None:
        self._keep_alive(now)
        rate = None
        if len(self._marks) > 1:
            rate = self._delivered(self._marks[-2], self._marks[-1])
        total_s = self._plan.warmup_s + self._plan.seconds
        self._heard(Moment(now - self._start, total_s, self._published(), rate, draining))

    def _keep_alive(self, now: float) -> None:
        """Let those sessions be heard whose turn has come since the last time."""
        since, self._kept_alive = self._kept_alive, now
        count = len(self._sessions)
        for place, wire in enumerate(self._wires):
            if not wire.keepalive_s:
                continue
            if int(since / wire.keepalive_s) != int(now / wire.keepalive_s):
                for each in self._publishers:
                    each.keep_alive()
            first, last = (int(at / wire.keepalive_s * count) for at in (since, now))
            for number in range(first, min(last, first + count)):
                session = self._sessions[number % count]
                if session.wire == place and not session.lost:
                    session.say(wire.keepalive)

    def _usages(self) -> list[Usage | None]:
        return [usage(), *(usage(pid) for pid in self._servers)]

    # ---- the end

    def _drain(self) -> None:
        seen: tuple[int, int] = (-1, -1)
        # Counted, not looked up: if all stood still meanwhile, nothing could come.
        quiet_s = 0.0
        while quiet_s < self._plan.patience_s:
            until = time.perf_counter() + _DRAIN_TICK_S
            while (left_s := until - time.perf_counter()) > 0:
                self._loop.turn(left_s)
            counts = self._counts()
            acked = sum(each.acked for each in self._publishers)
            if acked >= self._published() and self._standard.complete(counts):
                return
            if (found := (sum(counts), acked)) != seen:
                seen, quiet_s = found, 0.0
            else:
                quiet_s += _DRAIN_TICK_S
            self._tick(time.perf_counter(), draining=True)

    def _counts(self) -> list[int]:
        counts = self._loop.counts
        return [counts[number] for number in self._numbers]

    def _delivered(self, before: _Mark, after: _Mark) -> float:
        """Return events delivered per second between two marks."""
        events = 0.0
        for place, (old, new) in enumerate(zip(before.received, after.received, strict=True)):
            if size := self._standard.frame_bytes(place):
                events += (new - old) / size
        return events / (after.at - before.at) if after.at > before.at else 0.0

    def _judge(
        self, before: list[Usage | None], after: list[Usage | None], *, partial: bool
    ) -> LoadReport:
        marks, published = self._marks, self._published()
        measured_s = marks[-1].at - marks[0].at if marks else 0.0
        for found, old, new in zip(self._slices, marks, marks[1:], strict=False):
            found.begin_s, found.end_s = old.at - self._start, new.at - self._start
            found.delivered_per_s = self._delivered(old, new)
            span = new.at - old.at
            found.published_per_s = (new.published - old.published) / span if span else 0.0
        acked = sum(each.acked for each in self._publishers)
        verdict = self._standard.judge(self._counts())
        problems = list(verdict.problems)
        if acked != published:
            problems.append(f"{published} events were sent, {acked} acknowledged")
        own, *others = (shares(*each) for each in zip(before, after, strict=True))
        rate = (marks[-1].published - marks[0].published) / measured_s if measured_s else 0.0
        return LoadReport(
            sessions=len(self._sessions),
            published=published,
            acknowledged=acked,
            delivered=verdict.delivered,
            measured_s=measured_s,
            published_per_s=rate,
            delivered_per_s=self._delivered(marks[0], marks[-1]) if measured_s else 0.0,
            latency=self._latency,
            lag=self._lag,
            slices=self._slices[: max(0, len(marks) - 1)],
            own=own,
            servers={
                pid: each
                for pid, each in zip(self._servers, others, strict=True)
                if each is not None
            },
            compared=verdict.compared,
            partial=partial,
            problems=problems,
        )
