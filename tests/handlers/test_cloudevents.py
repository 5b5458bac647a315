"""CloudEvents 1.0 become events: attributes, ids, data, and all that is no CloudEvent."""

import json
from typing import Any

import pytest
from tornado.httputil import HTTPHeaders

from config.patterns import check_event_id
from handlers.cloudevents import event_id, is_binary, read_batch, read_binary, read_structured
from handlers.models import PublishRequest
from server.errors import BadRequest, InvalidData, Refused, TooLarge

EVENT = {
    "specversion": "1.0",
    "id": "A-1",
    "source": "/orders",
    "type": "com.example.order",
    "subject": "orders.eu",
    "time": "2018-04-05T17:31:00Z",
    "datacontenttype": "application/json",
    "comexampleextension": 7,
    "flag": True,
    "nothing": None,
    "data": {"total": 5},
}


def structured(channel: str | None = None, /, **changes: Any) -> PublishRequest:
    members = {name: value for name, value in (EVENT | changes).items() if value != "left out"}
    return read_structured(json.dumps(members).encode(), channel)


def binary(
    body: bytes = b'{"a":1}', kind: str = "application/json", **changes: str
) -> PublishRequest:
    fields = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "subject": "a.b"}
    headers = HTTPHeaders({f"ce-{name}": value for name, value in (fields | changes).items()})
    return read_binary(headers, kind, kind, body, None)


def test_a_structured_event() -> None:
    event = structured()
    assert event.channel == "orders.eu"
    assert event.name == "com.example.order"
    assert bytes(event.data) == b'{"total": 5}'
    assert event.tags == {
        "ce-id": "A-1",
        "ce-source": "/orders",
        "ce-time": "2018-04-05T17:31:00Z",
        "ce-datacontenttype": "application/json",
        "ce-comexampleextension": "7",
        "ce-flag": "true",
    }
    assert event.id == event_id("/orders", "A-1")


def test_the_channel_of_the_address_counts_more_than_the_subject() -> None:
    event = structured("other")
    assert event.channel == "other"
    assert event.tags["ce-subject"] == "orders.eu"
    assert structured("other", subject="left out").channel == "other"


def test_the_id_is_made_of_source_and_id() -> None:
    check_event_id(event_id("ä" * 300, "\n" * 300))
    assert event_id("a", "b") == event_id("a", "b")
    assert event_id("ab", "c") != event_id("a", "bc")
    assert event_id("a", "b") != event_id("b", "a")


def test_no_data_is_null() -> None:
    assert bytes(structured(data="left out").data) == b"null"
    assert bytes(structured(data=None).data) == b"null"
    assert bytes(binary(b"").data) == b"null"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"specversion": "0.3"}, "specversion"),
        ({"specversion": "left out"}, "specversion"),
        ({"id": ""}, "id"),
        ({"id": "left out"}, "id"),
        ({"source": None}, "source"),
        ({"type": "left out"}, "type"),
        ({"subject": "left out"}, "subject"),
        ({"subject": ""}, "subject"),
        ({"time": "yesterday"}, "time"),
        ({"time": "2018-04-05T17:31:00"}, "time"),
        ({"Upper": "x"}, "Upper"),
        ({"with-dash": "x"}, "with-dash"),
        ({"ext": {"a": 1}}, "ext"),
        ({"ext": 1.5}, "ext"),
        ({"ext": 2**31}, "ext"),
    ],
)
def test_what_is_no_cloudevent(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        structured(**changes)


def test_binary_data_has_no_place() -> None:
    with pytest.raises(InvalidData, match="data_base64"):
        structured(data="left out", data_base64="AAAA")
    with pytest.raises(InvalidData, match="JSON"):
        binary(b"\x00\x01", "application/octet-stream")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b'{"id":1e}', b'\xff{"id":"x"}'])
def test_what_is_no_json_object(body: bytes) -> None:
    with pytest.raises(BadRequest):
        read_structured(body, None)


def test_a_batch_names_the_place_of_what_is_wrong() -> None:
    good = json.dumps(EVENT)
    assert len(batch(f"[{good}, {good}]")) == 2
    assert batch("[]") == []
    bad = json.dumps(EVENT | {"specversion": "2"})
    with pytest.raises(Refused, match="event 1: specversion"):
        batch(f"[{good}, {bad}]")
    with pytest.raises(BadRequest):
        batch(good)


def batch(body: str, most: int = 10) -> list[PublishRequest]:
    return list(read_batch(body.encode(), None, most))


def test_a_batch_is_counted_before_its_events_are_read() -> None:
    """Reading 75,000 of them held up the whole node for more than a second."""
    assert len(batch(json.dumps([EVENT] * 10))) == 10
    with pytest.raises(TooLarge):
        batch("[" + "0," * 10 + "0]")


@pytest.mark.parametrize("name", ["id", "source", "type", "subject", "time", "dataschema"])
@pytest.mark.parametrize("value", [5, True])
def test_what_has_to_be_a_string(name: str, value: object) -> None:
    """A subject that was `true` became the channel `true`."""
    with pytest.raises(BadRequest, match=name):
        structured(**{name: value})


def test_attributes_are_bounded() -> None:
    many = {f"a{number}": "" for number in range(1_100)}
    with pytest.raises(InvalidData, match="too many attributes"):
        structured(**many)


def test_binary_mode() -> None:
    event = binary(time="2018-04-05T17:31:00Z", myext="Euro %E2%82%AC", quoted=r'"say \"x\""')
    assert (event.channel, event.name, bytes(event.data)) == ("a.b", "t", b'{"a":1}')
    assert event.tags == {
        "ce-id": "1",
        "ce-source": "/s",
        "ce-time": "2018-04-05T17:31:00Z",
        "ce-myext": "Euro €",
        "ce-quoted": 'say "x"',
    }
    assert binary(kind="application/vnd.x+json").tags["ce-datacontenttype"] == (
        "application/vnd.x+json"
    )


def test_binary_mode_refuses_what_is_ambiguous() -> None:
    with pytest.raises(BadRequest, match="UTF-8"):
        binary(myext="%FF")
    headers = HTTPHeaders({"ce-id": "1"})
    headers.add("ce-id", "2")
    with pytest.raises(BadRequest, match="more than once"):
        read_binary(headers, "application/json", None, b"1", None)


def test_how_binary_mode_is_known() -> None:
    assert is_binary(HTTPHeaders({"CE-SpecVersion": "1.0"}))
    assert is_binary(HTTPHeaders({"ce-type": "x"}))
    assert not is_binary(HTTPHeaders({"content-type": "application/json"}))
