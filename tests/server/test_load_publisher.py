import socket
from array import array
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.load_galecast import galecast
from server.load_publisher import LoadPublisher, PublisherClosed, PublishRefused
from server.load_target import Publishing

ACKED, REFUSED, CLOSING = b"taken;", b"refused-for-good;", b"this-is-the-end;"


class Link:
    """A publisher of two lanes out of three, and the other end of its connection."""

    def __init__(self) -> None:
        own, self.peer = socket.socketpair()
        self.own = own
        own.setblocking(False)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        self.sent = [array("d") for _ in range(3)]
        way = Publishing(
            name="test",
            build=lambda events: b"".join(b"%s=%s;" % (n.encode(), d) for n, d in events),
            acked=ACKED,
            refused=REFUSED,
            closing=CLOSING,
        )
        self.publisher = LoadPublisher(own, way, [0, 2], ["a", "b", "c"], b"pp", self.sent)
        self.buffer = bytearray(1 << 16)

    def close(self) -> None:
        self.own.close()
        self.peer.close()


@pytest.fixture
def link() -> Iterator[Link]:
    made = Link()
    yield made
    made.close()


def test_events_go_to_the_lanes_in_turn_with_their_numbers(link: Link) -> None:
    link.publisher.publish([1.0, 2.0])
    link.publisher.publish([3.0])
    assert link.peer.recv(4_096) == (
        b"a=~ev:000000000000pp;c=~ev:000000000002pp;a=~ev:000000000003pp;"
    )
    assert [list(each) for each in link.sent] == [[1.0, 3.0], [], [2.0]]
    assert link.publisher.published == 3


def test_what_a_server_says_that_ends_the_session_is_kept(link: Link) -> None:
    link.peer.send(CLOSING[:4])
    link.publisher.take(link.buffer)
    link.peer.send(CLOSING[4:] + b"too much")
    with pytest.raises(PublisherClosed, match="session was closed") as caught:
        link.publisher.take(link.buffer)
    assert caught.value.answer == CLOSING + b"too much"


@given(st.lists(st.integers(0, 4), max_size=12), st.lists(st.integers(1, 9), max_size=40))
def test_each_acknowledgement_counts_once_however_it_is_cut(
    junk: list[int], cuts: list[int]
) -> None:
    link = Link()
    try:
        data = b"".join(b"x" * size + ACKED for size in junk)
        at = 0
        for size in [*cuts, len(data) or 1]:
            if part := data[at : at + size]:
                link.peer.send(part)
                assert link.publisher.take(link.buffer) == len(part)
            at += size
        assert link.publisher.acked == len(junk)
    finally:
        link.close()


@pytest.mark.parametrize("cut", [1, 5, len(REFUSED) - 1])
def test_a_refusal_is_raised_also_when_it_comes_in_pieces(link: Link, cut: int) -> None:
    link.peer.send(b"why: " + REFUSED[:cut])
    link.publisher.take(link.buffer)
    link.peer.send(REFUSED[cut:])
    with pytest.raises(PublishRefused) as caught:
        link.publisher.take(link.buffer)
    assert REFUSED in caught.value.answer


def test_what_the_kernel_does_not_take_waits_and_keeps_its_order(link: Link) -> None:
    got = b""
    for _ in range(2_000):
        link.publisher.publish([0.0])
    waits = 0
    while link.publisher.unsent:
        waits += 1
        got += link.peer.recv(1 << 16)
        assert link.publisher.take(link.buffer) == -1
    link.own.shutdown(socket.SHUT_WR)
    while part := link.peer.recv(1 << 16):
        got += part
    events = got.split(b";")[:-1]
    numbers = [int(event.partition(b"~ev:")[2][:12]) for event in events]
    assert waits > 0
    assert len(numbers) == 2_000
    assert numbers == sorted(numbers)


def test_the_end_of_a_connection_is_zero(link: Link) -> None:
    link.peer.close()
    assert link.publisher.take(link.buffer) == 0


@pytest.mark.parametrize("how", ["http", "array", "ndjson"])
def test_a_request_says_how_long_it_is(how: str) -> None:
    target = galecast("h", 1, credentials=["k.s"], publish=how, prefix="/under")  # type: ignore[arg-type]
    events = [("c.d", b"~ev:1")] * (1 if how == "http" else 3)
    head, _, body = target.publishing().build(events).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /under/v1/events HTTP/1.1\r\nHost: h:1\r\n")
    assert b"Authorization: Bearer k.s" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert body.count(b'{"channel":"c.d","data":"~ev:1"}') == len(events)
