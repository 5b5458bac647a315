"""From the body of a publish to an event: what the body may be, and who gives the id."""

import pytest

from handlers.drafting import at_place, idempotency_key, read_event, read_events
from server.errors import BadRequest, Forbidden, RateLimited, TooLarge


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "is empty"),
        (b"{", "ends too early"),
        (b"nonsense", "not valid JSON"),
        (b'\xef\xbb\xbf{"channel":"a"}', "byte order mark"),
        (b'{"channel":"\xff","data":1}', "UTF-8"),
        (b'{"channel":"a"}', "data"),
        (b'{"data":1}', "channel"),
        (b'{"channel":1,"data":1}', r"\$.channel"),
        (b'{"channel":null,"data":1}', r"\$.channel"),
        (b'{"channel":"a","data":1,"name":null}', r"\$.name"),
        (b'{"channel":"a","data":1,"id":7}', r"\$.id"),
        (b'{"channel":"a","data":1,"tags":[]}', r"\$.tags"),
        (b'{"channel":"a","data":1,"tags":{"a":1}}', r"\$.tags"),
        (b'"text"', "object"),
        (b"7", "object"),
        (b'{"channel":"a","data":1} x', "not valid JSON"),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b',"channel":"a","data":1}', "deep"),
    ],
)
def test_a_body_that_is_no_event(body: bytes, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        read_event(body)


def test_unknown_fields_are_ignored() -> None:
    event = read_event(b'{"channel":"a","data": {"x" : 1},"nothing":[1]}')
    assert (event.channel, bytes(event.data), event.name, event.id) == (
        "a",
        b'{"x" : 1}',
        "message",
        None,
    )


def test_an_array_names_the_place() -> None:
    with pytest.raises(BadRequest, match=r"\$\[1\].channel"):
        read_events(b'[{"channel":"a","data":1},{"channel":2,"data":1}]', 2)


@pytest.mark.parametrize("padding", [0, 100])
def test_an_array_is_counted(padding: int) -> None:
    event = b'{"channel":"a","data":1}' + b" " * padding
    assert len(read_events(b"[" + b",".join([event] * 3) + b"]", 3)) == 3
    with pytest.raises(TooLarge):
        read_events(b"[" + b",".join([event] * 4) + b"]", 3)


def test_a_long_array_is_counted_before_its_events_are_read() -> None:
    with pytest.raises(TooLarge):
        read_events(b"[" + b"0," * 1_000 + b"0]", 3)


@pytest.mark.parametrize("key", ["", "x" * 51, "\u00e9", "a\tb"])
def test_a_key_that_is_none(key: str) -> None:
    with pytest.raises(BadRequest):
        idempotency_key(key)


def test_keys() -> None:
    assert idempotency_key(None) is None
    assert idempotency_key("x" * 50) == "x" * 50


def test_a_refusal_at_a_place_stays_what_it_is() -> None:
    refused = at_place(7, RateLimited("no", reason="key_publishes_per_s", retry_after_s=2.0))
    assert type(refused) is RateLimited
    assert (refused.message, refused.reason, refused.retry_after_s) == (
        "event 7: no",
        "key_publishes_per_s",
        2.0,
    )
    assert type(at_place(0, Forbidden("no"))) is Forbidden
