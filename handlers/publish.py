"""How do bytes come in? This file: publishing over HTTP, one event or many."""

import asyncio
from collections.abc import Sequence
from typing import ClassVar, Final

import msgspec

from handlers.base import BaseHandler
from handlers.cloudevents import is_binary, read_batch, read_binary, read_structured
from handlers.drafting import (
    Result,
    at_place,
    draft,
    error_result,
    idempotency_key,
    read_event,
    read_events,
    result,
)
from handlers.exchange import Exchange, field
from handlers.media import CLOUDEVENT, CLOUDEVENTS, JSON, check_encoding, media_type
from handlers.models import PublishRequest, PublishResults
from pubsub.event import Draft
from server.commands import channel_name
from server.errors import Refused, UnsupportedMediaType
from server.principal import Principal
from server.scheduling import Scheduled

# Events checked or published before others get their turn.
_PIECE: Final = 250
_BLANKS: Final = b" \t\r\n"


async def publish(exchange: Exchange, body: bytes) -> tuple[int, msgspec.Struct]:
    """Publish what a request holds; return the status and the model of the answer.

    Raises Refused.
    """
    principal = exchange.authenticate(anonymous=True)
    headers = exchange.request.headers
    key = idempotency_key(field(headers, "Idempotency-Key"))
    channel = exchange.parameter("channel")
    if channel is not None:
        channel_name(channel)
    check_encoding(field(headers, "Content-Encoding"))
    most = exchange.node.settings.limits.batch_events
    kind = media_type(exchange.content_type)
    if is_binary(headers):
        event = read_binary(headers, kind, exchange.content_type, body, channel)
        return await _publish_one(exchange, principal, event, key)
    if kind == JSON:
        if body.lstrip(_BLANKS)[:1] == b"[":
            return await _publish_all(exchange, principal, read_events(body, most), key)
        return await _publish_one(exchange, principal, read_event(body), key)
    if kind == CLOUDEVENT:
        event = read_structured(body, channel)
        return await _publish_one(exchange, principal, event, key)
    if kind == CLOUDEVENTS:
        requests = await _batch(body, channel, most)
        return await _publish_all(exchange, principal, requests, key)
    raise UnsupportedMediaType(
        "events are read as application/json, application/x-ndjson or CloudEvents in JSON"
    )


async def _batch(body: bytes, channel: str | None, most: int) -> list[PublishRequest]:
    requests = []
    for place, request in enumerate(read_batch(body, channel, most)):
        if place and place % _PIECE == 0:
            await asyncio.sleep(0)
        requests.append(request)
    return requests


async def _publish_one(
    exchange: Exchange, principal: Principal, request: PublishRequest, key: str | None
) -> tuple[int, Result]:
    node = exchange.node
    event = draft(node, principal, request, key)
    at = node.scheduling.due(request.deliver_at)
    exchange.pay_publish(principal)
    (answer,) = await node.scheduling.publish((event,), {} if at is None else {0: at})
    if isinstance(answer, Refused):
        raise answer
    return 202 if isinstance(answer, Scheduled) else 200, result(answer)


async def _publish_all(
    exchange: Exchange, principal: Principal, requests: Sequence[PublishRequest], key: str | None
) -> tuple[int, PublishResults]:
    """Publish all if all are valid; a broker that fails on the way is told for each event."""
    node = exchange.node
    events: list[Draft] = []
    allowed: set[str] = set()
    times: dict[int, int] = {}
    for place, request in enumerate(requests):
        if place and place % _PIECE == 0:
            await asyncio.sleep(0)
        try:
            event_id = None if key is None else f"{key}:{place}"
            events.append(draft(node, principal, request, event_id, allowed))
            at = node.scheduling.due(request.deliver_at)
        except Refused as refused:
            raise at_place(place, refused) from None
        if at is not None:
            times[place] = at
    if events:
        exchange.pay_publish(principal, len(events))
    results: list[Result] = []
    for start in range(0, len(events), _PIECE):
        if start:
            await asyncio.sleep(0)
        piece = events[start : start + _PIECE]
        later = {at - start: times[at] for at in times if start <= at < start + _PIECE}
        answers = await node.scheduling.publish(piece, later)
        for answer in answers:
            if isinstance(answer, Refused):
                node.metrics.refused(answer.reason)
                results.append(error_result(answer))
            else:
                results.append(result(answer))
    return 200, PublishResults(results=results)


class PublishHandler(BaseHandler):
    """`POST /v1/events`, with the whole of the body at hand.

    Publishes whose length is known beforehand go a shorter way (`handlers/direct.py`); all other
    requests for this address come here.
    """

    route: ClassVar[str] = "/v1/events"

    async def post(self) -> None:
        """Publish."""
        status, answer = await publish(self.exchange, self.request.body)
        self.add_headers(self.exchange.quota)
        self.reply(answer, status)
