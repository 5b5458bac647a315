import io
import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest

from server.cli import main

Capture = pytest.CaptureFixture[str]


class Seen(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


class Backend:
    """A server whose answers are planned: status and body, None to hang up without one.

    Without a plan every event is taken.
    """

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.plan: list[tuple[int, bytes] | None] = []
        self.connections = 0
        self.hang_up_after = False

    def answer(self, seen: Seen) -> tuple[int, bytes] | None:
        self.seen.append(seen)
        if self.plan:
            return self.plan.pop(0)
        if seen.headers["Content-Type"] == "application/x-ndjson":
            return 200, b"".join(self.taken(event) + b"\n" for event in seen.lines)
        return 200, self.taken(seen.json)

    def taken(self, event: dict[str, Any], **more: Any) -> bytes:
        found = {
            "channel": event["channel"],
            "position": "p1",
            "id": event["id"],
            "duplicate": False,
        }
        return json.dumps(found | more).encode()


@contextmanager
def serving(backend: Backend) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            backend.connections += 1

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = backend.answer(Seen(self.path, dict(self.headers), body))
            self.close_connection = backend.hang_up_after or answer is None
            if answer is not None:
                self.send_response(answer[0])
                self.send_header("Content-Length", str(len(answer[1])))
                if backend.hang_up_after:
                    self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(answer[1])

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def url(backend: Backend) -> Iterator[str]:
    with serving(backend) as address:
        yield address


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets standard input."""

    def feed(text: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))

    return feed


def publish(url: str, *argv: str) -> int:
    return main(["publish", "--url", url, "--key", "k.s", *argv])


# ---- one event


def test_an_event_is_published_as_it_was_written(
    backend: Backend, url: str, capsys: Capture
) -> None:
    argv = ["a.b", '{"x": 1.0e2, "y": [null]}', "--name", "n", "--id", "i1"]
    assert publish(f"{url}/under", *argv, "--tag", "k=v=w", "--tag", "l=") == 0
    (seen,) = backend.seen
    assert seen.path == "/under/v1/events"
    assert seen.headers["Host"] == url.removeprefix("http://")
    assert seen.headers["Authorization"] == "Bearer k.s"
    assert seen.headers["Content-Type"] == "application/json"
    assert b'"data":{"x": 1.0e2, "y": [null]}' in seen.body
    expected = {"channel": "a.b", "name": "n", "id": "i1", "tags": {"k": "v=w", "l": ""}}
    assert seen.json == expected | {"data": {"x": 100.0, "y": [None]}}
    assert capsys.readouterr().out == "a.b: position p1, id i1\n"


def test_a_duplicate_is_told(backend: Backend, url: str, capsys: Capture) -> None:
    backend.plan = [(200, backend.taken({"channel": "a", "id": "i"}, duplicate=True))]
    assert publish(url, "a", "1") == 0
    assert capsys.readouterr().out.endswith("duplicate: it was published before\n")


@pytest.mark.parametrize(
    ("duplicate", "note"), [(False, ""), (True, ", duplicate: it was scheduled before")]
)
def test_an_event_is_scheduled(
    backend: Backend, url: str, capsys: Capture, duplicate: bool, note: str
) -> None:
    answer = {"channel": "a", "id": "i", "deliver_at": 1_789_000_000_005, "scheduled": True}
    told = answer | ({"duplicate": True} if duplicate else {})
    backend.plan = [(202, json.dumps(told).encode())] * 2
    argv = ["a", "1", "--id", "i", "--deliver-at", "2026-09-10T00:26:40.005Z"]
    assert publish(url, *argv) == 0
    assert backend.seen[0].json["deliver_at"] == 1_789_000_000_005
    shown = capsys.readouterr().out
    assert shown == f"a: scheduled for 2026-09-10T00:26:40.005Z, id i{note}\n"
    assert publish(url, *argv, "--json") == 0
    assert json.loads(capsys.readouterr().out) == answer | {"duplicate": duplicate}


def test_a_time_that_is_none_is_told_before_anything_is_sent(
    backend: Backend, url: str, capsys: Capture
) -> None:
    assert publish(url, "a", "1", "--deliver-at", "soon") == 1
    assert "--deliver-at soon: write" in capsys.readouterr().err
    assert backend.seen == []


def test_lines_are_scheduled_for_one_time(backend: Backend, url: str, feed: Any) -> None:
    feed(b"1\n2\n")
    assert publish(url, "a", "--ndjson", "--deliver-at", "5000") == 0
    assert [event["deliver_at"] for seen in backend.seen for event in seen.lines] == [5000, 5000]


def test_json_for_programs(backend: Backend, url: str, capsys: Capture) -> None:
    assert publish(url, "a", "null", "--id", "i", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {"channel": "a", "position": "p1", "id": "i", "duplicate": False}


def test_data_may_stand_behind_an_option_and_be_negative(backend: Backend, url: str) -> None:
    assert publish(url, "a", "--name", "n", "-5") == 0
    assert backend.seen[0].json["data"] == -5


def test_data_comes_from_standard_input(backend: Backend, url: str, feed: Any) -> None:
    feed(b'{\r\n "x": "\xc3\xa9"\n}\n')
    assert publish(url, "a", "-") == 0
    assert backend.seen[0].json["data"] == {"x": "\u00e9"}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("hello", """DATA is not valid JSON: invalid character (byte 0) (text needs quotes"""),
        ("{x: 1}", """(put it in single quotes, such as '{"x": 1}')"""),
        ("", "DATA is empty"),
        ("1e999", "DATA has a number that is out of range"),
        ("\udcff", "DATA is not valid UTF-8"),
        ("[" * 100_000, "DATA is nested too deeply"),
        ("NaN", "DATA is not valid JSON"),
    ],
)
def test_data_that_is_not_json_is_told_before_anything_is_sent(
    data: str, text: str, capsys: Capture
) -> None:
    assert publish("http://nobody.invalid", "a", data) == 1
    assert text in capsys.readouterr().err


def test_too_much_data_is_told(feed: Any, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("server.cli_publish._MOST_DATA_BYTES", 9)
    feed(b'"12345678"')
    assert publish("http://nobody.invalid", "a", "-") == 1
    assert "DATA is longer than 9 bytes" in capsys.readouterr().err


@pytest.mark.parametrize("tag", ["k", "=v"])
def test_a_tag_has_a_key_and_a_value(tag: str, capsys: Capture) -> None:
    assert publish("http://nobody.invalid", "a", "1", "--tag", tag) == 1
    assert "write KEY=VALUE" in capsys.readouterr().err


def test_a_channel_that_is_not_utf_8_is_told(url: str, capsys: Capture) -> None:
    assert publish(url, "\udcff", "1") == 1
    assert "not valid UTF-8" in capsys.readouterr().err


def test_a_refusal_is_told_with_its_code(backend: Backend, url: str, capsys: Capture) -> None:
    backend.plan = [(403, b'{"code":"forbidden","detail":"publish on a is not granted"}')]
    assert publish(url, "a", "1") == 1
    text = "galecast: refused: forbidden: publish on a is not granted\n"
    assert capsys.readouterr() == ("", text)


def test_who_shows_no_key_is_told_how(backend: Backend, url: str, capsys: Capture) -> None:
    backend.plan = [(401, b'{"code":"unauthorized","detail":"a key or a token is needed"}')]
    assert main(["publish", "--url", url, "a", "1"]) == 1
    assert "Authorization" not in backend.seen[0].headers
    assert capsys.readouterr().err.endswith("by --key-file\n")


def test_another_server_is_told(backend: Backend, url: str, capsys: Capture) -> None:
    for body in (b"<html>hello</html>", b"{}", b"\xff"):
        backend.plan = [(200, body)]
        assert publish(url, "a", "1") == 1
        assert "not that of an event server" in capsys.readouterr().err


def test_a_lost_answer_says_how_to_try_again(backend: Backend, url: str, capsys: Capture) -> None:
    backend.plan = [None]
    assert publish(url, "a", "1") == 1
    err = capsys.readouterr().err
    assert f"--id {backend.seen[0].json['id']}" in err
    assert "the connection was lost" in err


def test_a_server_that_does_not_answer_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("server.cli_target.CONNECT_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert publish(f"http://127.0.0.1:{silent.getsockname()[1]}", "a", "1", "--id", "i7") == 1
    err = capsys.readouterr().err
    assert "the server did not answer within" in err
    assert "--id i7" in err


def test_a_server_that_is_away_is_told(capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert main(["publish", "--dev", "--port", str(port), "a", "1"]) == 1
    text = f"galecast: cannot reach http://127.0.0.1:{port}: Connection refused\n"
    assert capsys.readouterr().err == text


def test_development_mode_brings_address_and_key(backend: Backend, url: str) -> None:
    port = url.rpartition(":")[2]
    assert main(["publish", "--dev", "--port", port, "a", "1"]) == 0
    assert backend.seen[0].headers["Authorization"] == "Bearer dev.galecast"


# ---- lines


def test_lines_are_data_of_one_channel(
    backend: Backend, url: str, feed: Any, capsys: Capture
) -> None:
    feed(b'1\n\n{"x": 2}\r\n"last"')
    assert publish(url, "a", "--ndjson", "--name", "n", "--tag", "k=v") == 0
    assert {seen.headers["Content-Type"] for seen in backend.seen} == {"application/x-ndjson"}
    events = [event for seen in backend.seen for event in seen.lines]
    assert [event["data"] for event in events] == [1, {"x": 2}, "last"]
    assert all((event["name"], event["tags"]) == ("n", {"k": "v"}) for event in events)
    ids = [event["id"] for event in events]
    assert len(set(ids)) == 3
    shown = capsys.readouterr().out.splitlines()
    assert shown == [f"a: position p1, id {each}" for each in ids]


def test_lines_are_whole_events_without_a_channel(backend: Backend, url: str, feed: Any) -> None:
    feed(b'{"channel":"a","data":1.0e2,"id":"i"}\n{"channel":"b","data":2,"name":"m"}\n')
    assert publish(url, "--ndjson", "--name", "n", "--json") == 0
    first, second = backend.seen[0].lines
    assert b'"data":1.0e2' in backend.seen[0].body
    assert first == {"channel": "a", "data": 100.0, "id": "i", "name": "n"}
    assert (second["channel"], second["name"]) == ("b", "m")


def test_a_bad_line_does_not_stop_the_others(
    backend: Backend, url: str, feed: Any, capsys: Capture
) -> None:
    feed(b'{"channel":"a","data":1}\nnonsense\n[]\n{"data":1}\n\xff\n{"channel":"b","data":2}\n')
    assert publish(url, "--ndjson") == 1
    assert [event["channel"] for event in backend.seen[0].lines] == ["a", "b"]
    err = capsys.readouterr().err.splitlines()
    assert [line.split(" is ")[0] for line in err] == [f"galecast: line {n}" for n in (2, 3, 4, 5)]
    assert 'line 3 is no event: {"channel": ..., "data": ...}' in err[1]


def test_nothing_is_sent_when_no_line_is_good(backend: Backend, url: str, feed: Any) -> None:
    feed(b"nonsense\n")
    assert publish(url, "a", "--ndjson") == 1
    feed(b"")
    assert publish(url, "a", "--ndjson") == 0
    assert backend.seen == []


def test_a_refused_line_is_told_by_its_number(
    backend: Backend, url: str, feed: Any, capsys: Capture
) -> None:
    refused = b'{"error":{"code":"too_large","message":"over 9 bytes","retry":false}}'
    taken = backend.taken({"channel": "a", "id": "i"})
    backend.plan = [(200, b"\n".join((taken, refused, taken)))]
    feed(b"1\n2\n3\n")
    assert publish(url, "a", "--ndjson") == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert err == "galecast: line 2: refused: too_large: over 9 bytes\n"


def test_a_refused_request_names_its_lines(
    backend: Backend, url: str, feed: Any, capsys: Capture
) -> None:
    for lines, where in ((b"1\n2\n", "lines 1 to 2"), (b"\n1\n", "line 2")):
        backend.plan = [(401, b'{"code":"unauthorized","detail":"no"}')]
        feed(lines)
        assert publish(url, "a", "--ndjson") == 1
        assert capsys.readouterr().err == f"galecast: {where}: refused: unauthorized: no\n"


def test_lines_without_an_answer_are_told(
    backend: Backend, url: str, feed: Any, capsys: Capture
) -> None:
    backend.plan = [(200, backend.taken({"channel": "a", "id": "i"}))]
    feed(b"1\n2\n")
    assert publish(url, "a", "--ndjson") == 1
    assert "lines 1 to 2: only 1 of 2 were answered" in capsys.readouterr().err


def test_many_lines_go_out_in_pieces_over_one_connection(
    backend: Backend, url: str, feed: Any
) -> None:
    feed(b"".join(b"%d\n" % number for number in range(1200)))
    assert publish(url, "a", "--ndjson") == 0
    assert [len(seen.lines) for seen in backend.seen] == [500, 500, 200]
    assert [event["data"] for seen in backend.seen for event in seen.lines] == [*range(1200)]
    assert backend.connections == 1


def test_an_idle_connection_that_was_closed_is_replaced(
    backend: Backend, url: str, feed: Any
) -> None:
    """Every event has an id, so what goes out a second time is published once."""
    taken = [(200, backend.taken({"channel": "a", "id": "i"})) for _ in range(2)]
    backend.plan = [taken[0], None, taken[1]]
    feed(b"1\n" + b"\n" * 70_000 + b"2\n")
    assert publish(url, "a", "--ndjson") == 0
    assert [event["data"] for seen in backend.seen for event in seen.lines] == [1, 2, 2]
    assert backend.seen[1].body == backend.seen[2].body
    assert backend.connections == 2


def test_a_server_that_closes_each_connection_is_fine(
    backend: Backend, url: str, feed: Any
) -> None:
    backend.hang_up_after = True
    feed(b"".join(b"%d\n" % number for number in range(600)))
    assert publish(url, "a", "--ndjson") == 0
    assert len(backend.seen) == backend.connections == 2


def test_a_server_that_stays_away_ends_the_lines(
    backend: Backend, url: str, feed: Any, capsys: Capture
) -> None:
    backend.plan = [None]
    feed(b"1\n2\n")
    assert publish(url, "a", "--ndjson") == 1
    assert "lines 1 to 2: the connection was lost" in capsys.readouterr().err


def test_a_line_without_end_is_refused(
    url: str, feed: Any, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("server.cli_publish._MOST_DATA_BYTES", 100)
    feed(b"1\n" + b"2" * 100_000)
    assert publish(url, "a", "--ndjson") == 1
    assert "line 2 is longer than 100 bytes" in capsys.readouterr().err


def test_a_line_is_published_as_soon_as_it_is_whole(
    backend: Backend, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trickle(io.RawIOBase):
        def __init__(self) -> None:
            self.left = [b"1\n2", b"3\n", b""]

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            piece = self.left.pop(0)
            if piece == b"3\n":
                assert [event["data"] for event in backend.seen[0].lines] == [1]
            buffer[: len(piece)] = piece
            return len(piece)

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Trickle())))
    assert publish(url, "a", "--ndjson") == 0
    assert [event["data"] for seen in backend.seen for event in seen.lines] == [1, 23]
