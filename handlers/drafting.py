"""How do bytes come in? This file: from the body of a publish to events that may be published."""

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from msgspec import UNSET, Raw

from handlers.models import (
    ErrorItem,
    ErrorResult,
    PublishRequest,
    PublishResult,
    ScheduledResult,
)
from pubsub.event import Draft, Published
from server.codec import check_tags, checked_data
from server.errors import BadRequest, Forbidden, InvalidData, Refused, TooLarge
from server.json_text import SURROGATE, explain
from server.node import Node
from server.principal import Principal
from server.scheduling import Scheduled

MAX_KEY: Final = 50
_MAX_SESSION: Final = 64

T = TypeVar("T")
Result = PublishResult | ScheduledResult | ErrorResult

_event: Final = msgspec.json.Decoder(PublishRequest).decode
_events: Final = msgspec.json.Decoder(list[PublishRequest]).decode
_parts: Final = msgspec.json.Decoder(list[Raw]).decode
# The bytes of the shortest that is one: {"channel":"a","data":1}
_LEAST_EVENT: Final = 24


def read(decode: Callable[[bytes], T], body: bytes, what: str) -> T:
    """Return what `decode` reads; raises BadRequest, whose text calls the body `what`."""
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        raise BadRequest(f"{what}: {error}") from None
    except RecursionError:
        raise BadRequest(f"{what} nests too deeply") from None
    except ValueError as error:
        text = f"{what} {explain(body, error)}"
        # Strings may hold them by the grammar of JSON, but no value of this protocol does.
        raise InvalidData(text) if SURROGATE in text else BadRequest(text) from None


def read_event(body: bytes, what: str = "the body") -> PublishRequest:
    """Return one event as it was asked for; raises BadRequest."""
    return read(_event, body, what)


def read_events(body: bytes, most: int) -> list[PublishRequest]:
    """Return the events of an array, of which there may be `most`.

    Raises TooLarge, and BadRequest, which names the place of what is wrong.
    """
    if len(body) > most * _LEAST_EVENT:
        # Passing over them takes a tenth of reading them.
        check_number(len(read(_parts, body, "the body")), most)
    events = read(_events, body, "the body")
    check_number(len(events), most)
    return events


def check_number(events: int, most: int) -> None:
    """Return if a batch has no more events than it may; raises TooLarge."""
    if events > most:
        raise TooLarge(f"more than {most} events", reason="limits.batch_events")


def idempotency_key(header: str | None) -> str | None:
    """Return the key that takes the place of ids; raises BadRequest.

    It is short enough that `key:index` is an event id too.
    """
    if header is None:
        return None
    if not 1 <= len(header) <= MAX_KEY or not header.isascii() or not header.isprintable():
        raise BadRequest(f"Idempotency-Key has to be 1 to {MAX_KEY} printable ASCII characters")
    return header


def draft(
    node: Node,
    principal: Principal,
    request: PublishRequest,
    event_id: str | None,
    allowed: set[str] | None = None,
) -> Draft:
    """Return the event, checked; `event_id` stands in for the request's own, if not None.

    `allowed` is as for `Publishing.draft`. Raises Refused.
    """
    if event_id is not None and request.id is not None:
        raise BadRequest("either Idempotency-Key or id, not both")
    if request.exclude is not None:
        _check_exclude(node, principal, request.exclude)
    if request.tags:
        check_tags(request.tags, node.values)
    return node.publishing.draft(
        principal,
        channel=request.channel,
        name=request.name,
        data=checked_data(bytes(request.data), node.values),
        tags=request.tags,
        event_id=request.id if event_id is None else event_id,
        exclude=request.exclude,
        allowed=allowed,
    )


def _check_exclude(node: Node, principal: Principal, session_id: str) -> None:
    """Services may leave out any session, a user only its own: else it could hide what it says.

    Anonymous clients may leave out none: nothing shows which one is whose.
    """
    if len(session_id) > _MAX_SESSION:
        raise BadRequest("exclude is not a session")
    if principal.kind != "service":
        session = node.hub.sessions.get(session_id)
        if session is None or principal.user is None or session.principal.user != principal.user:
            raise Forbidden("exclude is not a session of this user")


def at_place(place: int, refused: Refused) -> Refused:
    """Return the refusal of a whole batch because of the event at `place`."""
    return type(refused)(
        f"event {place}: {refused.message}",
        reason=refused.reason,
        retry_after_s=refused.retry_after_s,
    )


def result(answer: Published | Scheduled | Refused) -> Result:
    """Return what a client sees of what became of an event."""
    if isinstance(answer, Refused):
        return error_result(answer)
    if isinstance(answer, Scheduled):
        return ScheduledResult(
            channel=answer.channel,
            id=answer.id,
            deliver_at=answer.deliver_at,
            duplicate=answer.duplicate or UNSET,
        )
    return PublishResult(
        channel=answer.channel,
        position=str(answer.position),
        id=answer.id,
        duplicate=answer.duplicate,
    )


def error_result(refused: Refused) -> ErrorResult:
    """Return what a client sees of the refusal of one event among others."""
    return ErrorResult(
        error=ErrorItem(code=refused.code, message=refused.message, retry=refused.retry)
    )
