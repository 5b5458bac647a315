"""History reads, shared by all who wait for the same range."""

import asyncio

import pytest

from delivery_rig import CHANNEL, open_delivery_rig, turns
from pubsub.errors import BrokerUnavailable
from server.reads import SharedReads


async def test_equal_reads_share_an_answer_and_others_do_not() -> None:
    async with open_delivery_rig() as rig:
        await rig.publish("a", "b", "c")
        reads = SharedReads(rig.broker)
        rig.broker.gates["history"] = asyncio.Event()
        same = [asyncio.create_task(reads.after(CHANNEL, 1, 10)) for _ in range(5)]
        other = asyncio.create_task(reads.after(CHANNEL, 0, 10))
        await turns()
        assert rig.broker.calls["history"] == 2
        rig.broker.gates["history"].set()
        answers = await asyncio.gather(*same)
        assert all(answer is answers[0] for answer in answers)
        assert answers[0] is not None
        assert [event.id for event in answers[0].events] == ["b", "c"]
        whole = await other
        assert whole is not None
        assert len(whole.events) == 3


async def test_an_answer_is_not_kept_for_those_who_ask_later() -> None:
    async with open_delivery_rig() as rig:
        await rig.publish("a")
        reads = SharedReads(rig.broker)
        await reads.after(CHANNEL, 0, 10)
        await rig.publish("b")
        answer = await reads.after(CHANNEL, 0, 10)
        assert answer is not None
        assert len(answer.events) == 2


async def test_who_gives_up_does_not_take_the_answer_from_the_others() -> None:
    async with open_delivery_rig() as rig:
        await rig.publish("a")
        reads = SharedReads(rig.broker)
        rig.broker.gates["history"] = asyncio.Event()
        first, second = (asyncio.create_task(reads.after(CHANNEL, 0, 10)) for _ in range(2))
        await turns()
        first.cancel()
        await turns()
        rig.broker.gates["history"].set()
        assert await second is not None
        assert rig.broker.calls["history"] == 1


async def test_a_failure_is_told_to_all_and_not_kept() -> None:
    async with open_delivery_rig() as rig:
        reads = SharedReads(rig.broker)
        rig.broker.away = True
        answers = await asyncio.gather(
            *(reads.after(CHANNEL, 0, 10) for _ in range(3)), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [BrokerUnavailable] * 3
        assert rig.broker.calls["history"] == 1
        rig.broker.away = False
        assert await reads.after(CHANNEL, 0, 10) is None


async def test_close_waits_for_what_is_under_way_whoever_still_wants_it() -> None:
    async with open_delivery_rig() as rig:
        reads = SharedReads(rig.broker)
        rig.broker.gates["history"] = asyncio.Event()
        asked = asyncio.create_task(reads.after(CHANNEL, 0, 10))
        await turns()
        asked.cancel()
        closing = asyncio.create_task(reads.close())
        await turns()
        assert not closing.done()
        rig.broker.away = True
        rig.broker.gates["history"].set()
        await closing
        await reads.close()
        with pytest.raises(BrokerUnavailable):
            await reads.after(CHANNEL, 0, 10)
