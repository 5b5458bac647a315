"""How do bytes come in? This file: publishing over HTTP, one event or many."""

import asyncio
from collections.abc import Sequence
from typing import ClassVar, Final

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


class PublishHandler(BaseHandler):
    """`POST /v1/events`, with the whole of the body at hand."""

    route: ClassVar[str] = "/v1/events"

    async def post(self) -> None:
        """Publish."""
        principal = self.authenticate(anonymous=True)
        headers = self.request.headers
        key = idempotency_key(headers.get("Idempotency-Key"))
        channel = self.parameter("channel")
        if channel is not None:
            channel_name(channel)
        body = self.request.body
        check_encoding(headers.get("Content-Encoding"))
        kind = media_type(self.content_type)
        if is_binary(headers):
            event = read_binary(headers, kind, self.content_type, body, channel)
            await self._publish_one(principal, event, key)
        elif kind == JSON:
            if body.lstrip(_BLANKS)[:1] == b"[":
                await self._publish_all(principal, read_events(body, self._most), key)
            else:
                await self._publish_one(principal, read_event(body), key)
        elif kind == CLOUDEVENT:
            event = read_structured(body, channel)
            await self._publish_one(principal, event, key)
        elif kind == CLOUDEVENTS:
            await self._publish_all(principal, await self._batch(body, channel), key)
        else:
            raise UnsupportedMediaType(
                "events are read as application/json, application/x-ndjson or CloudEvents in JSON"
            )

    @property
    def _most(self) -> int:
        return self.node.settings.limits.batch_events

    async def _batch(self, body: bytes, channel: str | None) -> list[PublishRequest]:
        requests = []
        for place, request in enumerate(read_batch(body, channel, self._most)):
            if place and place % _PIECE == 0:
                await asyncio.sleep(0)
            requests.append(request)
        return requests

    async def _publish_one(
        self, principal: Principal, request: PublishRequest, key: str | None
    ) -> None:
        node = self.node
        event = draft(node, principal, request, key)
        at = node.scheduling.due(request.deliver_at)
        self.pay_publish(principal)
        (answer,) = await node.scheduling.publish((event,), {} if at is None else {0: at})
        if isinstance(answer, Refused):
            raise answer
        self.reply(result(answer), 202 if isinstance(answer, Scheduled) else 200)

    async def _publish_all(
        self, principal: Principal, requests: Sequence[PublishRequest], key: str | None
    ) -> None:
        """Publish all if all are valid; a broker that fails on the way is told for each event."""
        node = self.node
        events: list[Draft] = []
        times: dict[int, int] = {}
        for place, request in enumerate(requests):
            if place and place % _PIECE == 0:
                await asyncio.sleep(0)
            try:
                events.append(
                    draft(node, principal, request, None if key is None else f"{key}:{place}")
                )
                at = node.scheduling.due(request.deliver_at)
            except Refused as refused:
                raise at_place(place, refused) from None
            if at is not None:
                times[place] = at
        if events:
            self.pay_publish(principal, len(events))
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
        self.reply(PublishResults(results=results))
