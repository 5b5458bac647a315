from __future__ import annotations

import ast
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client_frames import (
    MASK,
    client_close,
    client_frame,
    client_header,
    cut,
    fragments,
    mask_bytes,
)
from handlers import deflate, frames
from handlers.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    NO_STATUS,
    PING,
    PING_FRAME,
    PONG,
    TEXT,
    FrameLimits,
    FrameReader,
    FrameViolation,
    InvalidText,
    Item,
    MessageTooBig,
    binary_frame,
    close_frame,
    frame,
    parse_close,
    pong_frame,
    text_frame,
)

LIMITS = FrameLimits(message_bytes=5000, fragments=10)

# One to four bytes a character. A given alphabet also spares a fresh tree the seconds in which
# Hypothesis builds its Unicode tables, and which its health check takes for a slow strategy.
TEXTS = st.text(alphabet="\0a~é߿ࠀ€\ufeff\uffff𝄞\U0010ffff", max_size=200)


def read(*chunks: bytes, limits: FrameLimits = LIMITS) -> tuple[list[Item], FrameReader]:
    reader = FrameReader(limits)
    return [item for chunk in chunks for item in reader.feed(chunk)], reader


def violation_of(*chunks: bytes, limits: FrameLimits = LIMITS) -> FrameViolation:
    items, reader = read(*chunks, limits=limits)
    assert items == []
    assert reader.closed
    assert reader.violation is not None
    return reader.violation


# ---- reading


def test_example_of_the_rfc() -> None:
    items, reader = read(bytes.fromhex("818537fa213d7f9f4d5158"))

    assert items == [(TEXT, b"Hello")]
    assert not reader.closed and not reader.midway


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 125, 126, 1023, 1024, 1025, 1026, 1027, 4999])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_payload_of_any_size_is_unmasked(opcode: int, size: int) -> None:
    payload = bytes(index % 127 for index in range(size))

    items, _ = read(client_frame(opcode, payload, mask=b"\x00\x01\xfe\xff"))

    assert items == [(opcode, payload)]
    assert type(items[0][1]) is bytes


def test_many_frames_in_one_read_and_the_rest_in_the_next() -> None:
    stream = b"".join(client_frame(TEXT, b"%d" % number) for number in range(50))

    items, reader = read(stream[:-3])
    assert (reader.midway, reader.held_bytes) == (True, 5)
    items += reader.feed(stream[-3:])

    assert items == [(TEXT, b"%d" % number) for number in range(50)]
    assert (reader.midway, reader.held_bytes) == (False, 0)


def test_fragmented_message_with_control_frames_between() -> None:
    one, two, three = fragments(BINARY, b"a" * 200, b"", b"b")
    reader = FrameReader(LIMITS)

    assert reader.feed(one) == []
    assert (reader.midway, reader.held_bytes) == (True, 200)
    assert reader.feed(client_frame(PING, b"?")) == [(PING, b"?")]
    assert reader.feed(two + client_frame(PONG)) == [(PONG, b"")]
    assert reader.feed(three) == [(BINARY, b"a" * 200 + b"b")]
    assert (reader.midway, reader.held_bytes) == (False, 0)


def test_character_may_be_cut_between_fragments() -> None:
    items, _ = read(*fragments(TEXT, *cut("€𝄞".encode(), 1)))

    assert items == [(TEXT, "€𝄞".encode())]


def test_nothing_is_read_after_a_close_frame() -> None:
    items, reader = read(
        client_frame(TEXT, b"a", fin=False),
        client_close(4001, b"bye") + client_frame(PING) + b"\xff" * 100,
        client_frame(PING),
    )

    assert items == [(CLOSE, b"\x0f\xa1bye")]
    assert reader.closed and reader.violation is None
    assert not reader.midway


# ---- violations


