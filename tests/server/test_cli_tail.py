import json
import socket
import threading
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path

import pytest
from websocket import WebSocket
from websockets.exceptions import ConnectionClosed

from scripted_server import Peer, Refusal, scripted
from server.cli import main
from server.cli_following import Following
from server.cli_output import CommandFailed
from server.cli_tail import Tail, _Lost, _send
from server.cli_target import Credential, parse_url

Capture = pytest.CaptureFixture[str]


def tail(
    url: str,
    *channels: str,
    count: int = 1,
    key: str | None = "k.s",
    pauses: list[float] | None = None,
    draw: float = 0.0,
) -> int:
    """Follow as the command does, but wait for nothing between two sessions."""
    kept: list[float] = [] if pauses is None else pauses
    return Tail(
        parse_url(url),
        Credential(text=key),
        Following(channels or ("a",), None, None),
        count=count,
        as_json=True,
        sleep=kept.append,
        draw=lambda: draw,
    ).run()


def one_event(peer: Peer, position: str = "p1") -> None:
    peer.welcome()
    peer.subscribe()
    peer.event("a", position)
    with pytest.raises(ConnectionClosed, match="1000"):
        peer.hear()


def test_events_are_lines_for_a_person(capsys: Capture) -> None:
    def script(peer: Peer) -> None:
        assert peer.path == "/under/v1/ws"
        assert peer.headers["Authorization"] == "Bearer k.s"
        assert "Origin" not in peer.headers
        peer.welcome()
        assert peer.subscribe()["rewind"] == 2
        peer.event("a", "p1", {"x": "\x9b2J"}, name="n")
        peer.event("a", "p2", [1])

    with scripted(script) as url:
        argv = ["tail", "--url", f"{url}/under/", "a", "--key", "k.s", "--rewind", "2"]
        assert main([*argv, "--count", "2"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    # What a terminal would obey is shown, not sent.
    assert first.endswith(r'  a  n  {"x": "\u009b2J"}')
    assert second.endswith("  a  message  [1]")


def test_json_is_the_message_as_it_came(capsys: Capture) -> None:
    message = '{"type":"event", "channel":"a","position":"p1","data":1.0e2,"new":[]}'

    def script(peer: Peer) -> None:
        peer.welcome()
        peer.subscribe()
        peer.link.send(message)

    with scripted(script) as url:
        assert main(["tail", "--url", url, "a", "--key", "k.s", "--count", "1", "--json"]) == 0
    assert capsys.readouterr().out == message + "\n"


def test_without_a_key_the_session_is_anonymous() -> None:
    def script(peer: Peer) -> None:
        assert "Authorization" not in peer.headers
        assert peer.hear() == {"type": "connect", "ref": 1}
        one_event(peer)

    with scripted(script) as url:
        assert tail(url, key=None) == 0


def test_it_goes_on_behind_the_last_event(capsys: Capture) -> None:
    def first(peer: Peer) -> None:
        peer.welcome()
        peer.subscribe("p0")
        peer.event("a", "p1")
        peer.event("a", "p2")
        peer.drop()

    def second(peer: Peer) -> None:
        peer.welcome()
        assert peer.subscribe("p2", recovered=True)["since"] == "p2"
        peer.event("a", "p3")
        peer.say(type="closing", code=4001, reason="draining", retry_in_ms=3100)
        peer.link.close(4001, "draining")

    def third(peer: Peer) -> None:
        peer.welcome()
        assert peer.subscribe("q0", recovered=False)["since"] == "p3"
        peer.event("a", "q1")

    pauses: list[float] = []
    with scripted(first, second, third) as url:
        assert tail(url, count=4, pauses=pauses) == 0
    assert pauses == [0.0, 3.1]
    out, err = capsys.readouterr()
    assert [json.loads(line)["position"] for line in out.splitlines()] == ["p1", "p2", "p3", "q1"]
    assert "could not be resumed behind p3" in err
    assert "4001 draining; coming back in 3.1 s" in err


def test_a_refused_handshake_is_an_error_the_first_time() -> None:
    problem = json.dumps({"code": "unauthorized", "detail": "the API key is not valid"})
    for status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.SERVICE_UNAVAILABLE):
        with scripted((status, problem, {})) as url:
            with pytest.raises(CommandFailed, match="unauthorized: the API key is not valid"):
                tail(url)


def test_a_full_server_is_tried_again_and_a_refusing_one_is_not(capsys: Capture) -> None:
    def first(peer: Peer) -> None:
        peer.welcome()
        peer.link.close(4000)

    busy = (HTTPStatus.SERVICE_UNAVAILABLE, "", {"Retry-After": "7"})
    late: Refusal = (HTTPStatus.UNAUTHORIZED, '{"code":"token_expired"}', {})
    pauses: list[float] = []
    with scripted(first, busy, busy, late) as url:
        with pytest.raises(CommandFailed, match="token_expired"):
            tail(url, pauses=pauses)
    assert pauses == [0.0, 7.0, 7.0]
    assert "HTTP status 503" in capsys.readouterr().err


def test_a_server_that_is_away_is_looked_for_again(capsys: Capture) -> None:
    def first(peer: Peer) -> None:
        peer.welcome()
        peer.link.close(4000)

    class Enough(Exception):
        pass

    pauses: list[float] = []
    server = ExitStack()
    url = server.enter_context(scripted(first))

    def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        server.close()
        if len(pauses) == 3:
            raise Enough

    following = Following(["a"], None, None)
    with pytest.raises(Enough):
        Tail(parse_url(url), Credential(text="k.s"), following, sleep=sleep, draw=lambda: 1.0).run()
    assert pauses == [0.5, 1.0, 2.0]
    assert f"cannot reach {url}: Connection refused; coming back in" in capsys.readouterr().err


def test_a_server_that_is_away_at_first_is_an_error(capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        away = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert main(["tail", "--url", away, "a"]) == 1
    assert capsys.readouterr().err == f"galecast: cannot reach {away}: Connection refused\n"


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9\r\n\r\n", b"\xff\xff\r\n\r\n", b""])
def test_what_is_no_web_server_is_an_error(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            peer, _ = listening.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(CommandFailed, match="opens no WebSocket"):
            tail(f"http://127.0.0.1:{listening.getsockname()[1]}")
        thread.join()


def test_a_redirect_is_not_followed() -> None:
    """It would take the credential to wherever it leads."""
    elsewhere = {"Location": "ws://127.0.0.1:9/v1/ws"}
    with scripted((HTTPStatus.TEMPORARY_REDIRECT, "", elsewhere)) as url:
        with pytest.raises(CommandFailed, match="opens no WebSocket"):
            tail(url)


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with scripted(one_event) as url:
        assert tail(url) == 0


def test_a_code_that_says_stay_away_ends_it(capsys: Capture) -> None:
    def ended(peer: Peer) -> None:
        peer.welcome()
        peer.link.close(4502, "ended")

    with scripted(ended) as url:
        assert main(["tail", "--url", url, "a", "--key", "k.s"]) == 1
    assert capsys.readouterr().err == "galecast: the server ended the session: 4502 ended\n"


def test_a_close_frame_without_a_code_is_no_reason_to_stay_away() -> None:
    def first(peer: Peer) -> None:
        peer.welcome()
        peer.hear()
        peer.link.socket.sendall(b"\x88\x00")
        with pytest.raises(ConnectionClosed):
            peer.hear()

    with scripted(first, one_event) as url:
        assert tail(url) == 0


def test_after_a_good_session_the_pauses_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(peer: Peer) -> None:
        peer.welcome()
        peer.link.close(4000)

    pauses: list[float] = []
    with scripted(cut, cut, cut, one_event) as url:
        assert tail(url, pauses=pauses, draw=1.0) == 0
    assert pauses == [0.5, 1.0, 2.0]
    pauses.clear()
    monkeypatch.setattr("server.cli_tail._STEADY_S", 0.0)
    with scripted(cut, cut, cut, one_event) as url:
        assert tail(url, pauses=pauses, draw=1.0) == 0
    assert pauses == [0.5, 0.5, 0.5]


def test_a_send_that_fails_is_a_lost_connection() -> None:
    with pytest.raises(_Lost, match="the connection was lost"):
        _send(WebSocket(), "{}")


def test_a_silent_server_is_asked_and_then_left(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(peer: Peer) -> None:
        peer.welcome(ping_s=0.05)
        peer.subscribe()
        ping = peer.hear()
        assert ping["type"] == "ping"
        # Not before: this answer has its time.
        monkeypatch.setattr("server.cli_tail._PONG_S", 0.2)
        peer.say(type="pong", ref=ping["ref"])
        assert peer.hear()["ref"] == ping["ref"] + 1
        with pytest.raises(ConnectionClosed):
            peer.hear()

    with scripted(silent, one_event) as url:
        assert tail(url) == 0
    assert "the server says nothing any more" in capsys.readouterr().err


def test_a_ping_frame_is_a_sign_of_life_and_answered() -> None:
    def script(peer: Peer) -> None:
        peer.welcome()
        peer.subscribe()
        assert peer.link.ping().wait(5)
        peer.event("a", "p1")

    with scripted(script) as url:
        assert tail(url) == 0


def test_what_is_refused_for_now_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.cli_tail._LATER_S", 0.01)

    def script(peer: Peer) -> None:
        peer.welcome()
        ref = peer.hear()["ref"]
        peer.say(type="error", ref=ref, code="rate_limited", message="slow down", retry=True)
        assert peer.subscribe()["ref"] == ref + 1
        peer.event("a", "p1")

    with scripted(script) as url:
        assert tail(url) == 0


def test_a_key_file_is_read_anew_for_every_session(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("k.one\n")

    def first(peer: Peer) -> None:
        assert peer.headers["Authorization"] == "Bearer k.one"
        peer.welcome()
        file.write_text("k.two\n")
        peer.link.close(4005)

    def second(peer: Peer) -> None:
        assert peer.headers["Authorization"] == "Bearer k.two"
        one_event(peer)

    following = Following(["a"], None, None)
    with scripted(first, second) as url:
        credential = Credential(file=file)
        assert Tail(parse_url(url), credential, following, count=1, sleep=lambda _: None).run() == 0


def test_to_interrupt_it_is_how_to_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: Following, __: bytes) -> None:
        raise KeyboardInterrupt

    def script(peer: Peer) -> None:
        peer.welcome()
        with pytest.raises(ConnectionClosed):
            peer.hear()

    monkeypatch.setattr(Following, "receive", interrupt)
    with scripted(script) as url:
        assert main(["tail", "--url", url, "a", "--key", "k.s"]) == 0
