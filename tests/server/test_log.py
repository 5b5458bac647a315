"""Logs: one record, one line; no secret in any of them, whatever the code above does wrong."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from server.log import MASK, JsonFormatter, PrettyFormatter, configure, escape, redact

CANARY = "cAnArYcAnArYcAnArY0123456789-_cAnArYcAnArY0"
JWT = f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIi{CANARY}.{CANARY}"
KEY = f"0a1b2c3d4e5f.{CANARY}"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def quiet_root() -> Iterator[logging.Logger]:
    """Gives the root logger back as it was."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield root
    root.setLevel(level)
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
    logging.captureWarnings(False)


def record(message: object, *args: object, **extra: object) -> logging.LogRecord:
    logger = logging.Logger("server.test")
    return logger.makeRecord(
        "server.test", logging.INFO, __file__, 1, message, args, None, extra=extra
    )


def as_json(entry: logging.LogRecord) -> dict[str, Any]:
    line = JsonFormatter().format(entry)
    assert line.isascii()
    assert line.isprintable()
    found: dict[str, Any] = json.loads(line)
    return found


def failing(text: str) -> logging.LogRecord:
    entry = record("failed")
    try:
        try:
            raise ValueError(text)
        except ValueError as error:
            raise RuntimeError("outer") from error
    except RuntimeError:
        entry.exc_info = sys.exc_info()
    return entry


# Formats


def test_a_json_line_has_time_level_logger_message_and_fields() -> None:
    entry = record("hello %s", "you", session="s1", count=3, rate=0.5, none=None, ok=True)
    entry.created, entry.msecs = 1_789_000_000.123, 123.9
    assert as_json(entry) == {
        "time": "2026-09-10T00:26:40.123Z",
        "level": "info",
        "logger": "server.test",
        "message": "hello you",
        "session": "s1",
        "count": 3,
        "rate": 0.5,
        "none": None,
        "ok": True,
    }


def test_fields_of_any_shape_are_json() -> None:
    class Thing:
        def __str__(self) -> str:
            return "a thing"

    found = as_json(
        record(
            "x",
            list=[1, (2, Thing())],
            map={1: {"a": b"b"}},
            inf=float("inf"),
            surrogate="\ud800",
        )
    )
    assert found["list"] == [1, [2, "a thing"]]
    assert found["map"] == {"1": {"a": "b'b'"}}
    assert found["inf"] == "inf"
    assert found["surrogate"] == "\ud800"


def test_a_field_cannot_take_the_place_of_a_standard_one() -> None:
    found = as_json(record("x", time="t", level="l", logger="g"))
    assert (found["level"], found["logger"]) == ("info", "server.test")
    assert (found["time_"], found["level_"], found["logger_"]) == ("t", "l", "g")


def test_an_exception_is_text_in_both_formats() -> None:
    entry = failing("inner")
    entry.stack_info = "Stack (most recent call last):\n  here"
    text = as_json(entry)["exception"]
    assert "ValueError: inner" in text
    assert "RuntimeError: outer" in text
    assert text.endswith("here")
    lines = PrettyFormatter().format(entry).split("\n")
    assert all(line.startswith("    | ") for line in lines[1:])
    assert "    | ValueError: inner" in lines


def test_exc_info_without_an_exception_is_nothing() -> None:
    entry = record("x")
    entry.exc_info = (None, None, None)
    assert "exception" not in as_json(entry)


def test_a_pretty_line_is_for_people() -> None:
    entry = record("hello", session="s1", text='a "b"', n=1, empty="")
    entry.created, entry.msecs = 1_789_000_000.123, 123.0
    assert PrettyFormatter().format(entry) == (
        "2026-09-10T00:26:40.123Z info     server.test: hello"
        ' session=s1 text="a \\"b\\"" n=1 empty=""'
    )


