"""Who may do what: grants, scopes, rules, and the tricks to widen them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.patterns import NameRejected, check_channel
from config.rules import ACTIONS, ChannelRule, ChannelRules
from server.errors import Forbidden
from server.principal import (
    MAX_PATTERNS,
    NO_GRANTS,
    Grants,
    GrantsCache,
    GrantsRejected,
    Principal,
    service_grants,
)

EVERYTHING: dict[str, list[str]] = {">": list(ACTIONS)}
EVIL_CHANNELS = [
    "",
    "*",
    ">",
    "chat.*",
    "chat.>",
    "chat.?",
    "chat.[a]",
    "chat..lobby",
    ".chat",
    "chat.lobby.",
    "chat.lobby\x00",
    "chat.lobby\n",
    "chat.lobby\r\n",
    "chat.l\u043ebby",  # a Cyrillic o
    "\uff43hat.lobby",  # a full-width c
    "$sys",
    "$sys.stats",
    "a" * 256,
]


def user(
    grants: dict[str, list[str]], rules: ChannelRules | None = None, sub: str = "u7"
) -> Principal:
    return Principal(kind="user", user=sub, grants=GrantsCache().grants(grants), rules=rules)


def test_nothing_is_granted_by_default() -> None:
    for principal in (
        user({}),
        user({}, ChannelRules()),
        Principal(kind="anonymous"),
        Principal(kind="service"),
    ):
        assert not any(principal.allows(action, "chat.lobby") for action in ACTIONS)


def test_a_grant_opens_its_actions_on_its_channels_only() -> None:
    principal = user({"chat.*": ["subscribe", "history"], "news": ["publish"]})
    assert principal.allows("subscribe", "chat.lobby")
    assert principal.allows("history", "chat.lobby")
    assert principal.allows("publish", "news")
    assert not principal.allows("publish", "chat.lobby")
    assert not principal.allows("subscribe", "chat.lobby.deep")
    assert not principal.allows("subscribe", "Chat.lobby")
    assert not principal.allows("subscribe", "news")


@pytest.mark.parametrize("channel", EVIL_CHANNELS)
def test_what_is_no_channel_is_granted_to_nobody(channel: str) -> None:
    rules = ChannelRules([ChannelRule(match=">", grant=ACTIONS)])
    principal = user({**EVERYTHING, "*": list(ACTIONS), "chat.lobby": list(ACTIONS)}, rules)
    assert not any(principal.allows(action, channel) for action in ACTIONS)


@given(st.text(max_size=40) | st.from_regex(r"[a-z$*>.]{1,12}", fullmatch=True))
def test_the_widest_grant_covers_exactly_the_channels(channel: str) -> None:
    try:
        check_channel(channel)
        valid = True
    except NameRejected:
        valid = False
    assert user(EVERYTHING).allows("subscribe", channel) is valid


def test_a_rule_grants_by_template_to_its_own_user() -> None:
    rules = ChannelRules([ChannelRule(match="user.{sub}.>", grant=("subscribe",))])
    principal = user({}, rules)
    assert principal.allows("subscribe", "user.u7.inbox")
    assert not principal.allows("publish", "user.u7.inbox")
    assert not principal.allows("subscribe", "user.u8.inbox")
    rules.replace([])
    assert not principal.allows("subscribe", "user.u7.inbox")


@pytest.mark.parametrize("sub", ["*", ">", "u8.x", "u7.>", "{sub}", "u\u0437", "u7 ", "u7\n"])
def test_an_evil_user_id_does_not_widen_a_template(sub: str) -> None:
    rules = ChannelRules([ChannelRule(match="user.{sub}.>", grant=ACTIONS)])
    principal = user({}, rules, sub)
    for channel in ("user.u8.x", "user.u7.x", "user.u8.x.y", "user.*.x", f"user.{sub}.x"):
        assert not principal.allows("subscribe", channel)


def test_rules_grant_nothing_to_the_anonymous_and_to_services() -> None:
    rules = ChannelRules([ChannelRule(match=">", grant=ACTIONS)])
    assert not Principal(kind="anonymous", rules=rules).allows("subscribe", "a")
    assert not Principal(kind="service", key="k", rules=rules).allows("subscribe", "a")


def test_require_names_action_and_channel() -> None:
    user(EVERYTHING).require("publish", "chat.lobby")
    with pytest.raises(Forbidden, match=r"^publish is not granted on channel chat\.lobby$"):
        user({}).require("publish", "chat.lobby")


def test_scopes_of_a_service() -> None:
    service = Principal(
        kind="service",
        name="shop",
        key="k1",
        grants=service_grants(
            {
                "publish": ("orders.>",),
                "history": ("orders.eu.*", "news"),
                "channels": ("orders.>",),
                "tokens": True,
                "sessions": False,
            }
        ),
    )
    assert service.allows("publish", "orders.1")
    assert service.allows("history", "orders.eu.1")
    assert service.allows("subscribe", "news")  # who may read the history may read on
    assert not service.allows("subscribe", "orders.1")
    assert not service.allows("presence", "orders.1")
    assert service.has_scope("tokens")
    assert not service.has_scope("sessions")
    assert not service.has_scope("metrics")
    assert service.has_scope("channels")
    assert service.has_scope("channels", "orders.1")
    assert not service.has_scope("channels", "news")
    service.require_scope("channels", "orders.1")
    with pytest.raises(Forbidden, match=r"the scope purge on channel orders\.1$"):
        service.require_scope("purge", "orders.1")
    with pytest.raises(Forbidden, match=r"the scope metrics$"):
        service.require_scope("metrics")


def test_a_user_has_no_scope_even_where_the_word_is_the_same() -> None:
    principal = user(EVERYTHING)
    assert principal.allows("publish", "a")
    assert not principal.has_scope("publish", "a")
    assert not principal.has_scope("history")


@pytest.mark.parametrize(
    ("grants", "named"),
    [
        ({"chat.*": ["subscribe", "write"]}, "unknown action 'write'"),
        ({"chat.*": ["Subscribe"]}, "unknown action 'Subscribe'"),
        ({"chat.*": ["purge"]}, "unknown action 'purge'"),
        ({"chat.lo*": ["subscribe"]}, r"pattern 'chat\.lo\*'"),
        ({"a.>.b": ["subscribe"]}, r"pattern 'a\.>\.b'"),
        ({"$sys.>": ["subscribe"]}, r"pattern '\$sys\.>'"),
        ({"": ["subscribe"]}, "pattern ''"),
        ({"chat.": ["subscribe"]}, r"pattern 'chat\.'"),
        ({"user.{sub}.>": ["subscribe"]}, "pattern 'user.{sub}.>'"),
        ({"ch\u0430t": ["subscribe"]}, r"pattern 'ch\\u0430t'"),
        ({"chat\n": ["subscribe"]}, r"pattern 'chat\\n'"),
        ({f"c{n}": ["subscribe"] for n in range(MAX_PATTERNS + 1)}, "more than 256 patterns"),
    ],
)
def test_bad_grants_are_refused_by_name(grants: dict[str, list[str]], named: str) -> None:
    with pytest.raises(GrantsRejected, match=named) as caught:
        GrantsCache().grants(grants)
    assert len(str(caught.value)) < 250


def test_as_many_patterns_as_allowed() -> None:
    grants = GrantsCache().grants({f"c{n}.*": ["subscribe"] for n in range(MAX_PATTERNS)})
    assert grants.cover("subscribe", "c255.x")


def test_equal_grants_share_one_object() -> None:
    cache = GrantsCache()
    first = cache.grants({"a.*": ["publish", "subscribe"], "b": ["history"]})
    assert cache.grants({"b": ["history"], "a.*": ["subscribe", "publish", "publish"]}) is first
    assert cache.grants({"b": ["history"]}) is not first
    assert cache.grants({}) is NO_GRANTS


def test_the_cache_is_bounded_and_keeps_what_is_asked_for() -> None:
    cache = GrantsCache(max_patterns=4)
    kept = cache.grants({"a": ["publish"], "b": ["publish"]})
    lost = cache.grants({"c": ["publish"], "d": ["publish"]})
    assert cache.grants({"a": ["publish"], "b": ["publish"]}) is kept
    cache.grants({"e.*": ["publish"]})
    assert cache.grants({"a": ["publish"], "b": ["publish"]}) is kept
    assert cache.grants({"c": ["publish"], "d": ["publish"]}) is not lost
    assert lost.cover("publish", "c")
    too_many = {f"x{n}": ["publish"] for n in range(5)}
    assert cache.grants(too_many).cover("publish", "x4")
    assert cache.grants(too_many) is not cache.grants(too_many)


def test_rejected_grants_leave_the_cache_as_it_was() -> None:
    cache = GrantsCache(max_patterns=2)
    kept = cache.grants({"a": ["publish"]})
    for _ in range(5):
        with pytest.raises(GrantsRejected):
            cache.grants({"b": ["shout"]})
    assert cache.grants({"a": ["publish"]}) is kept


def test_the_source_is_what_a_token_would_say() -> None:
    cache = GrantsCache()
    grants = cache.grants({"b": ["history"], "a.*": ["subscribe", "publish"]})
    assert grants.source == (("a.*", ("publish", "subscribe")), ("b", ("history",)))
    assert cache.grants({text: list(actions) for text, actions in grants.source}) is grants
    assert Grants({"publish": ()}).has("publish") is False


def test_principals_are_small_and_cannot_be_changed() -> None:
    principal = user({})
    assert not hasattr(principal, "__dict__")
    with pytest.raises(AttributeError):
        principal.user = "u8"  # type: ignore[misc]
