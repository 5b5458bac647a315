"""An order in flight: it ends when all have answered, or with its time."""

import asyncio

import pytest

from pubsub.asked import MOST_NODES, Asked
from pubsub.control import Answers
from pubsub.errors import BrokerUnavailable


async def test_answers_may_come_before_it_is_known_who_should_answer() -> None:
    asked = Asked()
    asked.take("n2", b"2")
    asked.take("n2", b"again")
    asked.expect(["n1", "n2"])
    waiting = asyncio.create_task(asked.wait(60.0))
    await asyncio.sleep(0)
    assert not waiting.done()
    asked.take("n1", b"1")
    asked.take("n3", b"late")
    assert (await waiting).silent == ()
    assert (await asked.wait(60.0)).answers == {"n1": b"1", "n2": b"2", "n3": b"late"}


async def test_who_did_not_answer_in_time_is_silent() -> None:
    asked = Asked()
    asked.expect(["n3", "n1", "n2"])
    asked.take("n2", b"2")
    assert await asked.wait(0.0) == Answers({"n2": b"2"}, ("n1", "n3"))


async def test_nobody_can_fill_the_memory_with_answers() -> None:
    asked = Asked()
    asked.expect(["n"])
    for number in range(2 * MOST_NODES):
        asked.take(f"x{number}", b"")
    assert len((await asked.wait(0.0)).answers) == MOST_NODES


async def test_one_that_fails_raises_and_fails_only_once() -> None:
    asked = Asked()
    asked.expect(["n1"])
    asked.fail("gone")
    asked.fail("again")
    asked.take("n1", b"")
    with pytest.raises(BrokerUnavailable, match="gone"):
        await asked.wait(60.0)