def test_colour_is_only_where_asked_for() -> None:
    assert "\x1b" not in PrettyFormatter().format(record("x", a=1))
    entry = record("x", a=1)
    coloured = PrettyFormatter(colour=True).format(entry)
    assert coloured.startswith("\x1b[2m")
    entry.levelname = "ERROR"
    assert PrettyFormatter(colour=True).format(entry).startswith("\x1b[31m")
    assert PrettyFormatter(colour=True).format(record("x")).endswith(": x")


# Injection

HOSTILE = "a\r\n2026-01-01 error forged\x1b[2J\x00\x9b\u2028\u202e\x85z"


def test_hostile_text_stays_on_its_line() -> None:
    for entry in (
        record(HOSTILE),
        record("%s", HOSTILE),
        record("x", field=HOSTILE),
        record("x", **{HOSTILE: 1}),
    ):
        found = as_json(entry)
        assert HOSTILE in (*found, *found.values())
        line = PrettyFormatter().format(entry)
        assert line.isprintable()
        assert "forged" in line
    for line in PrettyFormatter().format(failing(HOSTILE)).split("\n")[1:]:
        assert line.isprintable()
        assert line.startswith("    | ")
    assert escape("a\nb\x1b\u2028é") == "a\\nb\\x1b\\u2028é"


# Secrets

LEAKS = [
    JWT,
    f"token {JWT}, again",
    f"Authorization: Bearer {JWT}",
    f"authorization: bearer   {KEY}",
    "Bearer short.canary-secret",
    "Bearer Bearer short.canary-secret",
    "Authorization: Basic canary-secret==",
    f"key {KEY} is wrong",
    f"GET /v1/sse?channel=a&ticket={CANARY}&x=1",
    "GET /v1/sse?ticket=canary-secret HTTP/1.1",
    "/v1/ws?token=canary-secret#x",
    "/v1/ws?access_token=canary-secret",
    "/v1/ws?Token%3Dcanary-secret",
    '{"token":"canary-secret"}',
    "{'token': 'canary-secret'}",
    "{'Authorization': b'canary-secret'}",
    '{\\"token\\":\\"canary-secret\\"}',
    "Connect(ref=1, token='canary-secret')",
    "redis://user:canary-secret@host:6379/0",
    "redis://:canary-secret@host",
    f"line\\n{JWT}",
    f"%20{JWT}",
    f"{JWT[: JWT.rindex('.')]}.",
]


def has_canary(text: str) -> bool:
    return "canary" in text.lower() or CANARY[:8] in text


@pytest.mark.parametrize("leak", LEAKS)
def test_no_secret_is_in_any_line(leak: str) -> None:
    """The canary: whichever way a secret gets into a record, no format lets it out."""
    for entry in (
        record(leak),
        record("got %s", leak),
        record("got %r", [leak]),
        record("x", url=leak),
        record("x", nested={"a": [leak], leak: 1}),
        record("x", error=ValueError(leak)),
        failing(leak),
    ):
        for formatter in (JsonFormatter(), PrettyFormatter(), PrettyFormatter(colour=True)):
            line = formatter.format(entry)
            assert not has_canary(line), line
            assert MASK in line


@pytest.mark.parametrize("name", ["token", "ticket", "access_token", "Authorization", "password"])
def test_a_field_that_is_named_like_a_secret_is_one(name: str) -> None:
    entry = record("x", **{name: "canary"}, nested={name: ["canary"]})
    assert as_json(entry)[name] == MASK
    assert not has_canary(JsonFormatter().format(entry))
    assert as_json(record("x", **{name: None}))[name] is None


