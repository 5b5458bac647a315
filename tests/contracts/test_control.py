"""What any control between nodes must do: the sentences of `Control`."""

import asyncio

import pytest

from control_rig import CONTROL_PARAMS, OpenControl
from pubsub.control import Answers
from pubsub.errors import BrokerUnavailable
from redis_rig import until


@pytest.fixture(params=CONTROL_PARAMS)
def open_rig(request: pytest.FixtureRequest) -> OpenControl:
    rig: OpenControl = request.param
    return rig


# ---- orders


async def test_an_order_is_carried_out_once_by_every_node(open_rig: OpenControl) -> None:
    async with open_rig() as rig:
        for node in rig.nodes:
            answers = await node.control.ask(b"end s1")
            assert answers == Answers(
                {each.name: each.name.encode() + b":end s1" for each in rig.nodes}, ()
            )
        assert all(len(node.sink.orders) == len(rig.nodes) for node in rig.nodes)


async def test_many_orders_at_once_are_all_answered(open_rig: OpenControl) -> None:
    async with open_rig() as rig:
        orders = [b"%d" % number for number in range(200)]
        answers = await asyncio.gather(
            *(
                rig.nodes[number % len(rig.nodes)].control.ask(order)
                for number, order in enumerate(orders)
            )
        )
        for order, answer in zip(orders, answers, strict=True):
            assert answer.silent == ()
            assert set(answer.answers) == {node.name for node in rig.nodes}
            assert all(text.endswith(b":" + order) for text in answer.answers.values())
        for node in rig.nodes:
            assert sorted(node.sink.orders) == sorted(orders)


async def test_who_does_not_answer_is_named(open_rig: OpenControl) -> None:
    async with open_rig(answer_timeout_s=0.2) as rig:
        first, last = rig.nodes[0], rig.nodes[-1]
        last.sink.blocked = True
        answers = await first.control.ask(b"x")
        assert answers.silent == (last.name,)
        assert set(answers.answers) == {node.name for node in rig.nodes} - {last.name}
        # What comes late disturbs no later order.
        last.sink.blocked = False
        last.sink.release.set()
        await until(lambda: last.sink.running == 0)
    async with open_rig() as rig:
        assert (await rig.nodes[0].control.ask(b"y")).silent == ()


async def test_large_answers_are_legal_and_too_large_ones_are_not_sent(
    open_rig: OpenControl,
) -> None:
    async with open_rig(answer_timeout_s=5.0) as rig:
        first, last = rig.nodes[0], rig.nodes[-1]
        for node in rig.nodes:
            node.sink.reply = b"x" * 512 * 1024
        answers = await first.control.ask(b"list")
        assert answers.silent == ()
        assert {len(answer) for answer in answers.answers.values()} == {512 * 1024}
    async with open_rig(answer_timeout_s=0.2) as rig:
        first, last = rig.nodes[0], rig.nodes[-1]
        last.sink.reply = b"x" * (512 * 1024 + 1)
        answers = await first.control.ask(b"list")
        assert last.name in answers.silent
        # The order may come when nobody waits for its answer any more.
        await until(lambda: getattr(last.control, "answers_refused"))  # noqa: B009
        assert getattr(last.control, "answers_refused") == 1  # noqa: B009
        assert getattr(first.control, "silent") == len(answers.silent)  # noqa: B009


async def test_an_order_that_is_too_large_is_refused(open_rig: OpenControl) -> None:
    async with open_rig() as rig:
        assert (await rig.nodes[0].control.ask(b"x" * 65_536)).silent == ()
        with pytest.raises(ValueError, match="too large"):
            await rig.nodes[0].control.ask(b"x" * 65_537)
        assert [len(node.sink.orders) for node in rig.nodes] == [1] * len(rig.nodes)


async def test_too_many_orders_in_flight_are_refused(open_rig: OpenControl) -> None:
    async with open_rig() as rig:
        node = rig.nodes[0]
        for each in rig.nodes:
            each.sink.blocked = True
        tasks = [asyncio.create_task(node.control.ask(b"x")) for _ in range(1_000)]
        await until(lambda: node.sink.running == 100)
        with pytest.raises(BrokerUnavailable, match="too many"):
            await node.control.ask(b"x")
        for each in rig.nodes:
            each.sink.blocked = False
            each.sink.release.set()
        answers = await asyncio.gather(*tasks)
        assert all(len(answer.answers) == len(rig.nodes) for answer in answers)
        assert node.sink.most_running <= 200


