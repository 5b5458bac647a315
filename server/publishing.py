"""What may a publisher do? This file: the one gate for events, whatever way they come."""

import time
from collections.abc import Callable, Mapping, Sequence

from config.patterns import NameRejected, check_channel, check_event_id, check_event_name
from config.rules import ChannelRules
from pubsub.broker import Broker
from pubsub.errors import (
    ArchiveBehind,
    ArchiveUnavailable,
    BrokerUnavailable,
    NotReplicated,
    PubSubError,
    TooManyChannels,
)
from pubsub.event import Draft, Published
from server import errors
from server.errors import BadRequest, Forbidden, Internal, LimitExceeded, Refused, Unavailable
from server.feed import Feed
from server.metrics import Metrics
from server.principal import Principal


class Publishing:
    """Checks what is to be published, once, and hands it to the broker."""

    def __init__(
        self,
        broker: Broker,
        rules: ChannelRules,
        metrics: Metrics,
        new_id: Callable[[], str],
        feeds: Mapping[str, Feed],
    ) -> None:
        self._broker = broker
        self._feeds = feeds
        self._rules = rules
        self._metrics = metrics
        self._new_id = new_id

    def draft(
        self,
        principal: Principal,
        *,
        channel: str,
        name: str,
        data: bytes,
        tags: Mapping[str, str],
        event_id: str | None,
        exclude: str | None = None,
        allowed: set[str] | None = None,
    ) -> Draft:
        """Return the event, checked; raises BadRequest or Forbidden.

        `data` is JSON text and `tags` are checked before, by the codec (`json_text.check_json`).
        `allowed` are the channels that were found open to this principal for events of the same
        batch, and learns of this one.
        """
        known = allowed is not None and channel in allowed
        try:
            if not known:
                check_channel(channel)
            check_event_name(name)
            if event_id is not None:
                check_event_id(event_id)
        except NameRejected as error:
            raise BadRequest(str(error)) from None
        if not known:
            self.require(principal, channel)
            if allowed is not None:
                allowed.add(channel)
        return Draft(
            channel=channel,
            id=self._new_id() if event_id is None else event_id,
            name=name,
            data=data,
            tags=dict(tags) if tags else {},
            user=principal.user,
            exclude=exclude,
        )

    def require(self, principal: Principal, channel: str) -> None:
        """Return if a principal may publish to a channel; raises Forbidden."""
        principal.require("publish", channel)
        if principal.kind != "service" and not self._rules.rule(channel).client_publish:
            raise Forbidden(f"channel {channel} takes no publishes from clients")

    async def publish(self, drafts: Sequence[Draft]) -> list[Published | Refused]:
        """Publish; the answers stand in the order of the drafts. Never raises for one of them.

        Waits first while a feed of theirs on this node has more to send than it can: else what is
        published faster than it can be sent would pile up here.
        """
        started = time.perf_counter()
        metrics, feeds = self._metrics, self._feeds
        for each in drafts:
            feed = feeds.get(each.channel)
            if feed is not None and feed.fanout.behind:
                metrics.publishes_slowed += 1
                await feed.fanout.eased()
        try:
            answers = await self._broker.publish(drafts)
        except PubSubError as error:
            return [refusal(error)] * len(drafts)
        metrics.publish_seconds.observe(time.perf_counter() - started)
        results: list[Published | Refused] = []
        for answer in answers:
            if isinstance(answer, Published):
                if answer.duplicate:
                    metrics.events_duplicate += 1
                else:
                    metrics.events_in += 1
                results.append(answer)
            else:
                results.append(refusal(answer))
        return results


def refusal(error: PubSubError) -> Refused:
    """Return what a client sees of a broker's error."""
    if isinstance(error, BrokerUnavailable):
        return Unavailable("the broker is away")
    if isinstance(error, ArchiveBehind):
        return Unavailable("the archive does not have all of these events yet")
    if isinstance(error, ArchiveUnavailable):
        return Unavailable("the archive is away")
    if isinstance(error, NotReplicated):
        return errors.NotReplicated("too few replicas have the event yet; publish it again")
    if isinstance(error, TooManyChannels):
        return LimitExceeded("there are too many channels", reason="broker.max_channels")
    return Internal("something went wrong")