@pytest.mark.parametrize(
    "text",
    [
        "token expired",
        "listening on http://127.0.0.1:8000",
        "0123456789abcdef-7-fedcba9876543210",
        "01J9ZQ3V5X8Y7W6T4S2R1P0N0M",
        "server.subscribing.Subscribing",
        "these settings need a restart: token.jwks_url, limits.connections",
        "bearer",
        "eye.contact",
        "orders.eu.42",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "unit",
    [
        *("eyA", "eyA.", "a", "a.", "://:", "://", "token", "_token", "bearer ", "bearer +", "+"),
        *("%20", '"token":"', "password=", "\\n", "ewo-", "-"),
    ],
)
def test_masking_takes_linear_time(unit: str) -> None:
    """A hostile text of 200 KB: a quadratic pattern would meet the time limit of the run."""
    text = unit * (200_000 // len(unit))
    # With every marker in it, so that no pattern is left out.
    text = f"token= ey. ew. :// @ bearer {text} Bearer canary"
    assert not has_canary(redact(text))


# Setting up


def test_json_is_what_a_file_gets(quiet_root: logging.Logger) -> None:
    stream = io.StringIO()
    configure("info", "auto", stream)
    logger = logging.getLogger("server.test_log")
    logger.debug("unseen")
    logger.info("seen", extra={"session": "s"})
    found = json.loads(stream.getvalue())
    assert (found["message"], found["session"]) == ("seen", "s")
    assert quiet_root.level == logging.INFO


@pytest.mark.parametrize(
    ("format", "stream", "colour", "starts"),
    [
        ("auto", Terminal(), True, "\x1b["),
        ("auto", Terminal(), False, "2"),
        ("pretty", io.StringIO(), True, "2"),
        ("pretty", Terminal(), True, "\x1b["),
        ("json", Terminal(), True, "{"),
    ],
)
def test_the_format_follows_the_setting_and_the_stream(
    quiet_root: logging.Logger, format: str, stream: io.StringIO, colour: bool, starts: str
) -> None:
    configure("debug", format, stream, colour=colour)
    logging.getLogger("server.test_log").debug("x")
    assert stream.getvalue().startswith(starts)


def test_a_second_call_replaces_the_first(quiet_root: logging.Logger) -> None:
    first, second = io.StringIO(), io.StringIO()
    before = len(quiet_root.handlers)
    configure("info", "json", first)
    configure("debug", "json", second)
    assert len(quiet_root.handlers) == before + 1
    logging.getLogger("server.test_log").debug("x")
    assert first.getvalue() == ""
    assert json.loads(second.getvalue())["message"] == "x"


def test_an_unknown_format_or_level_is_refused(quiet_root: logging.Logger) -> None:
    before = quiet_root.handlers[:]
    for level, format in (("info", "xml"), ("loud", "json")):
        with pytest.raises(ValueError, match=r"xml|LOUD"):
            configure(level, format, io.StringIO())
    assert quiet_root.handlers == before


def test_a_record_that_cannot_be_written_is_told_of_without_its_arguments(
    quiet_root: logging.Logger,
) -> None:
    """The standard library prints the raw message and arguments on standard error."""
    stream = io.StringIO()
    configure("info", "json", stream)
    # Straight to the handler, since that of pytest raises.
    quiet_root.handlers[-1].handle(record("%d", "canary"))
    assert stream.getvalue().startswith("record not written: server.test:")
    assert "canary" not in stream.getvalue()


def test_a_closed_stream_disturbs_nobody(
    quiet_root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    stream.close()
    logging.getLogger("server.test_log").info("canary")
    assert capsys.readouterr() == ("", "")


def test_records_of_several_nodes_on_one_stream_say_whose_they_are(
    quiet_root: logging.Logger,
) -> None:
    stream = io.StringIO()
    configure("info", "json", stream, node="n-1")
    logging.getLogger("server.test").info("hello")
    logging.getLogger("server.test").info("hello", extra={"node": "n-2"})
    assert [json.loads(line)["node"] for line in stream.getvalue().splitlines()] == ["n-1", "n-2"]
    configure("info", "json", stream)
    logging.getLogger("server.test").info("hello")
    assert "node" not in json.loads(stream.getvalue().splitlines()[-1])
