"""What travels between nodes and stands in streams: read as it was written; all else is junk."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pubsub.envelope import (
    MOST_EVENTS,
    MOST_OFFSET,
    Batch,
    Fork,
    Purge,
    pack_body,
    pack_events,
    pack_mark,
    pack_stored,
    read_envelope,
    read_stored,
)
from pubsub.errors import JunkReceived
from pubsub.event import Draft, Event
from pubsub.position import Position, chain, start

hexes = st.text("0123456789abcdef", min_size=16, max_size=16)
positions = st.builds(Position, hexes, st.integers(0, MOST_OFFSET - 100), hexes)
words = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=64)
texts = st.text(max_size=255)
drafts = st.builds(
    Draft,
    st.just("a.b"),
    words,
    words,
    st.text(min_size=1, max_size=300).map(
        lambda t: t.replace("\r", " ").replace("\n", " ").encode()
    ),
    st.dictionaries(texts, texts, max_size=4),
    st.none() | texts,
    st.none() | texts,
)
times = st.integers(0, 2**48)

EPOCH = "0123456789abcdef"
DRAFT = Draft("a.b", "id", "n", b"1", {"k": "v"}, "user", "session")


def events(before: Position, time: int, batch: list[Draft]) -> tuple[Event, ...]:
    found = []
    for each in batch:
        top = Position(before.epoch, before.offset + 1, chain(before.check, each.id))
        found.append(
            Event(
                "a.b",
                top,
                before.check,
                each.id,
                each.name,
                each.data,
                time,
                each.tags,
                each.user,
                each.exclude,
            )
        )
        before = top
    return tuple(found)


@given(positions, times, st.lists(drafts, min_size=1, max_size=5))
def test_a_batch_is_read_as_it_was_written(before: Position, time: int, batch: list[Draft]) -> None:
    packed = pack_events(before, time, batch)
    assert read_envelope("a.b", packed) == Batch(events(before, time, batch))


@given(positions)
def test_a_mark_is_read_as_it_was_written(position: Position) -> None:
    assert read_envelope("a.b", pack_mark("purge", position)) == Purge(position)
    assert read_envelope("a.b", pack_mark("fork", position)) == Fork(position)


@given(positions, times, drafts)
def test_a_stored_event_is_read_as_it_was_written(
    before: Position, time: int, draft: Draft
) -> None:
    (event,) = events(before, time, [draft])
    assert read_stored("a.b", event.position.offset, pack_stored(event)) == event


@given(drafts)
def test_a_body_is_six_values(draft: Draft) -> None:
    values = msgspec.msgpack.decode(b"\x96" + pack_body(draft))
    assert values == [draft.id, draft.name, draft.data, draft.tags, draft.user, draft.exclude]


@given(st.binary(max_size=200))
def test_any_bytes_are_junk(payload: bytes) -> None:
    with pytest.raises(JunkReceived):
        read_envelope("a.b", payload)
    with pytest.raises(JunkReceived):
        read_stored("a.b", 1, payload)


@given(st.lists(drafts, min_size=1, max_size=3), st.data())
def test_what_was_cut_or_continued_is_junk(batch: list[Draft], data: st.DataObject) -> None:
    packed = pack_events(start(EPOCH), 1, batch)
    cut = data.draw(st.integers(0, len(packed) - 1))
    for payload in (packed[:cut], packed + b"\x00"):
        with pytest.raises(JunkReceived):
            read_envelope("a.b", payload)


def body(**changes: object) -> list[object]:
    fields: dict[str, object] = {
        "id": "i",
        "name": "n",
        "data": b"1",
        "tags": {},
        "user": None,
        "exclude": None,
        "check": "1" * 16,
    }
    return list((fields | changes).values())


def envelope(kind: object = "events", version: object = 1, **changes: object) -> bytes:
    fields: dict[str, object] = {
        "epoch": EPOCH,
        "offset": 4,
        "prev": "f" * 16,
        "time": 1,
        "events": [body()],
    }
    return msgspec.msgpack.encode([version, [kind, *(fields | changes).values()]])


def test_what_the_tests_of_junk_change_is_none_itself() -> None:
    content = read_envelope("a.b", envelope())
    assert isinstance(content, Batch)
    assert content.events[0].position == Position(EPOCH, 5, "1" * 16)


@pytest.mark.parametrize(
    "payload",
    [
        envelope(version=2),
        envelope(version="1"),
        envelope(kind="other"),
        envelope(kind=7),
        envelope(kind="purge"),
        envelope(epoch="x" * 16),
        envelope(epoch="0" * 17),
        envelope(epoch=EPOCH + "\n"),
        envelope(prev=None),
        envelope(offset=-1),
        envelope(offset=MOST_OFFSET + 1),
        envelope(offset=MOST_OFFSET),
        envelope(offset=1.5),
        envelope(time=-1),
        envelope(events=[]),
        envelope(events=[body()] * (MOST_EVENTS + 1)),
        envelope(events=[[*body(), 1]]),
        envelope(events=[body()[:-1]]),
        envelope(events=[body(check="1" * 15)]),
        envelope(events=[body(check="\n" * 16)]),
        envelope(events=[body(id="")]),
        envelope(events=[body(id="i" * 65)]),
        envelope(events=[body(id="a\r\nb")]),
        envelope(events=[body(id="\u00e9")]),
        envelope(events=[body(name="\u2028")]),
        envelope(events=[body(data="1")]),
        envelope(events=[body(data=b"")]),
        envelope(events=[body(data=b"1\n2")]),
        envelope(events=[body(data=b"1\r2")]),
        envelope(events=[body(data=b'"\xff"')]),
        envelope(events=[body(tags={"k": 1})]),
        envelope(events=[body(tags=None)]),
        envelope(events=[body(user=1)]),
        envelope(events=[body(exclude="x" * 1_025)]),
        msgspec.msgpack.encode([1, ["fork", EPOCH, 1, "g" * 16]]),
        msgspec.msgpack.encode([1, ["fork", EPOCH, 1]]),
        msgspec.msgpack.encode({"a": 1}),
        b"\xdd\xff\xff\xff\xff" * 100,
        b"\x91" * 100_000,
        envelope().replace(b"\xa1i", b"\xa1\xff"),
    ],
)
def test_what_no_node_wrote_is_junk(payload: bytes) -> None:
    with pytest.raises(JunkReceived):
        read_envelope("a.b", payload)


def test_announced_lengths_reserve_no_memory() -> None:
    """An array that announces 2^32 events once made room for all of them."""
    announced = envelope(events=[body()])
    place = announced.index(b"\x91\x97")
    with pytest.raises(JunkReceived):
        read_envelope("a.b", announced[:place] + b"\xdd\xff\xff\xff\xff" + announced[place + 1 :])


@pytest.mark.parametrize("offset", [0, -1, MOST_OFFSET + 1])
def test_an_entry_at_no_offset_is_junk(offset: int) -> None:
    (event,) = events(start(EPOCH), 1, [DRAFT])
    with pytest.raises(JunkReceived):
        read_stored("a.b", offset, pack_stored(event))
