"""How do bytes come in? This file: CloudEvents 1.0 as events (pure).

https://github.com/cloudevents/spec: the JSON format and its batches, and the HTTP binding's binary
mode. The channel is the request's `channel`, else the event's `subject`; the name is its `type`;
the id is made of `source` and `id`, which together are unique. `data` stays as it is. All other
attributes become tags with the names that they have as HTTP headers (`ce-source`, `ce-time`), so
that a subscriber can put the CloudEvent together again.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Final, Protocol
from urllib.parse import unquote

import msgspec
from msgspec import Meta, Raw

from handlers.drafting import at_place, check_number, read
from handlers.media import JSON, is_json
from handlers.models import PublishRequest
from server.errors import BadRequest, InvalidData, Refused

VERSION: Final = "1.0"

_PREFIX: Final = "ce-"
_ID_DIGITS: Final = 40
_DATA: Final = ("data", "data_base64")
_IN_PLACE: Final = ("specversion", "type")
_REQUIRED: Final = ("specversion", "id", "source", "type")
# Strings by the specification, which a reader may not make out of something else.
_STRINGS: Final = frozenset({*_REQUIRED, "subject", "time", "datacontenttype", "dataschema"})
# More than may become tags (`limits.tags`): one event was to hold up all others for a second.
_MOST_ATTRIBUTES: Final = 1_100
# Attribute names (section "Naming conventions"); the longest that all must support is 20.
_is_attribute: Final = re.compile(r"[a-z0-9]{1,64}").fullmatch
_is_json_string: Final = re.compile(r'"(.*)"', re.DOTALL).fullmatch

Attribute = str | bool | Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None


class Headers(Protocol):
    """The request's headers, without regard to case; Tornado's HTTPHeaders is one."""

    def get_all(self) -> Iterable[tuple[str, str]]:
        """Return each line."""
        ...

    def __contains__(self, name: object, /) -> bool: ...


_members: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_batch: Final = msgspec.json.Decoder(list[Raw]).decode
_attribute: Final = msgspec.json.Decoder(Attribute).decode
_string: Final = msgspec.json.Decoder(str | None).decode


def is_binary(headers: Headers) -> bool:
    """Say whether a request holds a CloudEvent in binary mode: attributes stand in headers."""
    return "Ce-Specversion" in headers or "Ce-Type" in headers


def read_structured(body: bytes, channel: str | None) -> PublishRequest:
    """Return the event in `application/cloudevents+json`; raises BadRequest, InvalidData."""
    members = read(_members, body, "the CloudEvent")
    if len(members) > _MOST_ATTRIBUTES:
        raise InvalidData("the CloudEvent has too many attributes", reason="limits.tags")
    attributes = {
        name: text
        for name, raw in members.items()
        if name not in _DATA and (text := _text(name, raw)) is not None
    }
    data = members.get("data")
    if "data_base64" in members:
        # Binary data has no place among the values of JSON that subscribers get.
        raise InvalidData("the CloudEvent has binary data (data_base64); only JSON is carried")
    return _event(attributes, Raw(b"null") if data is None else data, channel)


def read_batch(body: bytes, channel: str | None, most: int) -> Iterator[PublishRequest]:
    """Yield the events in `application/cloudevents-batch+json`, of which there may be `most`.

    Raises TooLarge, and BadRequest or InvalidData, which name the place of what is wrong.
    """
    batch = read(_batch, body, "the batch")
    check_number(len(batch), most)
    for place, raw in enumerate(batch):
        try:
            event = read_structured(bytes(raw), channel)
        except Refused as refused:
            raise at_place(place, refused) from None
        yield event


def read_binary(
    headers: Headers, kind: str, content_type: str | None, body: bytes, channel: str | None
) -> PublishRequest:
    """Return the event whose attributes are headers and whose data is the body.

    `kind` is the media type of the body; what is not JSON is no value that subscribers could get.
    Raises BadRequest, InvalidData.
    """
    attributes: dict[str, str] = {}
    for header, value in headers.get_all():
        name = header.lower()
        if name.startswith(_PREFIX):
            name = name[len(_PREFIX) :]
            if name in attributes:
                raise BadRequest(f"the CloudEvent has {_PREFIX}{name} more than once")
            attributes[name] = _decode(value)
    if not body:
        return _event(attributes, Raw(b"null"), channel)
    if not is_json(kind):
        raise InvalidData("the data of a CloudEvent in binary mode has to be JSON here")
    if kind != JSON and content_type is not None:
        attributes["datacontenttype"] = content_type
    return _event(attributes, Raw(body), channel)


def event_id(source: str, cloud_id: str) -> str:
    """Return the id of an event: the same for the same `source` and `id`, and no other."""
    # The length keeps ("ab", "c") and ("a", "bc") apart.
    text = f"{len(source)}:{source}{cloud_id}"
    return _PREFIX + sha256(text.encode()).hexdigest()[:_ID_DIGITS]


def _event(attributes: Mapping[str, str], data: Raw, channel: str | None) -> PublishRequest:
    for name in attributes:
        if not _is_attribute(name):
            raise BadRequest(f"the CloudEvent has an attribute named {name[:32]!a}")
    for name in _REQUIRED:
        if not attributes.get(name):
            raise BadRequest(f"the CloudEvent has no {name}")
    if attributes["specversion"] != VERSION:
        raise BadRequest(f"specversion has to be {VERSION}")
    _check_time(attributes.get("time"))
    subject = attributes.get("subject")
    if channel is None:
        channel = subject
    if not channel:
        raise BadRequest("the CloudEvent has no subject, and the address no ?channel=")
    left_out = _IN_PLACE if channel != subject else (*_IN_PLACE, "subject")
    return PublishRequest(
        channel=channel,
        name=attributes["type"],
        data=data,
        tags={_PREFIX + name: value for name, value in attributes.items() if name not in left_out},
        id=event_id(attributes["source"], attributes["id"]),
    )


def _text(name: str, raw: Raw) -> str | None:
    """Return an attribute of the JSON format as text, in its canonical form; None where null."""
    decode = _string if name in _STRINGS else _attribute
    value = read(decode, bytes(raw), f"the CloudEvent's {name[:32]!a}")
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)


def _decode(value: str) -> str:
    """Return a header's value as text (HTTP binding, 3.1.3.2): unquoted, then percent-decoded."""
    quoted = _is_json_string(value)
    if quoted:
        value = re.sub(r"\\(.)", r"\1", quoted[1])
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:
        raise BadRequest("the CloudEvent has a header that is not valid UTF-8") from None


def _check_time(text: str | None) -> None:
    if text is None:
        return
    try:
        moment = msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise BadRequest("the CloudEvent's time is not one of RFC 3339")