def test_what_came_before_a_violation_is_returned() -> None:
    good = client_frame(TEXT, b"a") + client_frame(PING)

    items, reader = read(good + client_frame(TEXT, b"b", mask=None) + client_frame(TEXT, b"c"))

    assert items == [(TEXT, b"a"), (PING, b"")]
    assert isinstance(reader.violation, FrameViolation)
    assert reader.feed(client_frame(TEXT, b"d")) == []


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (client_frame(TEXT, b"a", mask=None), "frame without a mask"),
        (client_frame(TEXT, b"", mask=None), "frame without a mask"),
        (client_frame(TEXT, b"a" * 200, mask=None), "frame without a mask"),
        (client_frame(TEXT, b"a", rsv=4), "reserved bits set"),
        (client_frame(3), "reserved opcode"),
        (client_frame(15), "reserved opcode"),
        (client_frame(PING, fin=False), "fragmented control frame"),
        (client_frame(CLOSE, fin=False), "fragmented control frame"),
        (client_frame(PING, b"a" * 126), "control frame over 125 bytes"),
        (client_frame(PONG, b"a", length_bytes=2), "control frame over 125 bytes"),
        (client_frame(CONTINUATION, b"a"), "continuation without a message"),
        (client_frame(TEXT, b"a" * 125, length_bytes=2), "length not in its shortest form"),
        (client_frame(TEXT, b"", length_bytes=8), "length not in its shortest form"),
        (client_header(TEXT, 65535, length_bytes=8), "length not in its shortest form"),
        (client_header(TEXT, 1 << 63), "length with its top bit set"),
        (client_frame(CLOSE, b"\x03"), "invalid close code"),
        (client_close(1005), "invalid close code"),
        (client_close(5000), "invalid close code"),
    ],
)
def test_protocol_error(stream: bytes, reason: str) -> None:
    for chunks in ([stream], cut(stream, 1)):
        violation = violation_of(*chunks)

        assert violation.reason == reason
        assert (violation.code, violation.rfc_code) == (4500, 1002)
        assert violation.__traceback__ is None and violation.__context__ is None


def test_new_message_inside_a_fragmented_one() -> None:
    first = client_frame(TEXT, b"a", fin=False)

    for second in (client_frame(TEXT, b"b"), client_frame(BINARY, b"b" * 200, fin=False)):
        assert violation_of(first, second).reason == "new message inside a fragmented one"


@pytest.mark.parametrize(
    "chunks",
    [
        [client_frame(TEXT, b"\xff")],
        [client_frame(TEXT, b"a" * 200 + b"\xc3")],
        fragments(TEXT, b"\xe2\x82", b"a"),
        fragments(TEXT, b"a", b"\xe2\x82"),
    ],
)
def test_text_that_is_not_utf8(chunks: list[bytes]) -> None:
    violation = violation_of(*chunks)

    assert isinstance(violation, InvalidText)
    assert (violation.code, violation.rfc_code) == (4500, 1007)
    assert violation.__context__ is None


def test_close_reason_that_is_not_utf8() -> None:
    assert violation_of(client_close(1000, b"\xff")).reason == "close reason is not UTF-8"


# ---- limits


@pytest.mark.parametrize("limit", [10, 125, 126, 1000, 70_000])
def test_limit_is_the_largest_message(limit: int) -> None:
    limits = FrameLimits(message_bytes=limit)
    items, _ = read(client_frame(BINARY, b"a" * limit), limits=limits)
    assert items == [(BINARY, b"a" * limit)]

    violation = violation_of(client_frame(BINARY, b"a" * (limit + 1)), limits=limits)

    assert isinstance(violation, MessageTooBig)
    assert (violation.code, violation.rfc_code) == (4505, 1009)
    assert str(violation) == f"message over {limit} bytes"


def test_size_is_refused_at_the_header() -> None:
    assert isinstance(violation_of(client_header(BINARY, 5001)), MessageTooBig)
    assert isinstance(violation_of(client_header(BINARY, (1 << 63) - 1)), MessageTooBig)


