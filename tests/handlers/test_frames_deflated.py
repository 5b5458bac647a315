"""The frame reader where compression was agreed on (RFC 7692)."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client_frames import (
    CONTINUATION,
    MASK,
    client_close,
    client_frame,
    client_header,
    cut,
    deflated,
    fragments,
)
from handlers.frames import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    FrameLimits,
    FrameReader,
    FrameViolation,
    InvalidText,
    Item,
    MessageTooBig,
    deflated_frame,
)

RSV1 = 4
LIMITS = FrameLimits(message_bytes=5000, fragments=10, deflated=True)


def read(*chunks: bytes, limits: FrameLimits = LIMITS) -> tuple[list[Item], FrameReader]:
    reader = FrameReader(limits)
    items = []
    for chunk in chunks:
        items += reader.feed(chunk)
        while reader.backlog:
            items += reader.feed(b"")
    return items, reader


def violation_of(*chunks: bytes, limits: FrameLimits = LIMITS) -> FrameViolation:
    items, reader = read(*chunks, limits=limits)
    assert items == []
    assert reader.closed and reader.held_bytes == 0 and not reader.backlog
    assert reader.violation is not None
    return reader.violation


def squeezed(opcode: int, payload: bytes) -> bytes:
    return client_frame(opcode, deflated(payload), rsv=RSV1)


# ---- reading


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("size", [0, 1, 100, 125, 126, 4999, 5000])
def test_compressed_message_comes_out_inflated(opcode: int, size: int) -> None:
    items, reader = read(squeezed(opcode, b"a" * size))

    assert items == [(opcode, b"a" * size)]
    assert not reader.midway and reader.held_bytes == 0


def test_messages_may_be_compressed_or_not() -> None:
    frames = [squeezed(TEXT, b"one"), client_frame(TEXT, b"two"), squeezed(TEXT, b"three")]

    assert [payload for _, payload in read(b"".join(frames))[0]] == [b"one", b"two", b"three"]


def test_fragments_with_a_ping_between() -> None:
    parts = cut(deflated("Grüße, ".encode() * 50), 3)
    first, *others = fragments(TEXT, *parts, rsv=RSV1)
    limits = FrameLimits(message_bytes=5000, deflated=True)

    items, _ = read(first, client_frame(PING, b"p"), *others, limits=limits)

    assert items == [(PING, b"p"), (TEXT, "Grüße, ".encode() * 50)]


def test_last_fragment_may_be_empty() -> None:
    items, _ = read(*fragments(BINARY, deflated(b"abc"), b"", rsv=RSV1))

    assert items == [(BINARY, b"abc")]


# ---- what is refused


@pytest.mark.parametrize(
    "frame",
    [
        client_frame(PING, b"p", rsv=RSV1),
        client_frame(PONG, b"", rsv=RSV1),
        client_frame(CLOSE, b"\x03\xe8", rsv=RSV1),
        client_frame(TEXT, b"a", rsv=2),
        client_frame(TEXT, b"a", rsv=1),
        client_frame(TEXT, deflated(b"a"), rsv=RSV1 | 2),
        client_frame(CONTINUATION, b"", rsv=RSV1),
    ],
)
def test_reserved_bits_elsewhere_are_refused(frame: bytes) -> None:
    violation = violation_of(frame)

    assert (violation.code, violation.reason) == (4500, "reserved bits set")


@pytest.mark.parametrize("final", [True, False])
def test_only_the_first_frame_says_that_it_is_compressed(final: bool) -> None:
    first = client_frame(TEXT, deflated(b"Hello")[:3], fin=False, rsv=RSV1)
    again = client_frame(CONTINUATION, deflated(b"Hello")[3:], fin=final, rsv=RSV1)

    assert violation_of(first, again).reason == "reserved bits set"


@pytest.mark.parametrize("rsv", range(1, 8))
def test_nothing_is_compressed_unless_agreed_on(rsv: int) -> None:
    frame = client_frame(TEXT, deflated(b"Hello"), rsv=rsv)

    assert violation_of(frame, limits=FrameLimits(5000)).reason == "reserved bits set"


def test_malformed_data_is_a_violation_of_the_protocol() -> None:
    violation = violation_of(client_frame(TEXT, b"Hello, world!", rsv=RSV1))

    assert (violation.code, violation.reason) == (4500, "malformed compressed data")
    assert violation_of(client_frame(TEXT, b"", rsv=RSV1)).code == 4500
    assert violation_of(client_frame(TEXT, deflated(b"Hello")[:3], rsv=RSV1)).code == 4500


def test_text_is_utf8_once_inflated() -> None:
    bad = b"a" * 50 + b"\xff"
    assert isinstance(violation_of(squeezed(TEXT, bad)), InvalidText)
    assert isinstance(violation_of(*fragments(TEXT, *cut(deflated(bad), 5), rsv=RSV1)), InvalidText)
    # Compressed data itself is no text, and need not be.
    assert read(squeezed(TEXT, "é".encode() * 900))[0] == [(TEXT, "é".encode() * 900)]


# ---- limits


def test_limit_holds_for_what_it_inflates_to() -> None:
    for frames in (
        (squeezed(TEXT, b"a" * 5001),),
        fragments(BINARY, *cut(deflated(b"a" * 5001), 10), rsv=RSV1),
    ):
        violation = violation_of(*frames)
        assert isinstance(violation, MessageTooBig)
        assert (violation.code, violation.reason) == (4505, "message over 5000 bytes")


def test_limit_holds_for_the_compressed_bytes() -> None:
    assert violation_of(client_header(TEXT, 5001, rsv=RSV1)).code == 4505


def test_bomb_is_never_held_whole() -> None:
    bomb = squeezed(BINARY, bytes(100_000_000))
    reader = FrameReader(FrameLimits(message_bytes=131_072, deflated=True))
    tracemalloc.start()
    try:
        assert reader.feed(bomb) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert isinstance(reader.violation, MessageTooBig)
    assert peak < 1_000_000


def test_many_small_bombs_in_one_write_are_read_by_and_by() -> None:
    """64 KiB from the socket could else become 64 MB of messages at once."""
    count = 400
    frames = squeezed(BINARY, bytes(5000)) * count
    reader = FrameReader(LIMITS)
    items = reader.feed(frames)
    turns = 1
    assert len(items) == 1

    while reader.backlog:
        assert reader.midway
        found = reader.feed(b"")
        assert sum(len(payload) for _, payload in found) < 2 * LIMITS.message_bytes
        items += found
        turns += 1

    assert items == [(BINARY, bytes(5000))] * count
    assert turns == count and not reader.midway and reader.held_bytes == 0


def test_what_comes_during_a_backlog_stands_behind_it() -> None:
    reader = FrameReader(LIMITS)
    items = reader.feed(squeezed(BINARY, bytes(5000)) * 3)
    items += reader.feed(client_close(1000))
    assert len(items) == 2
    while reader.backlog:
        items += reader.feed(b"")

    assert [opcode for opcode, _ in items] == [BINARY, BINARY, BINARY, CLOSE]
    assert reader.closed


def test_nothing_is_kept_between_messages() -> None:
    readers = [FrameReader(LIMITS) for _ in range(100)]
    frame = squeezed(TEXT, b"a" * 4000)
    for reader in readers[:10]:
        reader.feed(frame)
    tracemalloc.start()
    try:
        for reader in readers:
            reader.feed(frame)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert held < 100 * 16


# ---- properties


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[Item]]:
    """A valid stream of messages, compressed or not, in fragments or not, with pings between."""
    stream, items = b"", []
    for _ in range(draw(st.integers(1, 6))):
        opcode = draw(st.sampled_from([TEXT, BINARY]))
        payload = draw(st.sampled_from([b"", b"a", b"abc " * 100, b"a" * 3000, bytes(range(128))]))
        compressed = draw(st.booleans())
        sent = deflated(payload, draw(st.integers(0, 9))) if compressed else payload
        at = draw(st.lists(st.integers(0, len(sent)), max_size=5).map(sorted))
        parts = [sent[a:b] for a, b in zip([0, *at], [*at, len(sent)], strict=True)]
        for frame in fragments(opcode, *parts, rsv=RSV1 if compressed else 0):
            if draw(st.booleans()):
                stream += client_frame(PING, b"p")
                items.append((PING, b"p"))
            stream += frame
        items.append((opcode, payload))
    return stream, items


@settings(deadline=None)
@given(conversations(), st.integers(1, 3000))
def test_however_it_is_cut_the_same_is_read(
    conversation: tuple[bytes, list[Item]], size: int
) -> None:
    stream, expected = conversation
    items, reader = read(*cut(stream, size))

    assert reader.violation is None
    assert items == expected
    assert not reader.midway


_PIECES = st.one_of(
    st.binary(max_size=40),
    st.builds(
        client_frame,
        st.sampled_from([0, 0, 1, 1, 2, 2, 8, 9]),
        st.one_of(st.binary(max_size=60), st.binary(max_size=600).map(deflated)),
        fin=st.booleans(),
        rsv=st.sampled_from([0, 4, 4, 4, 5]),
        mask=st.just(MASK),
    ),
    st.integers(0, 100_000).map(lambda size: squeezed(BINARY, bytes(size))),
)


@settings(deadline=None)
@given(st.lists(_PIECES, max_size=15), st.integers(1, 400))
def test_whatever_comes_is_read_or_refused_within_the_limit(pieces: list[bytes], size: int) -> None:
    limits = FrameLimits(message_bytes=400, fragments=5, deflated=True)
    together, whole = read(b"".join(pieces), limits=limits)
    items, reader = read(*cut(b"".join(pieces), size), limits=limits)

    assert items == together
    assert type(reader.violation) is type(whole.violation)
    assert all(len(payload) <= 400 for _, payload in items)


# ---- building


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_compressed_frame_has_the_first_reserved_bit(opcode: int) -> None:
    assert deflated_frame(opcode, b"abc") == bytes((0xC0 | opcode, 3)) + b"abc"
    assert deflated_frame(opcode, b"a" * 300)[:4] == bytes((0xC0 | opcode, 126)) + b"\x01\x2c"
