"""What may an operator set? This file answers: which names are allowed, and what a pattern matches.

Names and patterns stand here because settings, grants and channel rules are written in them; every
other room uses the same functions, so that there is one pattern language and one idea of a name.
"""

import re
from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeVar

MAX_CHANNEL_BYTES: Final = 255
MAX_EVENT_NAME_BYTES: Final = 64
MAX_EVENT_ID_BYTES: Final = 64
MAX_USER_BYTES: Final = 255

_ALPHABET: Final = "letters, digits and _ ~ @ : = -"
_SEGMENT: Final = "[A-Za-z0-9_~@:=-]++"

# `fullmatch`, since `$` also matches before a trailing newline.
_is_segment = re.compile(_SEGMENT).fullmatch
_is_channel = re.compile(rf"{_SEGMENT}(?:\.{_SEGMENT})*+").fullmatch
_is_event_name = re.compile(r"[A-Za-z0-9_~@:=.-]{1,64}").fullmatch
_is_event_id = re.compile(r"[!-~](?:[ -~]{0,62}[!-~])?").fullmatch
_find_stranger = re.compile(r"[^A-Za-z0-9_~@:=.-]").search


class NameRejected(ValueError):
    """A channel, event name, event id or user that is not allowed; the text says what is wrong."""


class PatternRejected(ValueError):
    """A text that is not a pattern; the message says what is wrong with it."""


def check_channel(name: str) -> None:
    """Return if `name` is a channel name: 1 to 255 bytes, segments joined by dots.

    Raises NameRejected. Wildcards, a leading `$` (reserved) and empty segments are refused.
    """
    if len(name) > MAX_CHANNEL_BYTES or _is_channel(name) is None:
        raise NameRejected(_what_is_wrong_with_channel(name))


def check_event_name(name: str) -> None:
    """Return if `name` is an event name: 1 to 64 characters of a channel's alphabet, dots anywhere.

    Raises NameRejected.
    """
    if _is_event_name(name) is None:
        raise NameRejected(_what_is_wrong("event name", name, MAX_EVENT_NAME_BYTES))


def check_event_id(event_id: str) -> None:
    """Return if `event_id` is 1 to 64 printable ASCII characters, with no space at either end.

    Raises NameRejected.
    """
    if _is_event_id(event_id) is not None:
        return
    if not event_id:
        raise NameRejected("the event id is empty")
    if len(event_id) > MAX_EVENT_ID_BYTES:
        raise NameRejected(f"the event id is longer than {MAX_EVENT_ID_BYTES} characters")
    if event_id != event_id.strip(" "):
        raise NameRejected("the event id begins or ends with a space")
    raise NameRejected("the event id has a character that is not printable ASCII")


def check_user(user: str) -> None:
    """Return if `user` is printable Unicode of 1 to 255 bytes in UTF-8.

    Raises NameRejected.
    """
    if not user:
        raise NameRejected("the user is empty")
    # Lone surrogates are not printable, so what is printable can be encoded.
    if not user.isprintable():
        raise NameRejected("the user has a character that is not printable")
    if len(user) > MAX_USER_BYTES or len(user.encode()) > MAX_USER_BYTES:
        raise NameRejected(f"the user is longer than {MAX_USER_BYTES} bytes")


def _what_is_wrong_with_channel(name: str) -> str:
    if name.startswith("$"):
        return "channels that begin with $ are reserved"
    # A rejected name may be as long as a body: look at its beginning only.
    segments = name[: MAX_CHANNEL_BYTES + 1].split(".")
    if "*" in segments or ">" in segments:
        return "a channel name cannot hold a wildcard (* or >)"
    return _what_is_wrong("channel name", name, MAX_CHANNEL_BYTES)


def _what_is_wrong(what: str, name: str, most: int) -> str:
    if not name:
        return f"the {what} is empty"
    if len(name) > most:
        return f"the {what} is longer than {most} bytes"
    stranger = _find_stranger(name)
    if stranger is not None:
        return f"the {what} has the character {stranger[0]!a}; allowed are {_ALPHABET} and dots"
    return f"the {what} has an empty segment"


