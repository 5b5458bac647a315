"""The life of a node, and how it says goodbye to its sessions."""

import asyncio

from config.serving import DrainSettings
from delivery_rig import open_delivery_rig, turns
from server.closing import Closing
from server.lifecycle import Lifecycle, Phase


def test_it_is_ready_only_between_starting_and_draining() -> None:
    lifecycle = Lifecycle(DrainSettings())
    assert lifecycle.why_not_ready() == ["starting"]
    lifecycle.phase = Phase.READY
    assert lifecycle.why_not_ready() == []
    assert not lifecycle.draining
    for phase in (Phase.DRAINING, Phase.STOPPED):
        lifecycle.phase = phase
        assert lifecycle.why_not_ready() == [phase.value]
        assert lifecycle.draining


def test_a_check_that_fails_says_what_is_missing() -> None:
    lifecycle = Lifecycle(DrainSettings())
    lifecycle.checks += [lambda: None, lambda: "the key set was not fetched yet"]
    assert lifecycle.why_not_ready() == ["starting", "the key set was not fetched yet"]
    lifecycle.phase = Phase.READY
    assert lifecycle.why_not_ready() == ["the key set was not fetched yet"]


async def test_a_drain_waits_for_the_last_request_in_flight() -> None:
    lifecycle = Lifecycle(DrainSettings())
    await lifecycle.requests_done()
    lifecycle.request_began()
    lifecycle.request_began()
    waiters = [asyncio.create_task(lifecycle.requests_done()) for _ in range(2)]
    await turns()
    lifecycle.request_ended()
    await turns()
    assert not any(waiter.done() for waiter in waiters)
    # One ends and another begins in the same turn: not idle yet.
    lifecycle.request_ended()
    lifecycle.request_began()
    await turns()
    assert not any(waiter.done() for waiter in waiters)
    lifecycle.request_ended()
    await asyncio.gather(*waiters)


async def test_sessions_are_told_in_batches_each_with_its_own_hint() -> None:
    async with open_delivery_rig() as rig:
        lifecycle = Lifecycle(DrainSettings(batch=4, retry_spread_ms=1_000_000))
        clients = [rig.session() for _ in range(9)]
        told = asyncio.create_task(lifecycle.dismiss(rig.hub.sessions.values()))
        await turns()
        ended = [client.connection.closed is not None for client in clients]
        assert ended == [True] * 4 + [False] * 5
        # A session that ends by itself meanwhile is passed over.
        clients[5].leave()
        await told
        for client in clients:
            assert client.connection.closed is not None
        hints = set()
        for place, client in enumerate(clients):
            if place == 5:
                continue
            assert client.connection.closed is Closing.DRAINING
            closing = client.connection.messages()[-1]
            assert closing["type"] == "closing"
            assert closing["code"] == 4001
            assert 0 <= closing["retry_in_ms"] <= 1_000_000
            hints.add(closing["retry_in_ms"])
        assert len(hints) > 1
        assert not rig.hub.sessions
