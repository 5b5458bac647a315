"""A feed and its sessions, compared with a simple model of what each has to be told.

Every session gets all events behind its position once and in order, or is told that it does not.
"""

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from delivery_rig import CHANNEL, turns, until
from feed_machine import FeedMachine, behind, ends, few
from feed_model import Asked
from feed_witness import is_kept
from pubsub.position import Position


class Machine(FeedMachine):
    def teardown(self) -> None:
        try:
            if hasattr(self, "rig"):
                self.harm(*self.last)
                self.everybody_knows_what_happened()
        finally:
            self.run(self.stack.aclose())
            self.runner.close()

    @rule(
        since=st.none() | behind,
        after=st.integers(0, 12),
        number=st.sampled_from([1, 5]),
        first=st.booleans(),
        pending=st.integers(0, 4),
        quiet=st.booleans(),
    )
    def meet(
        self, since: int | None, after: int, number: int, first: bool, pending: int, quiet: bool
    ) -> None:
        """Events come while somebody comes, perhaps as the first, and perhaps none after them."""
        if first:
            self.all_go()
            self.wait(20.0)
        self.slow_down(0 if pending else 5)
        for _ in range(pending):
            self.publish(1, "comes")
        self.come(since)
        self.turn(after)
        self.publish(number, "comes")
        if quiet:
            self.settle(0, "itself")

    @rule()
    def give_up(self) -> None:
        """Somebody comes while the feed that nobody held any more is still being left."""
        self.all_go()
        gate = self.rig.broker.early["unsubscribe"] = asyncio.Event()
        self.wait(20.0)
        self.come()
        self.turn(20)
        gate.set()
        del self.rig.broker.early["unsubscribe"]

    def all_go(self) -> None:
        while self.clients:
            self.go(0)

    @rule(number=st.integers(1, 3), forsaken=st.booleans())
    def come_ahead(self, number: int, forsaken: bool) -> None:
        """Somebody has seen more, on another node, than this one or than the broker knows."""
        if forsaken and "forks" in self.harms:
            self.fail_over(number, unseen=True, again=0)
        else:
            self.publish(number, "lost")
        self.come(since=0)
        self.turn(3)

    @rule(
        number=st.sampled_from([2, 8, 30]), by=st.sampled_from(["purge", "epoch", "more", "away"])
    )
    def interrupt(self, number: int, by: str) -> None:
        """Something happens while a replay waits for its client."""
        if len(self.clients) >= 6:
            self.go(0)
        self.publish(number, "comes", size=150)
        self.come(number, stalled=True)
        self.turn(20)
        if by == "purge" and "purges" in self.harms:
            self.purge(told=True)
        elif by == "epoch" and "forks" in self.harms:
            self.begin_epoch(told=True, ahead=0)
        else:
            self.publish(5, "comes")
        self.falter(away=by == "away")
        self.read(len(self.clients) - 1, stalled=False)
        self.wait(1.0)
        self.falter(away=False)

    # ---- what must hold

    @rule(lost=few, unseen=st.booleans(), more=st.sampled_from([-3, 0, 0, 1]), by=ends, resume=few)
    def harm(self, lost: int, unseen: bool, more: int, by: str, resume: int) -> None:
        """Something is lost last of all, for good if that is what happens here."""
        self.rig.broker.away = False
        if "forks" in self.harms:
            self.fail_over(lost, unseen, max(0, lost + more))
        else:
            self.publish(lost, "lost")
        self.settle(resume, by)

    @rule(resume=st.sampled_from([1, 2, 2, 4, 8, 30]), by=ends)
    def settle(self, resume: int, by: str) -> None:
        """One event that comes is enough, a comparison or a purge, and everybody stands at the top.

        Nothing is needed where nothing was lost since the last that came.
        """
        self.rig.broker.away = False
        self.rig.broker.turns = lambda: 0
        self.rig.broker.purges = self.rig.broker.forks = True
        self.arrive(newest_first=False)
        self.run(turns(20))
        if by == "top" and self.top() is not None:
            self.compare()
        elif by == "purge" and "purges" in self.harms and self.whole and self.top() is not None:
            self.purge(told=True)
        elif by != "itself" or self.behind or self.top() is None:
            self.publish(1, "comes")
        self.run(self.all_read())
        top = self.top()
        for client in self.clients:
            if client.session.subscriptions:
                at = self.follow(client)
                assert at is not None
                assert top is not None
                assert self.truth.owed(at, top, client.session.id) == 0
        if resume:
            line = list(self.truth.events)
            forsaken = [each for each in line if each not in self.line()]
            for since in [*line[-resume:][:1], *forsaken[-2:]]:
                self.run(self.come_from(since))

    def line(self) -> list[Position]:
        """Return what leads to the top."""
        found, at = [], self.top()
        while at in self.truth.events:
            found.append(at)
            at = self.truth.events[at].before
        return found

    async def all_read(self) -> None:
        for _ in range(40):
            for client in self.clients:
                client.connection.stalled = False
                client.connection.read()
            await asyncio.sleep(2.5)
        await until(lambda: all(client.attached for client in self.clients))
        if CHANNEL in self.rig.hub.feeds:
            await self.rig.live()

    async def come_from(self, since: Position) -> None:
        """Whoever comes from an earlier position gets all that history holds, or is refused."""
        top = await self.rig.broker.inner.top(CHANNEL)
        client = self.rig.session()
        witness = self.witness(client)
        witness.asked[1] = Asked(since=str(since), conflates=self.rule.slow == "conflate")
        reply = await client.subscribe(since=str(since))
        await until(lambda: client.attached)
        if is_kept(self.rig.broker.inner._records[CHANNEL], since):
            assert reply["recovered"] is True
        elif self.purges_told:
            assert reply["recovered"] is False
        assert self.follow(client) == top
        client.leave()

    @invariant()
    def everybody_knows_what_happened(self) -> None:
        self.top()
        for client in self.clients + self.leaving:
            self.follow(client)
            messages = client.connection.messages()
            if self.harmless:
                assert not any(each["type"] == "reset" for each in messages)
                assert all(each.get("recovered", True) for each in messages)
        self.gone += self.leaving
        self.leaving.clear()


@pytest.mark.unmeasured
def test_every_session_is_told_what_the_model_says(expect_log: Any) -> None:
    expect_log("server.repair", "feed reset", required=False)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=200,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
