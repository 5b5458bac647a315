import pytest

from load_rig import ACCEPTED, text_frame, wire_server, wire_target
from server.load_engine import Load
from server.load_frames import websocket_frames
from server.load_galecast import again
from server.load_layout import Layout
from server.load_opening import Open, Opened, Opening, Wanted
from server.load_target import LoadFailed

BUSY = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 3\r\n\r\nno\n"


def wanted(number: int, *, confirmations: int = 0) -> Wanted:
    return Wanted(
        hello=b"GET /s/%d HTTP/1.1\r\n\r\n" % number,
        accepted=b"HTTP/1.1 101",
        first=b"",
        ready=b"ready",
        confirmations=confirmations,
        refused=b"refused",
        frames=websocket_frames,
    )


def open_all(opening: Opening, *all_wanted: Wanted) -> tuple[list[Open], Opened]:
    opened, how = opening.open(all_wanted)
    for each in opened:
        each.sock.close()
    return opened, how


def test_all_are_opened_and_in_their_places() -> None:
    heard: list[int] = []
    with wire_server(greeting=lambda number: ACCEPTED + text_frame(b"%d" % number)) as server:
        opening = Opening("127.0.0.1", server.port, parallel=7, heard=heard.append)
        opened, how = open_all(opening, *map(wanted, range(50)))
    assert [each.rest for each in opened] == [text_frame(b"%d" % number) for number in range(50)]
    assert how.connections == how.durations.total == 50
    assert how.per_s > 0
    assert heard == sorted(heard) and heard[-1] == 50


def test_a_session_is_ready_when_everything_was_confirmed() -> None:
    greeting = ACCEPTED + text_frame(b"ready 1") + text_frame(b"else") + text_frame(b"ready 2")
    with wire_server(greeting=lambda _: greeting + text_frame(b"rest")) as server:
        opening = Opening("127.0.0.1", server.port)
        (opened,), _ = open_all(opening, wanted(0, confirmations=2))
    assert opened.rest == text_frame(b"rest")


def test_who_is_refused_for_now_comes_back() -> None:
    asked: list[int] = []

    def greeting(number: int) -> bytes:
        asked.append(number)
        return ACCEPTED if asked.count(number) > 1 else BUSY

    with wire_server(greeting=greeting) as server:
        opening = Opening("127.0.0.1", server.port, again=lambda _: 0.01)
        opened, how = open_all(opening, *map(wanted, range(5)))
    assert len(opened) == how.connections == 5
    assert how.refusals == 5


def test_a_server_that_never_lets_anyone_in_is_left_in_the_end() -> None:
    with wire_server(greeting=lambda _: BUSY) as server:
        opening = Opening("127.0.0.1", server.port, timeout_s=0.1, again=lambda _: 0.02)
        with pytest.raises(LoadFailed, match="opened no session within"):
            opening.open([wanted(0)])


def test_a_server_that_says_nothing_is_left_in_the_end() -> None:
    with wire_server(greeting=lambda _: b"") as server:
        opening = Opening("127.0.0.1", server.port, timeout_s=0.1)
        with pytest.raises(LoadFailed, match="0 of 3 are open"):
            opening.open([wanted(number) for number in range(3)])


def test_a_name_that_is_none() -> None:
    with pytest.raises(LoadFailed, match="is not found"):
        Opening("no.such.host.invalid", 1)


@pytest.mark.parametrize(
    ("answer", "pause_s"),
    [
        (BUSY, None),
        (b'HTTP/1.1 429 No\r\n\r\n{"code":"limit_exceeded"}', None),
        (b'HTTP/1.1 429 No\r\n\r\n{"code":"rate_limited"}', 1.0),
        (b'HTTP/1.1 429 No\r\nRetry-After: 3\r\nX: y\r\n\r\n{"code":"rate_limited"}', 3.0),
        (b'HTTP/1.1 429 No\r\nRetry-After: 900\r\n\r\n{"code":"rate_limited"}', 30.0),
    ],
)
def test_only_what_is_too_fast_is_tried_again(answer: bytes, pause_s: float | None) -> None:
    assert again(answer) == pause_s


def test_nothing_stays_open_when_it_fails() -> None:
    """Sessions that were open already are closed too: the suite fails on what is left."""

    def heard(connections: int) -> None:
        # Not before the others are open: they may take longer.
        if connections == 9:
            opening._timeout_s = 0.1

    with wire_server(greeting=lambda number: ACCEPTED if number < 9 else b"") as server:
        with Load(wire_target(server.port), Layout(sessions=2), size=32) as load:
            load.open()
        opening = Opening("127.0.0.1", server.port, heard=heard)
        with pytest.raises(LoadFailed, match="9 of 10 are open"):
            opening.open([wanted(number) for number in range(10)])
