"""What may an operator set? This file answers: how a channel behaves, by rule.

Rules are an ordered list; the first whose pattern matches a channel applies, and a default rule
applies to all other channels.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, get_args

import msgspec

from config.declare import says
from config.patterns import Pattern, PatternMap

Action = Literal["subscribe", "publish", "presence", "history"]
ACTIONS: Final[tuple[Action, ...]] = get_args(Action)
SLOW: Final = ("disconnect", "conflate")


def check_match(text: str) -> str:
    """Return `text` if it is a pattern, `{sub}` allowed; raises PatternRejected."""
    return Pattern(text, template=True).text


def _check_slow(value: str) -> str:
    if value not in SLOW:
        raise ValueError("unknown policy")
    return value


def check_actions(values: Iterable[str]) -> tuple[Any, ...]:
    """Return the actions in `values`, each once; raises ValueError on an unknown one."""
    kept = tuple(dict.fromkeys(values))
    for value in kept:
        if value not in ACTIONS:
            raise ValueError(f"unknown action {value!a}")
    return kept


class ChannelRule(msgspec.Struct, frozen=True, kw_only=True):
    """How the channels that `match` matches behave.

    Within the history window (`history_size` events, `history_ttl_s` seconds) a client can resume
    without loss. `grant` gives its actions to every authenticated user, on the channels that
    `match` matches with the user's id in place of `{sub}`.
    """

    match: Annotated[
        str,
        says(
            "Pattern of the channels; `{sub}` as a segment stands for any one segment, and in "
            "`grant` for the id of the user.",
            check=check_match,
            allowed="a pattern such as chat.*, orders.> or user.{sub}.>",
        ),
    ]
    history_size: Annotated[
        int,
        says(
            "Events kept for resuming and for history.",
            unit="events",
            zero="nothing is kept; who missed an event cannot resume",
            low=0,
            high=100_000,
        ),
    ] = 500
    history_ttl_s: Annotated[
        float,
        says(
            "How long events are kept, counted from the channel's last event.",
            unit="s",
            zero="nothing is kept; who missed an event cannot resume",
            low=0,
            high=31_536_000,
        ),
    ] = 300.0
    archive: Annotated[bool, says("Keep events in the archive too, which `archive.url` names.")] = (
        False
    )
    archive_ttl_s: Annotated[
        float,
        says(
            "How long the archive keeps events.",
            unit="s",
            zero="for good",
            low=0,
            high=3_153_600_000,
        ),
    ] = 0.0
    presence: Annotated[bool, says("Keep a list of the sessions in a channel.")] = False
    client_publish: Annotated[
        bool, says("Take publishes from clients that have the grant; services always may.")
    ] = False
    slow: Annotated[
        str,
        says(
            "What to do with a session that does not keep up. `disconnect`: close it; it comes "
            "back and resumes, nothing is lost. `conflate`: leave out events of the channel until "
            "it reads on, and give it the newest then.",
            check=_check_slow,
            allowed='"disconnect" or "conflate"',
        ),
    ] = "disconnect"
    grant: Annotated[
        tuple[Action, ...],
        says(
            "Actions of every authenticated user on these channels.",
            check=check_actions,
            allowed="a list of " + ", ".join(ACTIONS),
        ),
    ] = ()


DEFAULT_RULE: Final = ChannelRule(match=">")


def _with_pattern(rule: ChannelRule) -> tuple[Pattern, ChannelRule]:
    return Pattern(rule.match, template=True), rule


class ChannelRules:
    """The rules in force; one object, shared by everything that asks.

    `replace` changes the rules in place, so that a reload is seen everywhere at once. `revision`
    grows with each change.
    """

    __slots__ = ("_default", "_map", "_rules", "revision")

    def __init__(
        self, rules: Iterable[ChannelRule] = (), default: ChannelRule = DEFAULT_RULE
    ) -> None:
        self._default = _with_pattern(default)
        self.revision = 0
        self.replace(rules)

    def replace(self, rules: Iterable[ChannelRule], default: ChannelRule | None = None) -> None:
        """Put `rules` in force, and `default` if one is given.

        Raises PatternRejected, and then the rules before stay in force.
        """
        kept = tuple(rules)
        pairs = [_with_pattern(rule) for rule in kept]
        fallback = self._default if default is None else _with_pattern(default)
        self._map = PatternMap([(pair[0], pair) for pair in pairs], fallback)
        self._default = fallback
        self._rules = kept
        self.revision += 1

    @property
    def rules(self) -> tuple[ChannelRule, ...]:
        """The rules in order, without the default."""
        return self._rules

    @property
    def default(self) -> ChannelRule:
        """The rule of every channel that no other rule matches."""
        return self._default[1]

    def rule(self, channel: str) -> ChannelRule:
        """Return the rule of `channel`, a valid channel name; reserved names get the default."""
        return self._map.get(channel)[1]

    def archived(self, channel: str) -> bool:
        """Say whether the events of `channel` go into the archive."""
        return self._map.get(channel)[1].archive

    def granted(self, action: Action, channel: str, sub: str | None) -> bool:
        """Say whether the rule of `channel` grants `action` to the authenticated user `sub`.

        None stands for someone who is not authenticated, and is granted nothing.
        """
        if sub is None:
            return False
        pattern, rule = self._map.get(channel)
        return action in rule.grant and pattern.matches_for(channel, sub)
