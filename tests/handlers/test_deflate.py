from __future__ import annotations

import os
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_frames import deflated, inflated
from handlers.deflate import WINDOW_BITS, DeflateError, deflate, inflate

PAYLOADS = st.one_of(
    st.binary(max_size=2000),
    st.builds(lambda part, times: part * times, st.binary(max_size=50), st.integers(0, 500)),
)


@given(PAYLOADS, st.integers(1, 9))
def test_what_is_compressed_is_read_again(payload: bytes, level: int) -> None:
    squeezed = deflate(payload, level)

    assert inflate(squeezed, len(payload)) == payload
    assert inflated(squeezed) == payload


@given(PAYLOADS, st.integers(1, 9), st.integers(9, 15))
def test_clients_may_use_any_window(payload: bytes, level: int, window_bits: int) -> None:
    assert inflate(deflated(payload, level, window_bits), len(payload)) == payload


def test_nothing_looks_back_further_than_was_said() -> None:
    """With a larger window the second half would be a copy of the first."""
    half = os.urandom((1 << WINDOW_BITS) + 300)

    assert len(deflate(half * 2, 9)) > 2 * len(half)
    assert inflated(deflate(half * 2, 9)) == half * 2


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ("f248cdc9c90700", b"Hello"),  # RFC 7692 7.2.3.1
        ("000500faff48656c6c6f00", b"Hello"),  # 7.2.3.3, a block that is not compressed
        ("f348cdc9c9070000", b"Hello"),  # 7.2.3.4, a final block
        ("f248050000 00ffff cac9c90700".replace(" ", ""), b"Hello"),  # 7.2.3.5, two blocks
        ("00", b""),  # 7.2.3.6
        ("f348cdc9c907 00 f348cdc9c907 00 00".replace(" ", ""), b"HelloHello"),  # two final blocks
    ],
)
def test_examples_of_the_rfc(payload: str, message: bytes) -> None:
    assert inflate(bytes.fromhex(payload), 100) == message


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\xff",  # a block of a type that there is not
        b"\x04\x00garbage",
        bytes.fromhex("f348cd"),  # ends within a block
        bytes.fromhex("f248cdc9c9"),
        bytes.fromhex("f348cdc9c90700"),  # a final block with nothing behind
        bytes.fromhex("000500faff4865"),
        bytes.fromhex("00ff0000ff") + b"abc",  # which would take our end for its own content
        bytes.fromhex("000500fbff48656c6c6f00"),  # a length that contradicts itself
        b"Hello, world!",
        zlib.compress(b"Hello" * 10),  # with zlib's header
    ],
)
def test_malformed_data_is_refused(payload: bytes) -> None:
    with pytest.raises(DeflateError):
        inflate(payload, 1000)


def test_distance_beyond_the_message_is_refused() -> None:
    """Context of an earlier message, which neither side keeps."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    words = bytes(range(100)) * 3
    first = squeezer.compress(words) + squeezer.flush(zlib.Z_SYNC_FLUSH)
    second = squeezer.compress(words) + squeezer.flush(zlib.Z_SYNC_FLUSH)
    assert inflate(first[:-4], 1000) == words

    with pytest.raises(DeflateError):
        inflate(second[:-4], 1000)


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_or_refused(payload: bytes) -> None:
    try:
        assert len(inflate(payload, 500)) <= 501
    except DeflateError:
        pass


@pytest.mark.parametrize("most", [0, 1, 16_383, 16_384, 100_000])
def test_limit_is_exact(most: int) -> None:
    assert inflate(deflated(b"a" * most), most) == b"a" * most
    assert len(inflate(deflated(b"a" * (most + 1)), most)) == most + 1
    assert len(inflate(deflated(b"a" * 1_000_000), most)) == most + 1


def test_bomb_takes_no_more_memory_than_the_limit() -> None:
    bomb = deflated(bytes(200_000_000))
    assert len(bomb) < 200_000
    tracemalloc.start()
    try:
        found = inflate(bomb, 100_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert len(found) == 100_001
    # The bomb itself with its end, the result, and what it is joined from.
    assert peak < len(bomb) * 2 + 100_000 * 3


def test_final_blocks_are_few() -> None:
    """Each begins anew on a copy of what follows: 65,000 empty ones would copy 4 GB."""
    final = bytes.fromhex("0300")

    assert inflate(final * 60 + b"\0", 10) == b""
    with pytest.raises(DeflateError):
        inflate(final * 65_000 + b"\0", 10)
