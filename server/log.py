"""Who is connected here? This file: what is written down about it, and what never is."""

import json
import logging
import re
import time
from collections.abc import Mapping
from math import isfinite
from typing import Any, Final, TextIO

MASK: Final = "***"

# Code that logs a secret is wrong; this is the last line of defence. Each pattern keeps what its
# first group matches and masks the rest, and takes linear time on any text. It is tried only on
# texts that have one of its markers: most have none, and are done in a tenth of the time.
_NAMES: Final = ("ticket", "token", "secret", "password", "authorization")
_NAME: Final = rf"\w*(?:{'|'.join(_NAMES)})"
_SECRETS: Final = tuple(
    (markers, re.compile(pattern, re.IGNORECASE))
    for markers, pattern in (
        # Credentials in a header, whatever their form.
        (("bearer", "basic"), r"(\b(?:(?:bearer|basic)(?:\s|%20|\+)+)+)[^\s\"',;]+"),
        # A JWT: its header is base64url of `{"`, `{ "`, or `{` and a line's end. It begins a
        # word, or follows an escape.
        (
            ("ey", "ew"),
            r"((?<![\w-])|(?<=\\[nrt])|(?<=%[0-9a-f]{2}))"
            r"(?-i:ey[A-Z]|ew[0ko])[\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)?",
        ),
        # The secret of an API key: 256 bits behind a dot.
        ((".",), r"(\.)[\w-]{40,}"),
        # In a URL, a form or a repr.
        (_NAMES, rf"(\b{_NAME}(?:=|%3d)b?\\*[\"']?)[^\s&\"',;)}}\]\\]+"),
        # In JSON or a dict's repr, with the quotes escaped or not.
        (_NAMES, rf"(\b{_NAME}\\*[\"']\s*:\s*b?\\*[\"'])[^\"'\\]+"),
        # In a URL's authority: redis://user:password@host.
        (("://",), r"(://[^\s/:@]*:)[^\s/@]+(?=@)"),
    )
)
_SECRET_NAMES: Final = re.compile(_NAME, re.IGNORECASE)

# What every record has; the rest of a record's attributes came by `extra`.
_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}
_OURS: Final = frozenset({"time", "level", "logger", "exception", "stack"})

_COLOURS: Final = {"warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31;1m"}
_FAINT, _PLAIN = "\x1b[2m", "\x1b[0m"


def configure(
    level: str, format: str, stream: TextIO, *, colour: bool = False, node: str = ""
) -> None:
    """Send all records at `level` (debug, info, warning, error) and above to `stream`.

    `format` is `json` (one object per line), `pretty`, or `auto`: pretty if the stream is a
    terminal. `colour` applies to pretty text on a terminal only. `node` is added to every record,
    where several nodes write to one stream. May be called again: it replaces what it set up before.
    Raises ValueError for an unknown level or format.
    """
    if format not in ("auto", "json", "pretty"):
        raise ValueError(f"no log format is called {format!r}")
    terminal = stream.isatty()
    pretty = format == "pretty" or (format == "auto" and terminal)
    handler = _Handler(stream)
    handler.setFormatter(PrettyFormatter(colour=colour and terminal) if pretty else JsonFormatter())
    if node:
        handler.addFilter(_Names(node))
    root = logging.getLogger()
    root.setLevel(level.upper())
    for other in root.handlers[:]:
        if isinstance(other, _Handler):
            root.removeHandler(other)
            other.close()
    root.addHandler(handler)
    logging.captureWarnings(True)


def redact(text: str) -> str:
    """Mask what looks like a token, a key or a password."""
    lowered = text.lower()
    for markers, pattern in _SECRETS:
        for marker in markers:
            if marker in lowered:
                text = pattern.sub(rf"\g<1>{MASK}", text)
                break
    return text


def escape(text: str) -> str:
    """Escape what could forge a line or steer a terminal (CWE-117)."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


class _Handler(logging.StreamHandler[TextIO]):
    """Writes records; one that cannot be written is told of without what it holds."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Replace the standard library's report, which prints a record's raw arguments."""
        try:
            self.stream.write(f"record not written: {record.name}:{record.lineno}\n")
        except (OSError, ValueError):
            # The stream is gone: there is nowhere left to tell.
            return


class _Names(logging.Filter):
    """Adds the name of the node to every record that has none."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def filter(self, record: logging.LogRecord) -> bool:
        """Let it pass."""
        record.__dict__.setdefault("node", self._node)
        return True


class _Formatter(logging.Formatter):
    """What both formats have in common: masked parts of a record."""

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        return {
            f"{name}_" if name in _OURS else name: _masked(name, value)
            for name, value in record.__dict__.items()
            if name not in _STANDARD
        }

    def _trace(self, record: logging.LogRecord) -> str | None:
        """Return the exception and the stack, as text."""
        parts = []
        if record.exc_info and record.exc_info[0] is not None:
            # Not `record.exc_text`: another handler's formatter would find what this one masked,
            # or this one what that one did not.
            parts.append(self.formatException(record.exc_info))
        if record.stack_info:
            parts.append(record.stack_info)
        return redact("\n".join(parts)) if parts else None


def _masked(name: str, value: Any) -> Any:
    """Mask secrets in a value of any shape; what JSON does not know becomes text."""
    if _SECRET_NAMES.fullmatch(name) and value is not None:
        return MASK
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and isfinite(value):
        return value
    if isinstance(value, Mapping):
        return {redact(str(key)): _masked(str(key), each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked("", each) for each in value]
    return redact(str(value))


def _time(record: logging.LogRecord) -> str:
    """Return RFC 3339, UTC, with milliseconds."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{stamp}.{int(record.msecs):03d}Z"


class JsonFormatter(_Formatter):
    """One JSON object per line: time, level, logger, message, fields, exception. ASCII only."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        found: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
            **self._fields(record),
        }
        if (trace := self._trace(record)) is not None:
            found["exception"] = trace
        # ASCII, so that U+2028, bidirectional marks and lone surrogates are escaped too.
        return json.dumps(found, ensure_ascii=True, separators=(",", ":"))


class PrettyFormatter(_Formatter):
    """A line for people, then the exception, indented so that its text cannot pass for a record."""

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        level = record.levelname.lower()
        head = f"{_time(record)} {level:<8}"
        message = escape(redact(record.getMessage()))
        fields = "".join(f" {escape(k)}={_plain(v)}" for k, v in self._fields(record).items())
        name = escape(record.name)
        if self._colour:
            head = f"{_COLOURS.get(level, _FAINT)}{head}{_PLAIN}"
            fields = f"{_FAINT}{fields}{_PLAIN}" if fields else ""
        text = f"{head} {name}: {message}{fields}"
        if (trace := self._trace(record)) is not None:
            text += "".join(f"\n    | {escape(line)}" for line in trace.split("\n"))
        return text


def _plain(value: Any) -> str:
    """Return a field's value; quoted where it would be mistaken for something else."""
    if isinstance(value, str) and value and not re.search(r'[\s="\\]', value):
        return escape(value)
    return escape(json.dumps(value, ensure_ascii=False))