async def test_an_order_that_was_cancelled_disturbs_no_other(open_rig: OpenControl) -> None:
    async with open_rig() as rig:
        node = rig.nodes[0]
        tasks = [asyncio.create_task(node.control.ask(b"%d" % number)) for number in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        for number, each in enumerate(found):
            if number % 2:
                assert isinstance(each, Answers)
                assert each.silent == ()
            else:
                assert isinstance(each, asyncio.CancelledError)


@pytest.mark.expect_log("pubsub.order_tasks", "an order failed")
async def test_a_sink_that_fails_is_silent(open_rig: OpenControl) -> None:
    async with open_rig(answer_timeout_s=0.2) as rig:
        last, failed = rig.nodes[-1], asyncio.Event()

        async def fail(_order: bytes) -> bytes:
            failed.set()
            raise RuntimeError("a bug")

        class Failing:
            on_order = staticmethod(fail)
            on_notice = last.sink.on_notice

        last.control.bind(Failing())
        assert (await rig.nodes[0].control.ask(b"x")).silent == (last.name,)
        # The order may come when nobody waits for its answer any more.
        await failed.wait()


# ---- taking


async def test_what_was_taken_is_taken_on_all_nodes_until_its_time_is_over(
    open_rig: OpenControl,
) -> None:
    async with open_rig() as rig:
        first, last = rig.nodes[0].control, rig.nodes[-1].control
        assert await first.take("t1", 30.0)
        assert not await last.take("t1", 30.0)
        assert not await first.take("t1", 30.0)
        assert await last.take("t2", 90.0)
        await rig.advance(29.9)
        assert not await last.take("t1", 30.0)
        await rig.advance(0.2)
        assert await last.take("t1", 30.0)
        assert not await first.take("t1", 30.0)
        assert not await first.take("t2", 30.0)


async def test_one_of_many_at_once_takes(open_rig: OpenControl) -> None:
    async with open_rig() as rig:
        for name in ("a", "ä" * 10_000, "with \0 and \n", ""):
            took = await asyncio.gather(
                *(rig.nodes[n % len(rig.nodes)].control.take(name, 30.0) for n in range(40))
            )
            assert sorted(took) == [False] * 39 + [True]


# ---- notices


async def test_a_notice_reaches_every_node(open_rig: OpenControl) -> None:
    async with open_rig() as rig:
        first = rig.nodes[0]
        now = rig.clock.wall()
        await first.control.notify("user", "mïa \0", now + 0.123456, now + 60.5)
        # Who told of it knows when the call is over.
        assert first.sink.notices == [("user", "mïa \0", now + 0.123456, now + 60.5)]
        for node in rig.nodes:
            await until(lambda node=node: node.sink.notices)  # type: ignore[misc]
            assert node.sink.notices == first.sink.notices


async def test_the_latest_of_a_name_counts(open_rig: OpenControl) -> None:
    async with open_rig() as rig:
        first, last = rig.nodes[0], rig.nodes[-1]
        now = rig.clock.wall()
        tell = first.control.notify
        await tell("user", "u1", now, now + 60)
        await last.control.notify("user", "u1", now - 1, now + 600)
        await tell("ticket", "u1", now - 5, now + 60)
        await tell("user", "u1", now, now + 60)
        await tell("user", "u1", now, now + 61)
        await tell("user", "u1", now + 1, now + 30)
        await tell("user", "end", now, now + 30)
        for node in rig.nodes:
            await until(lambda node=node: "end" in node.sink.names())  # type: ignore[misc]
            mine = [each for each in node.sink.notices if each[1] == "u1"]
            assert mine == [
                ("user", "u1", now, now + 60),
                ("ticket", "u1", now - 5, now + 60),
                ("user", "u1", now, now + 61),
                ("user", "u1", now + 1, now + 30),
            ]


async def test_what_has_ended_is_not_told_and_may_come_anew(open_rig: OpenControl) -> None:
    async with open_rig() as rig:
        first = rig.nodes[0]
        now = rig.clock.wall()
        await first.control.notify("user", "over", now - 60, now)
        await first.control.notify("user", "u1", now, now + 10)
        await rig.advance(11)
        # An older one of that name, which nobody knows any more, holds longer.
        await first.control.notify("user", "u1", now - 1, now + 60)
        await first.control.notify("user", "u2", now, now + 60)
        for node in rig.nodes:
            await until(lambda node=node: "u2" in node.sink.names())  # type: ignore[misc]
            assert "over" not in node.sink.names()


@pytest.mark.expect_log("pubsub", "too many notices are kept: the oldest of user go")
async def test_beyond_the_bound_the_oldest_goes(open_rig: OpenControl) -> None:
    async with open_rig(most_notices=10) as rig:
        first, last = rig.nodes[0], rig.nodes[-1]
        now = rig.clock.wall()
        for number in range(30):
            await first.control.notify("user", f"u{number}", now, now + 600)
        await first.control.notify("ticket", "t", now, now + 600)
        assert getattr(first.control, "notices_dropped") == 20  # noqa: B009
        await until(lambda: last.sink.names() == [f"u{number}" for number in range(30)])


@pytest.mark.parametrize(
    ("topic", "name", "at_s", "until_s"),
    [
        ("other", "u1", 1.0, LATER := 4e9),
        ("user", "", 1.0, LATER),
        ("user", "u" * 1_025, 1.0, LATER),
        ("user", "\ud800", 1.0, LATER),
        ("user", "u1", -1.0, LATER),
        ("user", "u1", float("nan"), LATER),
        ("user", "u1", 1.0, float("inf")),
        ("user", "u1", 1.0, float("nan")),
    ],
)
async def test_what_is_no_notice_is_refused(
    open_rig: OpenControl, topic: str, name: str, at_s: float, until_s: float
) -> None:
    async with open_rig() as rig:
        with pytest.raises(ValueError):
            await rig.nodes[0].control.notify(topic, name, at_s, until_s)
        assert rig.nodes[0].sink.notices == []


# ---- life


async def test_a_control_that_is_closed_refuses(open_rig: OpenControl) -> None:
    async with open_rig() as rig:
        node = rig.nodes[0]
        assert node.control.problem() is None
        node.sink.blocked = True
        waiting = asyncio.create_task(node.control.ask(b"x"))
        await until(lambda: node.sink.running)
        await node.control.close()
        with pytest.raises(BrokerUnavailable, match="closed"):
            await waiting
        assert node.sink.running == 0
        await node.control.close()
        assert node.control.problem() == "the control is closed"
        for call in (
            node.control.ask(b"x"),
            node.control.take("t", 1.0),
            node.control.notify("user", "u", 1.0, 4e9),
        ):
            with pytest.raises(BrokerUnavailable, match="closed"):
                await call
