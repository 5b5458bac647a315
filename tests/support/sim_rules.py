"""What a node of a simulated world may not do, whatever comes of it: some rules of delivery.

They are seen where they would be broken, since a client hears nothing of it, or late.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final, cast
from unittest import mock

import msgspec

from pubsub.chronicle import Chronicle
from pubsub.event import Event
from pubsub.position import Position
from server.feed import Feed
from server.repair import Repair
from server.subscribing import Start, Subscribing
from server.subscription import Subscription
from sim_clients import SimConnection, at

# How much data a replay sends in one piece, unless it is of one event.
PIECE_BYTES: Final = 400

_decode = msgspec.json.Decoder().decode


@contextmanager
def watched() -> Iterator[None]:
    """Watch all nodes."""
    with ExitStack() as stack:
        for of, name, watch in (
            (Repair, "run", _run_alone),
            (Chronicle, "history", _read_once),
            (Subscribing, "_resume", _resume_what_is_known),
            (Subscribing, "_send_piece", _send_bounded),
        ):
            stack.enter_context(mock.patch.object(of, name, watch(getattr(of, name))))
        yield


def _run_alone(run: Callable[[Repair], Awaitable[None]]) -> Any:
    """Rule 15: repair happens once per channel and node."""
    under_way: set[int] = set()

    async def run_alone(repair: Repair) -> None:
        feed = id(repair._feed)
        assert feed not in under_way, "a feed is repaired twice at a time"
        under_way.add(feed)
        try:
            await run(repair)
        finally:
            under_way.discard(feed)

    return run_alone


def _read_once(read: Callable[..., Awaitable[Any]]) -> Any:
    """Rule 13: whoever wants what is being read shares it."""
    under_way: set[object] = set()

    async def read_once(chronicle: Chronicle, channel: str, **range_: Any) -> Any:
        key = (id(chronicle), channel, *range_.items())
        assert key not in under_way, "the same is read twice at a time"
        under_way.add(key)
        try:
            return await read(chronicle, channel, **range_)
        finally:
            under_way.discard(key)

    return read_once


def _resume_what_is_known(resume: Callable[..., Awaitable[Start | None]]) -> Any:
    """Rule 1: a position is not only an offset."""

    async def resume_what_is_known(of: Subscribing, feed: Feed, since: Position) -> Start | None:
        start = await resume(of, feed, since)
        known = feed.sequence.at(since.offset)
        if start is not None and not start.piece and known is not None:
            assert known == since, "it resumes elsewhere"
        return start

    return resume_what_is_known


def _send_bounded(send: Callable[..., bool]) -> Any:
    """Rule 12: in bounded pieces as the client reads, and nothing of an epoch that is over."""

    def send_bounded(
        of: Subscribing, subscription: Subscription, begin: Position, piece: Sequence[Event]
    ) -> bool:
        connection = cast(SimConnection, subscription.connection)
        before, clear = len(connection.chunks), connection.clear()
        cut = None if subscription.feed is None else subscription.feed.cut
        goes_on = send(of, subscription, begin, piece)
        told = [_decode(line) for sent in connection.chunks[before:] for line in sent.splitlines()]
        events = [message for message in told if message["type"] == "event"]
        if events and cut is not None:
            assert clear, "a replay does not wait for its client"
            assert {at(each["position"]).epoch for each in events} == {cut.epoch}, "it is over"
            size = sum(len(each["data"]) + 2 for each in events)
            assert size <= PIECE_BYTES or len(events) == 1, f"a piece of {size} bytes"
        return goes_on

    return send_bounded
