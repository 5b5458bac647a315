"""Who is connected here, and what may they do? This file: `publish`, a client of the REST API."""

import sys
from collections.abc import Iterable, Iterator
from http.client import HTTPConnection, HTTPException
from io import BufferedReader
from typing import Any, Final, cast

import msgspec
from msgspec import Raw

from pubsub.ulid import UlidFactory
from server.cli_output import CommandFailed, put, put_json, tell
from server.cli_target import CONNECT_TIMEOUT_S, Credential, Problem, Target, problem_of
from server.cli_times import show_time
from server.json_text import explain

Event = dict[str, Any]

_MOST_ANSWER_BYTES: Final = 1 << 24
_MOST_DATA_BYTES: Final = 1 << 24
# Lines that go out with one request, and bytes read at once.
_LINES: Final = 500
_CHUNK_BYTES: Final = 65_536


class _Answer(msgspec.Struct):
    """What the server says of one event: where it stands, when it will, or why it was refused."""

    channel: str = ""
    position: str = ""
    id: str = ""
    duplicate: bool = False
    scheduled: bool = False
    deliver_at: int = 0
    error: Problem | None = None


class _Refused(CommandFailed):
    """The server refused the request as a whole."""


class Publisher:
    """One connection to a server, made anew when it is lost; every event carries an id.

    So an event that is sent twice is published once.
    """

    def __init__(self, target: Target, credential: Credential) -> None:
        self._target = target
        self._credential = credential
        self._connection: HTTPConnection | None = None

    def post(self, body: bytes, content_type: str) -> bytes:
        """Send events and return the body of the answer.

        Raises CommandFailed, and OSError or HTTPException when the answer is lost.
        """
        kept = self._connection is not None
        try:
            return self._exchange(body, content_type)
        except (OSError, HTTPException):
            self.close()
            # The server may have closed a connection that was idle.
            if not kept:
                raise
        return self._exchange(body, content_type)

    def _exchange(self, body: bytes, content_type: str) -> bytes:
        target = self._target
        connection = self._connection
        if connection is None:
            connection = HTTPConnection(target.host, target.port)
            connection.auto_open = 0
            connection.sock = target.connect()
            self._connection = connection
        headers = {
            "Host": target.netloc,
            "Content-Type": content_type,
            "Content-Length": str(len(body)),
            **self._credential.headers(),
        }
        connection.putrequest("POST", f"{target.prefix}/v1/events", skip_host=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        answer = response.read(_MOST_ANSWER_BYTES)
        if response.will_close or not response.isclosed():
            self.close()
        if not 200 <= response.status < 300:
            problem = problem_of(response.status, answer)
            hint = ""
            if response.status == 401 and "Authorization" not in headers:
                hint = "; name a file with an API key by --key-file"
            raise _Refused(f"refused: {problem}{hint}")
        return answer

    def close(self) -> None:
        """Let go of the connection; may be called twice."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def read_data(text: str) -> Raw:
    """Return DATA as JSON, read from standard input for `-`; raises CommandFailed."""
    if text == "-":
        data = sys.stdin.buffer.read(_MOST_DATA_BYTES + 1)
        if len(data) > _MOST_DATA_BYTES:
            raise CommandFailed(f"DATA is longer than {_MOST_DATA_BYTES} bytes")
    else:
        # Undecodable bytes of an argument arrive as lone surrogates.
        data = text.encode(errors="surrogateescape")
    try:
        return _checked(data)
    except ValueError as error:
        hint = _hint(text) if text != "-" and "JSON" in str(error) else ""
        raise CommandFailed(f"DATA {error}{hint}") from None


def _hint(text: str) -> str:
    if text.isprintable() and not set(text) & set("'\"\\{}[]:"):
        return f""" (text needs quotes of its own: '"{text}"')"""
    return """ (put it in single quotes, such as '{"x": 1}')"""


def _checked(data: bytes) -> Raw:
    """Return `data` if it is JSON; raises ValueError with words that follow its name."""
    try:
        data.decode()
        msgspec.json.decode(data)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(explain(data, error)) from None
    return Raw(data)


def parse_tags(texts: Iterable[str]) -> dict[str, str]:
    """Return tags from texts like `k=v`; raises CommandFailed."""
    tags = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise CommandFailed(f"--tag {text}: write KEY=VALUE")
        tags[key] = value
    return tags


def publish(publisher: Publisher, event: Event, *, as_json: bool) -> int:
    """Publish one event and write where it stands; raises CommandFailed."""
    event.setdefault("id", UlidFactory()())
    try:
        body = publisher.post(_encoded(event), "application/json")
        answer = _decoded(body)
    except (OSError, HTTPException) as error:
        raise CommandFailed(
            f"{_lost(error)}; the event may be published or not: "
            f"try again with --id {event['id']}, which publishes it once"
        ) from None
    _show(answer, as_json=as_json)
    return 0


def publish_lines(publisher: Publisher, common: Event, *, as_json: bool) -> int:
    """Publish every line of standard input as it comes, and write where each event stands.

    With a channel in `common` a line is the data of an event, without one a whole event. Lines
    that come while a request is on its way go out together with the next. Returns 1 if any line
    was refused; raises CommandFailed when no more can be sent.
    """
    new_id = UlidFactory()
    failed = False
    for lines in _batches():
        events: dict[int, Event] = {}
        for number, line in lines:
            try:
                events[number] = _event_of(line, common)
            except ValueError as error:
                tell(f"line {number} {error}")
                failed = True
            else:
                events[number].setdefault("id", new_id())
        if events:
            failed |= _publish_batch(publisher, events, as_json=as_json)
    return 1 if failed else 0


def _publish_batch(publisher: Publisher, events: dict[int, Event], *, as_json: bool) -> bool:
    """Publish a batch, events by line; say whether any was refused."""
    body = b"\n".join(map(_encoded, events.values())) + b"\n"
    first, last = min(events), max(events)
    where = f"lines {first} to {last}" if last > first else f"line {first}"
    try:
        reply = publisher.post(body, "application/x-ndjson")
    except (OSError, HTTPException) as error:
        raise CommandFailed(f"{where}: {_lost(error)}; they may be published or not") from None
    except _Refused as error:
        raise CommandFailed(f"{where}: {error}") from None
    answers = [_decoded(line) for line in reply.splitlines() if line.strip()]
    failed = False
    for number, answer in zip(events, answers, strict=False):
        if answer.error is not None:
            tell(f"line {number}: refused: {answer.error}")
            failed = True
        else:
            _show(answer, as_json=as_json)
    if len(answers) < len(events):
        raise CommandFailed(f"{where}: only {len(answers)} of {len(events)} were answered")
    return failed


def _batches() -> Iterator[list[tuple[int, bytes]]]:
    """Yield lines of standard input that are not blank, with their numbers, as they come."""
    stdin = cast(BufferedReader, sys.stdin.buffer)
    rest, number = b"", 0
    while True:
        chunk = stdin.read1(_CHUNK_BYTES)
        whole, newline, tail = (rest + chunk).rpartition(b"\n")
        rest = tail
        if not chunk:
            whole, newline, rest = rest, b"\n", b""
        found = []
        for line in whole.split(b"\n") if newline else ():
            number += 1
            if line.strip():
                found.append((number, line))
        for start in range(0, len(found), _LINES):
            yield found[start : start + _LINES]
        if not chunk:
            return
        if len(rest) > _MOST_DATA_BYTES:
            raise CommandFailed(f"line {number + 1} is longer than {_MOST_DATA_BYTES} bytes")


def _event_of(line: bytes, common: Event) -> Event:
    """Return the event that a line stands for; raises ValueError as `_checked` does."""
    data = _checked(line)
    if "channel" in common:
        return {**common, "data": data}
    given = msgspec.json.decode(line)
    if not isinstance(given, dict) or "channel" not in given:
        raise ValueError('is no event: {"channel": ..., "data": ...}')
    return {**common, **msgspec.json.decode(line, type=dict[str, Raw])}


def _encoded(event: Event) -> bytes:
    try:
        # Lines end with a line feed, which JSON allows between tokens only.
        return msgspec.json.encode(event).replace(b"\n", b" ").replace(b"\r", b" ")
    except UnicodeEncodeError:
        raise CommandFailed("an argument is not valid UTF-8") from None


def _decoded(line: bytes) -> _Answer:
    try:
        answer = msgspec.json.decode(line, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        answer = _Answer()
    if not answer.position and not answer.scheduled and answer.error is None:
        raise CommandFailed("this server's answer is not that of an event server")
    return answer


def _lost(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"the server did not answer within {CONNECT_TIMEOUT_S:g} s"
    return f"the connection was lost ({str(error) or type(error).__name__})"


def _show(answer: _Answer, *, as_json: bool) -> None:
    if answer.scheduled:
        _show_scheduled(answer, as_json=as_json)
    elif as_json:
        put_json(
            {
                "channel": answer.channel,
                "position": answer.position,
                "id": answer.id,
                "duplicate": answer.duplicate,
            }
        )
    else:
        note = ", duplicate: it was published before" if answer.duplicate else ""
        put(f"{answer.channel}: position {answer.position}, id {answer.id}{note}")


def _show_scheduled(answer: _Answer, *, as_json: bool) -> None:
    if as_json:
        put_json(
            {
                "channel": answer.channel,
                "id": answer.id,
                "deliver_at": answer.deliver_at,
                "scheduled": True,
                "duplicate": answer.duplicate,
            }
        )
    else:
        note = ", duplicate: it was scheduled before" if answer.duplicate else ""
        put(f"{answer.channel}: scheduled for {show_time(answer.deliver_at)}, id {answer.id}{note}")
