"""Who is connected here? This file: what was read once is kept in a feed's ring for others."""

from pubsub.broker import History
from server.feed import Feed, State
from server.hub import Hub


def keep(hub: Hub, feed: Feed, history: History | None) -> None:
    """Put what was read of a channel's history before the ring of its feed.

    After a crash of a node its sessions come to feeds that begin with an empty ring, and spread
    over seconds, so that no two of them share a read: the first one reads for all. Where its piece
    does not reach up to the ring, all that the ring has room for is read, once, by a task of the
    hub's.
    """
    if history is None or not history.events or feed.state is State.CLOSED:
        return
    sequence = feed.sequence
    if sequence.backfill(history.events) or sequence.asked or not sequence.room():
        return
    if history.events[-1].position.epoch == sequence.top.epoch:
        sequence.asked = True
        hub.spawn(_fill(hub, feed))


async def _fill(hub: Hub, feed: Feed) -> None:
    sequence = feed.sequence
    room = sequence.room()
    if not room:
        return
    try:
        history = await hub.reads.after(feed.channel, sequence.bottom().offset - room, room)
    except BaseException:
        # Whoever reads next tries again.
        sequence.asked = False
        raise
    if history is not None and feed.state is not State.CLOSED:
        sequence.backfill(history.events)
