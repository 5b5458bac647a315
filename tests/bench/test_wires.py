"""Requests to the peers, and where their messages begin and end."""

import base64
import hashlib
import re
from urllib.parse import parse_qs

import pytest

from _installed import PROGRAMS
from _peers import PEERS
from _wires import handshake, http_publishing, json_event, sse_frames, websocket_publishing
from server.load_layout import Layout
from server.load_target import mark_of, padding

LAYOUT = Layout(sessions=2)
EVENT = ("bench.000000", mark_of(7) + padding(128))


def test_frames_of_a_stream() -> None:
    one, two = b"id: 1\ndata: a\n\n", b"data: b\ndata: c\n\n"
    assert sse_frames(one + two + b"data: ha") == ([(0, len(one)), (len(one), len(one + two))], 32)
    assert sse_frames(b":\n\n" + one) == ([(3, 3 + len(one))], 3 + len(one))
    assert sse_frames(b"") == ([], 0)
    assert sse_frames(b"data: a\n") == ([], 0)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_publish_is_whole_and_names_channel_and_mark(peer: object) -> None:
    target = next(each for each in PEERS if each is peer).target(1, LAYOUT)
    message = target.publishing().build([EVENT, EVENT])
    if not message.startswith(b"POST "):
        assert message == websocket_publishing("/").build([EVENT, EVENT])
        return
    for _ in range(2):
        head, _, message = message.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        assert length is not None
        body, message = message[: int(length[1])], message[int(length[1]) :]
        if b"urlencoded" in head:
            body = parse_qs(body.decode())["data"][0].encode()
        assert EVENT[0].encode() in head + body
        # Without escapes: subscribers have to find it as it is.
        assert EVENT[1] in body
    assert message == b""


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_session_asks_for_its_channel(peer: object) -> None:
    wire = next(each for each in PEERS if each is peer).target(1, LAYOUT).wires[0]
    said = wire.hello(0) + wire.first([LAYOUT.name(0)])
    assert said.startswith(b"GET ")
    assert b"bench.000000" in said


def test_the_limit_in_c_knows_the_answer_to_our_key() -> None:
    key = re.search(rb"Sec-WebSocket-Key: (\S+)", handshake("/"))
    assert key is not None
    guid = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key[1] + guid).digest()).decode()
    assert f"Sec-WebSocket-Accept: {accept}\\r\\n" in (PROGRAMS / "bare_send.c").read_text()


def test_requests_follow_each_other() -> None:
    message = http_publishing().build([EVENT, EVENT])
    assert message.count(b"POST /v1/events HTTP/1.1\r\n") == 2
    assert message.count(json_event(*EVENT)) == 2
