"""Orders are carried out in tasks that somebody owns, so many at once and no more."""

import asyncio

from control_rig import NotedControl
from pubsub.order_tasks import OrderTasks
from redis_rig import until


async def test_a_hundred_run_at_once_and_the_rest_waits() -> None:
    tasks, sink, answers = OrderTasks(150), NotedControl("n1", blocked=True), list[bytes]()

    async def answer(text: bytes) -> None:
        answers.append(text)

    taken = [tasks.run(sink, b"%d" % number, answer) for number in range(160)]
    assert taken == [True] * 150 + [False] * 10
    assert tasks.full
    await until(lambda: sink.running == 100)
    sink.release.set()
    await until(lambda: len(answers) == 150)
    assert sink.most_running == 100
    assert answers[0] == b"n1:0"
    await until(lambda: not tasks.full)
    await tasks.close()


async def test_closing_ends_all_that_runs_or_waits() -> None:
    tasks, sink, answers = OrderTasks(150), NotedControl("n1", blocked=True), list[bytes]()

    async def answer(text: bytes) -> None:
        answers.append(text)

    for _ in range(150):
        tasks.run(sink, b"x", answer)
    await until(lambda: sink.running == 100)
    await asyncio.gather(tasks.close(), tasks.close())
    await tasks.close()
    assert (sink.running, answers, len(sink.orders)) == (0, [], 100)
