"""The one gate for events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from config.rules import ChannelRule, ChannelRules
from pubsub.broker import Broker
from pubsub.errors import BrokerUnavailable, NotReplicated, PubSubError, TooManyChannels
from pubsub.event import Draft, Published
from pubsub.position import Position
from server import errors
from server.errors import BadRequest, Forbidden, Internal, LimitExceeded, Refused, Unavailable
from server.metrics import Metrics
from server.principal import GrantsCache, Principal
from server.publishing import Publishing, refusal

AT = Position("e" * 16, 1, "c" * 16)
GRANTS = GrantsCache().grants({"a.*": ["publish"]})
USER = Principal(kind="user", user="u1", grants=GRANTS)
SERVICE = Principal(kind="service", name="s", key="s", grants=GRANTS)
OPEN = ChannelRule(match="a.open", client_publish=True)


class FailingBroker:
    """Answers what the test wants, which the real one does not on demand."""

    def __init__(self, answer: Sequence[object] | PubSubError) -> None:
        self.answer = answer

    async def publish(self, drafts: Sequence[Draft]) -> Sequence[object]:
        if isinstance(self.answer, PubSubError):
            raise self.answer
        return self.answer


def publishing(answer: Sequence[object] | PubSubError = ()) -> tuple[Publishing, Metrics]:
    metrics = Metrics(version="0")
    broker = cast(Broker, FailingBroker(answer))
    return Publishing(broker, ChannelRules((OPEN,)), metrics, lambda: "NEW-ID", {}), metrics


def draft(principal: Principal = SERVICE, **changes: Any) -> Draft:
    fields: dict[str, Any] = {
        "channel": "a.b",
        "name": "message",
        "data": b"1",
        "tags": {},
        "event_id": None,
    }
    made, _metrics = publishing()
    return made.draft(principal, **fields | changes)


def test_a_draft_has_all_that_was_said() -> None:
    tags = {"k": "v"}
    made = draft(USER, channel="a.open", event_id="e1", tags=tags, exclude="S", data=b'{"x":1}')
    assert made == Draft(
        channel="a.open",
        id="e1",
        name="message",
        data=b'{"x":1}',
        tags={"k": "v"},
        user="u1",
        exclude="S",
    )
    tags["k"] = "changed later"
    assert made.tags == {"k": "v"}


def test_a_draft_without_an_id_gets_one_and_a_service_is_no_user() -> None:
    made = draft()
    assert made.id == "NEW-ID" and made.user is None and made.exclude is None


@pytest.mark.parametrize(
    "changes",
    [{"channel": "a.*"}, {"channel": "$a"}, {"name": "a b"}, {"event_id": ""}],
    ids=str,
)
def test_names_are_checked_before_grants(changes: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        draft(**changes)


def test_grants_and_rules() -> None:
    with pytest.raises(Forbidden, match="not granted"):
        draft(channel="b.a")
    with pytest.raises(Forbidden, match="no publishes from clients"):
        draft(USER)
    assert draft(USER, channel="a.open").channel == "a.open"
    assert draft(SERVICE).channel == "a.b"


def test_a_batch_checks_a_channel_once_and_what_is_refused_each_time() -> None:
    allowed: set[str] = set()
    draft(channel="a.b", allowed=allowed)
    assert allowed == {"a.b"}
    # Known by now, whatever becomes of the grant meanwhile; everything else is checked.
    assert (
        draft(Principal(kind="service", key="k"), channel="a.b", allowed=allowed).channel == "a.b"
    )
    with pytest.raises(BadRequest):
        draft(channel="a.b", name="a b", allowed=allowed)
    with pytest.raises(BadRequest):
        draft(channel="a.b", event_id="", allowed=allowed)
    for channel, refused in (("b.a", Forbidden), ("a.*", BadRequest)):
        for _ in range(2):
            with pytest.raises(refused):
                draft(channel=channel, allowed=allowed)
    assert allowed == {"a.b"}


async def test_answers_stand_in_the_order_of_the_drafts() -> None:
    new, known = Published("a.b", AT, "1"), Published("a.b", AT, "2", duplicate=True)
    made, metrics = publishing([new, TooManyChannels("full"), known])
    answers = await made.publish([draft()] * 3)
    assert answers[0] == new and answers[2] == known
    assert isinstance(answers[1], LimitExceeded)
    assert (metrics.events_in, metrics.events_duplicate) == (1, 1)


async def test_a_broker_that_is_away_refuses_each() -> None:
    made, metrics = publishing(BrokerUnavailable("no route to 10.0.0.1"))
    answers = await made.publish([draft()] * 2)
    assert [type(each) for each in answers] == [Unavailable, Unavailable]
    first = answers[0]
    assert isinstance(first, Refused) and first.retry and "10.0.0.1" not in first.message
    assert metrics.events_in == 0


def test_what_is_unexpected_says_nothing() -> None:
    refused = refusal(PubSubError("the secret inside"))
    assert isinstance(refused, Internal) and "secret" not in refused.message


async def test_too_few_replicas_are_told_and_worth_another_try() -> None:
    made, metrics = publishing([Published("a.b", AT, "e1"), NotReplicated("0 of 1")])
    published, refused = await made.publish([draft(), draft()])
    assert isinstance(published, Published)
    assert isinstance(refused, errors.NotReplicated)
    assert (refused.code, refused.status, refused.retry) == ("not_replicated", 503, True)
    assert metrics.events_in == 1
