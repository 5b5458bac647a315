"""Who may do what? This file answers: who someone is, and which channels that opens to them.

Deny is the default: what neither a grant nor a channel rule allows is refused.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from config.checks import Scope
from config.patterns import Pattern, PatternRejected
from config.rules import ACTIONS, Action, ChannelRules
from server.errors import Forbidden

MAX_PATTERNS: Final = 256

Source: TypeAlias = tuple[tuple[str, tuple[str, ...]], ...]
"""Grants as they are written, in normal form: patterns in order, each with its actions in order."""


class GrantsRejected(ValueError):
    """Grants with an unknown action or a text that is no pattern; the message names it."""


class Grants:
    """What someone was granted, compiled; immutable, and shared by all who have the same.

    A word is an action or a scope. `source` is what `grants` of a token would say.
    """

    __slots__ = ("_words", "source")

    source: Source

    def __init__(self, words: Mapping[str, Iterable[Pattern]], source: Source = ()) -> None:
        compiled: dict[str, tuple[frozenset[str], tuple[Pattern, ...]]] = {}
        for word, patterns in words.items():
            all_of_them = tuple(patterns)
            if all_of_them:
                compiled[word] = (
                    frozenset(each.text for each in all_of_them if each.is_literal),
                    tuple(each for each in all_of_them if not each.is_literal),
                )
        self._words = compiled
        self.source = source

    def has(self, word: str) -> bool:
        """Say whether `word` is granted on any channel."""
        return word in self._words

    def cover(self, word: str, channel: str) -> bool:
        """Say whether `word` is granted on `channel`; never on what is not a channel name."""
        found = self._words.get(word)
        if found is None:
            return False
        names, patterns = found
        if channel in names:
            return True
        for pattern in patterns:  # a plain loop: a generator costs more than the match
            if pattern.matches(channel):
                return True
        return False

    def covers(self, word: str, pattern: Pattern) -> bool:
        """Say whether `word` is granted on every channel that `pattern` matches, by one grant."""
        names, patterns = self._words.get(word, (frozenset(), ()))
        return pattern.text in names or any(each.covers(pattern) for each in patterns)


NO_GRANTS: Final = Grants({})


def service_grants(scopes: Mapping[Scope, tuple[str, ...] | bool]) -> Grants:
    """Return what the scopes of an API key grant.

    `history` opens subscribing too, since both read a channel's events.
    """
    words: dict[str, tuple[Pattern, ...]] = {}
    for scope, value in scopes.items():
        if isinstance(value, bool):
            words[scope] = (Pattern(">"),) if value else ()
        else:
            words[scope] = tuple(Pattern(text) for text in value)
    if "history" in words:
        words["subscribe"] = words["history"]
    return Grants(words)


class GrantsCache:
    """Compiles grants once: equal grants give the same object while it is remembered.

    Remembers up to `max_patterns` patterns over all grants and lets go of those that were not
    asked for the longest. Objects in use live on; they are only no longer shared with newcomers.
    """

    __slots__ = ("_known", "_max_patterns", "_patterns", "_weight")

    def __init__(self, max_patterns: int = 16_384) -> None:
        self._max_patterns = max_patterns
        self._known: dict[Source, Grants] = {}
        self._patterns: dict[str, Pattern] = {}
        self._weight = 0

    def grants(self, mapping: Mapping[str, Iterable[str]]) -> Grants:
        """Return the grants of `mapping`, pattern to actions.

        Raises GrantsRejected on an unknown action, a text that is no pattern, or too many.
        """
        if len(mapping) > MAX_PATTERNS:
            raise GrantsRejected(f"more than {MAX_PATTERNS} patterns")
        source = tuple(sorted((text, tuple(sorted(set(acts)))) for text, acts in mapping.items()))
        if not source:
            return NO_GRANTS
        known = self._known.pop(source, None)
        if known is None:
            known = self._compile(source)
            self._weight += len(source)
        self._known[source] = known
        while self._weight > self._max_patterns:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._weight -= len(oldest)
        return known

    def _compile(self, source: Source) -> Grants:
        words: dict[str, list[Pattern]] = {}
        for text, actions in source:
            pattern = self._pattern(text)
            for action in actions:
                if action not in ACTIONS:
                    raise GrantsRejected(f"unknown action {action[:32]!a}")
                words.setdefault(action, []).append(pattern)
        return Grants(words, source)

    def _pattern(self, text: str) -> Pattern:
        known = self._patterns.get(text)
        if known is None:
            try:
                known = Pattern(text)
            except PatternRejected as error:
                raise GrantsRejected(f"pattern {text[:64]!a}: {str(error)[:120]}") from None
            if len(self._patterns) >= self._max_patterns:
                self._patterns.clear()
            self._patterns[text] = known
        return known


Kind = Literal["user", "service", "anonymous"]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a session or a request acts for, and what it is granted.

    `user` is set for users only, `name` and `key` (the key's id) for services only. `issued_at`
    and `expires_at` are seconds since 1970, of the token; None where there is none. `rules` grant
    to users on top of their token, and follow a reload.
    """

    kind: Kind
    grants: Grants = field(default=NO_GRANTS, repr=False)
    user: str | None = None
    name: str | None = None
    key: str | None = None
    issued_at: float | None = None
    expires_at: float | None = None
    rules: ChannelRules | None = field(default=None, repr=False)

    def allows(self, action: Action, channel: str) -> bool:
        """Say whether `action` is granted on `channel`."""
        if self.grants.cover(action, channel):
            return True
        return self.rules is not None and self.rules.granted(action, channel, self.user)

    def require(self, action: Action, channel: str) -> None:
        """Return if `action` is granted on `channel`; raises Forbidden."""
        if not self.allows(action, channel):
            raise Forbidden(f"{action} is not granted on channel {channel[:255]}")

    def has_scope(self, scope: Scope, channel: str | None = None) -> bool:
        """Say whether this is a service with `scope`, on `channel` if one is given."""
        if self.kind != "service":
            return False
        return self.grants.has(scope) if channel is None else self.grants.cover(scope, channel)

    def require_scope(self, scope: Scope, channel: str | None = None) -> None:
        """Return if this is a service with `scope` (on `channel`); raises Forbidden."""
        if not self.has_scope(scope, channel):
            on = "" if channel is None else f" on channel {channel[:255]}"
            raise Forbidden(f"this needs an API key with the scope {scope}{on}")
