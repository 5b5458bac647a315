"""Lines of exported events: what is written is read again, and what is wrong is named."""

import json
from typing import Any

import pytest

from archive_rig import EPOCH, TIME, events
from pubsub.archive import Unarchived
from pubsub.event import Event
from server.event_lines import LineRejected, Place, pack_line, read_line, read_place

DEPTH = 64


def changed(event: Event, **fields: Any) -> bytes:
    """The line of an event with some fields changed; None takes one out."""
    line = json.loads(pack_line(event)) | fields
    return json.dumps({k: v for k, v in line.items() if v is not ...}).encode()


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"data": '{"b":[1.50,"\u00e9\\u0000"]}'.encode(), "tags": {"k": "v\n"}, "user": "\u00fc"},
        {"data": b"18446744073709551615", "name": "a.b", "exclude": "s1"},
    ],
)
def test_an_event_is_read_as_it_was_written(parts: dict[str, Any]) -> None:
    (event,) = events(1, **parts)
    line = pack_line(event)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert read_line(line, depth=DEPTH) == event
    assert read_place(line) == Place("a.b", 1)


def test_an_event_is_told_with_all_its_fields() -> None:
    (event,) = events(1)
    assert json.loads(pack_line(event)) == {
        "channel": "a.b",
        "position": str(event.position),
        "prev": event.prev,
        "id": "x1",
        "name": "message",
        "data": {"x": 1},
        "tags": {},
        "time": TIME + 10,
        "user": None,
    }


def test_what_is_missing_is_a_line_too() -> None:
    missing = Unarchived("a.b", EPOCH, 7, 9, TIME)
    line = pack_line(missing)
    assert read_line(line, depth=DEPTH) == missing
    assert read_place(line) == Place("a.b", 0)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"channel": "a.*"}, "is refused: a channel name cannot hold a wildcard"),
        ({"channel": ...}, "is refused: Object missing required field `channel`"),
        ({"position": "x"}, "has a position that is none"),
        ({"position": ...}, "is refused: Object missing required field `position`"),
        ({"position": f"{EPOCH}-0-{EPOCH}"}, "has a position that is not one of an event"),
        ({"prev": "0" * 16}, "does not chain"),
        ({"prev": "0"}, "is refused: Expected `str` matching regex"),
        ({"id": "other"}, "does not chain"),
        ({"id": " "}, "is refused: the event id"),
        ({"name": "a b"}, "is refused: the event name"),
        ({"tags": {"a": 1}}, "is refused: Expected `str`, got `int`"),
        ({"time": -1}, "is refused: Expected `int` >= 0"),
        ({"user": ...}, "is refused: Object missing required field `user`"),
        ({"data": 2**64}, "is refused: `data` has an integer"),
        ({"unarchived": {"epoch": EPOCH, "first": 2, "last": 1, "time": 1}}, "has a range that"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], text: str) -> None:
    (event,) = events(1)
    with pytest.raises(LineRejected) as caught:
        read_line(changed(event, **fields), depth=DEPTH)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"{", "is not valid JSON: it ends too early"),
        (b'{"channel":"\xff"}', "is not valid UTF-8"),
        (b"[]", "is refused: Expected `object`, got `array`"),
        (b"[" * 100_000, "is refused: Expected `object`, got `array`"),
        (b'{"channel":"a","x":' + b"[" * 100_000, "nests too deeply"),
    ],
)
def test_a_line_that_is_none_is_refused(line: bytes, text: str) -> None:
    with pytest.raises(LineRejected, match=text):
        read_line(line, depth=DEPTH)
    with pytest.raises(LineRejected):
        read_place(line)


def test_data_is_not_deeper_than_the_settings_allow() -> None:
    (event,) = events(1, data=b"[[1]]")
    assert read_line(pack_line(event), depth=2) == event
    with pytest.raises(LineRejected, match="nests deeper than 1 levels"):
        read_line(pack_line(event), depth=1)