def test_limit_counts_all_fragments() -> None:
    first = client_frame(BINARY, b"a" * 4000, fin=False)
    items, _ = read(first, client_frame(CONTINUATION, b"b" * 1000))
    assert items == [(BINARY, b"a" * 4000 + b"b" * 1000)]

    assert isinstance(violation_of(first, client_header(CONTINUATION, 1001)), MessageTooBig)


def test_number_of_fragments_is_limited() -> None:
    """Empty fragments cost no bytes, so only their number can stop them."""
    items, _ = read(*fragments(TEXT, *[b""] * 10))
    assert items == [(TEXT, b"")]

    assert violation_of(*fragments(TEXT, *[b""] * 11)).reason == "more than 10 fragments"


# ---- memory


def test_idle_reader_is_small() -> None:
    """Also after it has read partial and fragmented messages."""
    count = 500
    busy = [client_frame(TEXT, b"a" * 300), *fragments(TEXT, b"b", b"c"), client_frame(PING)]
    chunks = cut(b"".join(busy), 100)
    readers: list[FrameReader | None] = [None] * count
    FrameReader(LIMITS).feed(busy[0])
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for index in range(count):
            reader = readers[index] = FrameReader(LIMITS)
            assert sum(len(reader.feed(chunk)) for chunk in chunks) == 3
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert not hasattr(readers[0], "__dict__")
    assert used / count < 200


def test_announced_bytes_are_not_reserved() -> None:
    limits = FrameLimits(message_bytes=100 << 20)
    reader = FrameReader(limits)
    tracemalloc.start()
    try:
        reader.feed(client_header(BINARY, 100 << 20) + MASK + b"a")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert reader.midway
    assert peak < 10_000


def test_partial_frame_grows_in_place() -> None:
    """A copy of all that was held, for each byte that comes, would be quadratic."""
    reader = FrameReader(FrameLimits(message_bytes=1 << 20))
    reader.feed(client_header(BINARY, 1 << 20) + MASK)
    reader.feed(b"a" * (1 << 19))
    peaks = []
    tracemalloc.start()
    try:
        for _ in range(100):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            reader.feed(b"a")
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()

    assert sum(peak > 100_000 for peak in peaks) <= 1


# ---- properties


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[Item]]:
    """A valid stream and what must be read from it."""
    stream, items = b"", []
    masks = st.binary(min_size=4, max_size=4)
    for _ in range(draw(st.integers(0, 6))):
        opcode = draw(st.sampled_from([TEXT, BINARY, PING, PONG]))
        if opcode >= CLOSE:
            payload = draw(st.binary(max_size=125))
            stream += client_frame(opcode, payload, mask=draw(masks))
            items.append((opcode, payload))
            continue
        size = draw(st.sampled_from([10, 125, 130, 2000]))
        repeat = draw(st.integers(1, size // 10))
        payload = (
            draw(TEXTS)[:3].encode() if opcode == TEXT else draw(st.binary(max_size=10))
        ) * repeat
        edges = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
        parts = [payload[start:end] for start, end in pairwise([0, *edges, len(payload)])]
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            stream += client_frame(
                CONTINUATION if index else opcode, part, fin=last, mask=draw(masks)
            )
            if not last and draw(st.booleans()):
                stream += client_frame(PING, b"between")
                items.append((PING, b"between"))
        items.append((opcode, payload))
    return stream, items


@settings(deadline=None)
@given(conversations(), st.data())
def test_any_cut_of_a_stream_gives_the_same_items(
    conversation: tuple[bytes, list[Item]], data: st.DataObject
) -> None:
    stream, expected = conversation
    edges = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    chunks = [stream[start:end] for start, end in pairwise([0, *edges, len(stream)])]

    for pieces in ([stream], chunks, cut(stream, 1)):
        items, reader = read(*pieces, limits=FrameLimits(message_bytes=10_000))

        assert reader.violation is None
        assert items == expected
        assert not reader.midway and reader.held_bytes == 0


_PLAUSIBLE = st.builds(
    client_frame,
    st.sampled_from([0, 0, 1, 1, 2, 2, 8, 9, 10, 3, 11]),
    st.binary(max_size=300),
    fin=st.booleans(),
    rsv=st.sampled_from([0, 0, 0, 0, 0, 1]),
    mask=st.sampled_from([MASK, MASK, MASK, MASK, None]),
)


@settings(deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=40), _PLAUSIBLE), max_size=20), st.integers(1, 400))
def test_whatever_comes_is_read_or_refused_within_the_limit(pieces: list[bytes], size: int) -> None:
    limits = FrameLimits(message_bytes=400, fragments=5)
    reader = FrameReader(limits)
    together, whole = read(b"".join(pieces), limits=limits)
    items = []

    for chunk in cut(b"".join(pieces), size):
        items += reader.feed(chunk)
        # A whole message but for its last frame, and a control frame that waits for its end.
        assert reader.held_bytes <= limits.message_bytes + 6 + 125
        assert not (reader.closed and reader.midway)

    assert items == together
    assert type(reader.violation) is type(whole.violation)
    assert str(reader.violation) == str(whole.violation)
    for opcode, payload in items:
        assert opcode in {TEXT, BINARY, CLOSE, PING, PONG}
        assert len(payload) <= (limits.message_bytes if opcode < CLOSE else 125)
        if opcode == TEXT:
            payload.decode()
        if opcode == CLOSE:
            parse_close(payload)


