"""Rule 25: what is left out for who lags, and what never is."""

from conflation_rig import CONFLATE, DISCONNECT, bench
from delivery_rig import CHANNEL, open_delivery_rig
from live_rig import live, within
from rule_rig import slices, types
from server.closing import Closing


async def test_rule_25_who_lags_gets_the_newest_and_is_told_what_was_skipped() -> None:
    async with bench() as on:
        slow, quick = on.listen(), on.listen()
        slow.stall()
        on.publish(2)
        on.publish(3)
        assert slow.seen() == []
        slow.read()
        assert slow.seen() == ["e5+4"]
        assert quick.seen() == ["e1", "e2", "e3", "e4", "e5"]


async def test_rule_25_a_held_event_leaves_before_newer_ones() -> None:
    async with slices(), bench() as on:
        slow = on.listen()
        on.listen()
        slow.stall()
        on.publish()
        on.come(2)
        # Not yet handed to the second one; the first has room and is in step from now on.
        slow.read()
        on.come()
        on.flush()
        assert slow.seen() == ["e3+2", "e4"]
        slow.stall()
        on.publish(2)
        on.rules.replace([DISCONNECT])
        on.publish()
        assert slow.seen() == ["e3+2", "e4", "e6+1", "e7"]


async def test_rule_25_resets_are_never_conflated_and_overtake_nothing() -> None:
    async with bench() as on:
        slow, sampled = on.listen(), on.listen(max_rate_hz=1)
        slow.stall()
        on.publish(2)
        on.publish()
        on.join()
        on.come()
        on.reset()
        on.come(2)
        on.reset()
        on.flush()
        assert slow.seen() == ["e4+3", "reset", "e6+1", "reset"]
        assert sampled.seen() == ["e2+1", "e4+1", "reset", "e6+1", "reset"]


async def test_rule_25_replies_are_never_conflated_and_the_end_comes_behind_what_is_held() -> None:
    async with open_delivery_rig(CONFLATE) as rig:
        client = rig.session()
        await client.subscribe()
        client.connection.stalled, client.connection.unsent = True, 1
        await rig.publish("a", "b")
        await client.ask("ping")
        assert types(client) == ["subscribed", "pong"]
        await client.ask("unsubscribe", channel=CHANNEL)
        assert types(client)[2:] == ["event", "unsubscribed"]
        await client.subscribe()
        await rig.publish("c")
        client.session.end(Closing.DRAINING)
        assert types(client)[4:] == ["subscribed", "event", "closing"]
        assert client.ids() == ["b", "c"]


async def test_rule_25_what_a_session_is_left_out_of_is_not_skipped() -> None:
    async with bench() as on:
        slow = on.listen()
        slow.stall()
        on.publish(4, [None, slow.id, None, slow.id])
        slow.read()
        assert slow.seen() == ["e3+1"]


async def test_rule_25_with_a_rate_the_last_event_comes_when_its_time_has_come() -> None:
    async with bench(DISCONNECT) as on:
        sampled = on.listen(max_rate_hz=10)
        on.publish(2)
        on.publish(2)
        on.publish()
        assert sampled.seen() == ["e2+1"]
        on.loop.advance(0.1001)
        assert sampled.seen() == ["e2+1", "e5+2"]
        on.loop.advance(1)
        on.publish()
        assert sampled.seen() == ["e2+1", "e5+2", "e6"]


async def test_rule_25_over_a_socket_what_is_held_leaves_when_the_client_reads() -> None:
    async with live(channels=(CONFLATE,)) as rig:
        client = await rig.ws(receive_bytes=4096)
        await client.call("subscribe", channel="a")
        sent = 0
        while not rig.node.hub.held():
            await rig.publish("a", "x" * 60_000)
            sent += 1
        for _ in range(3):
            await rig.publish("a", "x" * 60_000)
        accounted = 0
        while accounted < sent + 3:
            event = await within(client.next("event"), 4)
            accounted += 1 + event.get("skipped", 0)
        assert event["skipped"] == 3
