"""What is seen of a session at the moment at which something is sent to it."""

import json
from collections.abc import Callable
from typing import Any, Final

from delivery_rig import Client, DeliveryRig
from feed_model import Asked
from pubsub.channel_record import ChannelRecord
from pubsub.position import Position

# A reset may go before the events of a piece, and does not count.
_NOTICE_BYTES: Final = 250


class Witness:
    """Stands beside a client's connection, and notes what broke a promise in `faults`.

    `piece_bytes` is how much data a replay may send in one, unless it is of one event; `low_bytes`
    how much may be unsent before it. `whole` says whether no event was ever lost by the broker,
    `all_kept` whether all of them are kept.
    """

    def __init__(
        self,
        client: Client,
        channel: str,
        *,
        piece_bytes: int,
        low_bytes: int,
        whole: Callable[[], bool],
        all_kept: Callable[[], bool],
    ) -> None:
        self.client = client
        self.channel = channel
        self.piece_bytes = piece_bytes
        self.low_bytes = low_bytes
        self.whole = whole
        self.all_kept = all_kept
        self.asked: dict[int, Asked] = {}
        self.faults: list[str] = []
        client.connection.on_send = self._on_send

    def _on_send(self) -> None:
        lines = [json.loads(line) for line in self.client.connection.sent[-1].splitlines()]
        for message in lines:
            if message["type"] == "subscribed":
                self._on_subscribed(message)
        subscription = self.client.session.subscriptions.get(self.channel)
        if subscription is not None and subscription.live and not subscription.attached:
            self._on_replayed([each for each in lines if each["type"] == "event"])

    def _on_subscribed(self, message: dict[str, Any]) -> None:
        rig: DeliveryRig = self.client.rig
        asked, record = self.asked[message["ref"]], rig.broker.inner._records[self.channel]
        asked.cut = rig.feed(self.channel).cut
        if asked.rewind is not None and self.all_kept():
            asked.least = max(0, record.top.offset - asked.rewind)
        if message.get("recovered") is False and asked.since is not None:
            if self.whole() and is_kept(record, Position.parse(asked.since)):
                self.faults.append("refused to continue what is kept")

    def _on_replayed(self, events: list[dict[str, Any]]) -> None:
        if not events:
            return
        if self.client.connection.unsent > self.low_bytes + _NOTICE_BYTES:
            self.faults.append("a replay does not wait for its client")
        size = sum(len(json.dumps(each["data"])) for each in events)
        if size > self.piece_bytes and len(events) > 1:
            self.faults.append(f"a piece of {size} bytes")
        cut = self.client.rig.feed(self.channel).cut
        if any(Position.parse(each["position"]).epoch != cut.epoch for each in events):
            self.faults.append("a replay goes on in an epoch that is over")


def is_kept(record: ChannelRecord, since: Position) -> bool:
    """Say whether all that follows a position is in the history of its epoch."""
    kept = [event.before() for event in record.events[record.first() :]] + [record.top]
    return since in kept and since.epoch == record.top.epoch and since.offset >= record.floor