class Pattern:
    """A channel name in which `*` stands for one segment and a final `>` for one or more.

    With `template=True` a segment may be `{sub}`, the place of a user id; until it is bound it
    stands for any one segment, like `*`. Patterns are immutable, and equal when their texts are.
    Raises PatternRejected.
    """

    __slots__ = ("_match", "_prefix", "is_literal", "is_template", "segments", "text")

    text: str
    segments: tuple[str, ...]
    is_literal: bool
    is_template: bool
    _match: Callable[[str], re.Match[str] | None] | None

    def __init__(self, text: str, *, template: bool = False) -> None:
        self.text = text
        self.segments = _parse(text, template)
        self.is_template = "{sub}" in self.segments
        self.is_literal = not (self.is_template or "*" in self.segments or ">" in self.segments)
        self._prefix = _prefix(self.segments)
        # Compiled when first needed: that takes 100 us, and most patterns of a token never are.
        self._match = None

    def _find(self, channel: str) -> re.Match[str] | None:
        if len(channel) > MAX_CHANNEL_BYTES or not channel.startswith(self._prefix):
            return None
        if self._match is None:
            self._match = re.compile(_to_regex(self.segments)).fullmatch
        return self._match(channel)

    def matches(self, channel: str) -> bool:
        """Say whether `channel` is matched; what is not a valid channel name never is."""
        if self.is_literal:
            return channel == self.text
        return self._find(channel) is not None

    def matches_for(self, channel: str, sub: str) -> bool:
        """Say whether `channel` is matched with every `{sub}` standing for the user id `sub`.

        The same as binding and then matching, without compiling a pattern for each user.
        """
        found = self._find(channel)
        return found is not None and all(group == sub for group in found.groups())

    def bind(self, sub: str) -> "Pattern | None":
        """Put the user id `sub` in place of each `{sub}`, as exactly one literal segment.

        Returns None when `sub` is not one valid segment (`*`, `>`, `a.b`, empty), so that a user
        id can never widen a grant; a pattern without `{sub}` is returned as it is.
        """
        if not self.is_template:
            return self
        if _is_segment(sub) is None:
            return None
        bound = ".".join(sub if segment == "{sub}" else segment for segment in self.segments)
        return Pattern(bound) if len(bound) <= MAX_CHANNEL_BYTES else None

    def covers(self, other: "Pattern") -> bool:
        """Say whether every channel that `other` matches is matched by this pattern too.

        `{sub}` counts as `*` on both sides; bind first where it must not.
        """
        for mine, theirs in zip(self.segments, other.segments, strict=False):
            if mine == ">":
                return True
            if theirs == ">":
                return False
            if mine not in ("*", "{sub}") and mine != theirs:
                return False
        return len(self.segments) == len(other.segments)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


def _parse(text: str, template: bool) -> tuple[str, ...]:
    if not text:
        raise PatternRejected("the pattern is empty")
    if len(text) > MAX_CHANNEL_BYTES:
        raise PatternRejected(f"the pattern is longer than {MAX_CHANNEL_BYTES} bytes")
    if text.startswith("$"):
        raise PatternRejected("channels that begin with $ are reserved")
    segments = tuple(text.split("."))
    for place, segment in enumerate(segments, 1):
        if segment == "*" or _is_segment(segment) or (template and segment == "{sub}"):
            continue
        if segment == ">":
            if place < len(segments):
                raise PatternRejected("> can only be the last segment of a pattern")
            continue
        raise PatternRejected(_what_is_wrong_with_segment(segment, template))
    return segments


def _what_is_wrong_with_segment(segment: str, template: bool) -> str:
    if not segment:
        return "the pattern has an empty segment"
    if "{sub}" in segment:
        if template:
            return f"{{sub}} must be a whole segment, not part of {segment!a}"
        return "{sub} is allowed only in the match of a channel rule"
    if "*" in segment or ">" in segment:
        return f"a wildcard must be a whole segment, not part of {segment!a}"
    wildcards = "*, > and {sub}" if template else "* and >"
    return f"the segment {segment!a} is not allowed; use {_ALPHABET}, or the whole {wildcards}"


def _prefix(segments: tuple[str, ...]) -> str:
    """Return what every channel that is matched begins with."""
    prefix = ""
    for segment in segments:
        if segment in ("*", "{sub}", ">"):
            break
        prefix += segment + "."
    else:
        return prefix[:-1]
    return prefix


def _to_regex(segments: tuple[str, ...]) -> str:
    # Wildcards take a channel's alphabet only: an invalid or reserved name matches no pattern.
    parts = {"*": _SEGMENT, "{sub}": f"({_SEGMENT})", ">": rf"{_SEGMENT}(?:\.{_SEGMENT})*+"}
    return r"\.".join(parts.get(segment) or re.escape(segment) for segment in segments)


V = TypeVar("V")


class PatternMap(Generic[V]):
    """An ordered list of patterns with a value each; the first that matches a channel decides.

    Look-ups are remembered for up to `remember` channels; then the memory starts anew, so that
    a client that tries many names costs time but never memory.
    """

    __slots__ = ("_default", "_items", "_known", "_remember")

    def __init__(
        self, items: Iterable[tuple[Pattern, V]], default: V, *, remember: int = 16_384
    ) -> None:
        self._items = tuple(items)
        self._default = default
        self._known: dict[str, V] = {}
        self._remember = remember

    def get(self, channel: str) -> V:
        """Return the value of the first pattern that matches `channel`, else the default."""
        known = self._known
        try:
            return known[channel]
        except KeyError:
            pass
        value = self._default
        for pattern, candidate in self._items:
            if pattern.matches(channel):
                value = candidate
                break
        if len(known) >= self._remember:
            known.clear()
        known[channel] = value
        return value