# ---- building


def test_examples_of_the_rfc_are_built() -> None:
    assert text_frame(b"Hello") == bytes.fromhex("810548656c6c6f")
    assert pong_frame(b"Hello") == bytes.fromhex("8a0548656c6c6f")
    assert binary_frame(bytes(256)) == bytes.fromhex("827e0100") + bytes(256)
    assert binary_frame(bytes(65536)) == bytes.fromhex("827f0000000000010000") + bytes(65536)
    assert PING_FRAME == b"\x89\x00"


@settings(deadline=None)
@given(st.sampled_from([TEXT, BINARY]), st.sampled_from([0, 1, 125, 126, 65535, 65536, 65537]))
def test_built_frame_reads_back_once_masked(opcode: int, size: int) -> None:
    payload = b"a" * size
    built = frame(opcode, payload)
    header = len(built) - size

    masked = bytes((built[0], built[1] | 0x80)) + built[2:header] + MASK + mask_bytes(payload)
    items, _ = read(masked, limits=FrameLimits(message_bytes=1 << 17))

    assert items == [(opcode, payload)]


@settings(deadline=None)
@given(TEXTS, st.sampled_from([1000, 1011, 1014, 3000, 4001, 4999]))
def test_close_frame_reads_back(reason: str, code: int) -> None:
    built = close_frame(code, reason)

    assert built[0] == 0x88
    assert built[1] == len(built) - 2 <= 125
    code_read, reason_read = parse_close(built[2:])
    assert code_read == code
    assert reason.startswith(reason_read)
    assert reason_read == reason or len(reason_read.encode()) > 119


def test_close_reason_is_cut_at_a_character() -> None:
    assert close_frame(4000, "€" * 50)[4:] == ("€" * 41).encode()
    assert close_frame(4000, "a" + "€" * 50)[4:] == ("a" + "€" * 40).encode()
    assert close_frame(4000, "a\ud800b")[4:] == b"a?b"


def test_close_without_a_code() -> None:
    assert parse_close(b"") == (NO_STATUS, "")
    assert close_frame(NO_STATUS) == b"\x88\x00"


@pytest.mark.parametrize("code", [0, 999, 1004, 1006, 1015, 2999, 5000, 70_000])
def test_close_code_that_may_not_be_sent(code: int) -> None:
    with pytest.raises(ValueError, match=f"close code {code} may not be sent"):
        close_frame(code)


# ---- purity


@pytest.mark.parametrize("module", [frames, deflate])
def test_module_imports_the_standard_library_only_and_no_io(module: ModuleType) -> None:
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
        )
        if name != "handlers.deflate"
    }

    assert imported <= sys.stdlib_module_names - {"asyncio", "socket", "ssl", "time"}
