import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.frames import BINARY, TEXT, FrameLimits, FrameReader, frame
from server.load_frames import PING, masked, websocket_frames

payloads = st.sampled_from([0, 1, 125, 126, 127, 65_535, 65_536, 70_000]).map(bytes)


@given(st.lists(payloads, max_size=4), st.integers(0, 200_000))
def test_whole_frames_are_found_and_the_rest_is_left(bodies: list[bytes], cut: int) -> None:
    frames = [frame(BINARY, each) for each in bodies]
    data = b"".join(frames)[:cut]
    bounds, rest = websocket_frames(data)
    assert [data[begin:end] for begin, end in bounds] == frames[: len(bounds)]
    assert rest == sum(map(len, frames[: len(bounds)]))
    assert len(bounds) == len(frames) or len(data) < len(b"".join(frames[: len(bounds) + 1]))


def test_pings_and_pongs_are_no_messages_but_a_close_is() -> None:
    close = frame(0x8, b"\x0f\xa2too slow")
    data = PING + frame(TEXT, b"a") + frame(0xA, b"x") + close + PING
    bounds, rest = websocket_frames(data)
    assert [data[begin:end] for begin, end in bounds] == [frame(TEXT, b"a"), close]
    assert rest == len(data)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
@pytest.mark.parametrize("binary", [False, True])
def test_a_server_reads_what_a_client_writes(size: int, binary: bool) -> None:
    payload = b"x" * size
    reader = FrameReader(FrameLimits(1 << 20))
    opcode = BINARY if binary else TEXT
    assert list(reader.feed(masked(payload, binary=binary))) == [(opcode, payload)]
