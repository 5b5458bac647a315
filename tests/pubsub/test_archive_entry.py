"""What the archive's queue holds, as it is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pubsub.archive import Kept, Purged, Unarchived
from pubsub.archive_entry import read_entry
from pubsub.envelope import pack_stored
from pubsub.errors import JunkReceived
from pubsub.event import Event
from pubsub.position import Position

EPOCH = "a" * 16
EVENT = Event("a.b", Position(EPOCH, 7, "b" * 16), "c" * 16, "x", "message", b"1", 5)


def entry(**fields: bytes) -> list[bytes]:
    return [part for name, value in fields.items() for part in (name.encode(), value)]


def test_an_event_is_read() -> None:
    stored = pack_stored(EVENT)
    assert read_entry(entry(c=b"a.b", x=b"99", o=b"7", e=stored)) == (Kept(EVENT, 99),)


def test_a_note_is_read_word_by_word() -> None:
    words = f"p{EPOCH}-4-{'d' * 16} {EPOCH}-5-6-1000"
    assert read_entry(entry(c="ä.b".encode(), g=words.encode())) == (
        Purged("ä.b", Position(EPOCH, 4, "d" * 16)),
        Unarchived("ä.b", EPOCH, 5, 6, 1000),
    )


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [b"c"],
        entry(c=b"a.b"),
        entry(c=b"a.b", g=b""),
        entry(c=b"a.b", g=b"\xff"),
        entry(c=b"a.b", g=b"p1-2-3"),
        entry(c=b"a.b", g=f"{EPOCH}-6-5-1000".encode()),
        entry(c=b"a.b", g=f"{EPOCH}-0-5-1000".encode()),
        entry(c=b"a.b", g=f"{EPOCH}-1-9999999999999999-1000".encode()),
        entry(c=b"a.b", g=f"{EPOCH}-5-6-1000 ".encode()),
        entry(c=b"", x=b"0", o=b"7", e=pack_stored(EVENT)),
        entry(c=b"a\nb", x=b"0", o=b"7", e=pack_stored(EVENT)),
        entry(c=b"a" * 1_025, x=b"0", o=b"7", e=pack_stored(EVENT)),
        entry(c=b"a.b", x=b"-1", o=b"7", e=pack_stored(EVENT)),
        entry(c=b"a.b", x=b"0", o=b"1_0", e=pack_stored(EVENT)),
        entry(c=b"a.b", x=b"0", o=b"0", e=pack_stored(EVENT)),
        entry(c=b"a.b", x=b"0", o=b"7", e=pack_stored(EVENT)[:-1]),
        entry(c=b"a.b", x=b"0", o=b"7"),
        entry(c=b"a.b", o=b"7", e=pack_stored(EVENT)),
    ],
)
def test_junk_is_refused(fields: list[bytes]) -> None:
    with pytest.raises(JunkReceived):
        read_entry(fields)


@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([b"c", b"g", b"o", b"e", b"x"]))))
def test_anything_is_read_or_refused(fields: list[bytes]) -> None:
    try:
        read_entry(fields)
    except JunkReceived:
        pass
