"""The first rule that matches applies; grants by rule reach only who they name."""

import pytest

from config.patterns import PatternRejected
from config.rules import DEFAULT_RULE, ChannelRule, ChannelRules, check_actions

MINE = ChannelRule(match="user.{sub}.>", grant=("subscribe", "history"))
CHAT = ChannelRule(match="chat.*", presence=True, grant=("subscribe",))


def test_without_rules_the_default_applies() -> None:
    rules = ChannelRules()
    rule = rules.rule("a.b")
    assert rule is DEFAULT_RULE is rules.default
    assert (rule.history_size, rule.history_ttl_s, rule.slow) == (500, 300, "disconnect")
    assert not (rule.presence or rule.client_publish or rule.grant)


def test_the_first_match_applies() -> None:
    rules = ChannelRules([CHAT, MINE, ChannelRule(match=">", history_size=1)])
    assert rules.rule("chat.a") is CHAT
    assert rules.rule("user.7.x") is MINE
    assert rules.rule("chat.a.b").history_size == 1


def test_a_template_grants_only_the_user_in_its_place() -> None:
    rules = ChannelRules([MINE, CHAT])
    assert rules.granted("subscribe", "user.7.x", "7")
    assert not rules.granted("subscribe", "user.7.x", "8")
    assert not rules.granted("publish", "user.7.x", "7")
    assert not rules.granted("subscribe", "user.7", "7")
    for user in ("*", ">", "7.x", "", "{sub}"):
        assert not rules.granted("subscribe", "user.7.x", user)


def test_a_rule_without_template_grants_every_user_but_nobody_unknown() -> None:
    rules = ChannelRules([CHAT])
    assert rules.granted("subscribe", "chat.a", "anyone at all")
    assert not rules.granted("subscribe", "chat.a", None)
    assert not rules.granted("subscribe", "other", "7")


def test_an_earlier_rule_hides_the_grant_of_a_later_one() -> None:
    rules = ChannelRules([ChannelRule(match="chat.closed"), CHAT])
    assert not rules.granted("subscribe", "chat.closed", "7")


def test_reserved_channels_match_no_rule() -> None:
    everything = ChannelRule(match=">", grant=("subscribe",), history_size=1)
    rules = ChannelRules([everything])
    assert rules.rule("$sys.a") is DEFAULT_RULE
    assert not rules.granted("subscribe", "$sys.a", "7")
    assert not ChannelRules(default=everything).granted("subscribe", "$sys.a", "7")


def test_rules_are_replaced_in_place() -> None:
    rules = ChannelRules([CHAT])
    assert rules.rule("chat.a") is CHAT
    rules.replace([MINE])
    assert rules.rule("chat.a") is DEFAULT_RULE
    assert rules.rules == (MINE,)
    rules.replace([], CHAT)
    assert rules.rule("other") is CHAT is rules.default
    rules.replace([])
    assert rules.default is CHAT


def test_rules_that_are_refused_leave_those_before_in_force() -> None:
    rules = ChannelRules([CHAT])
    with pytest.raises(PatternRejected):
        rules.replace([MINE, ChannelRule(match="a*")])
    assert rules.rules == (CHAT,)
    assert rules.rule("chat.a") is CHAT


def test_actions_are_known_and_taken_once() -> None:
    assert check_actions(["publish", "publish", "history"]) == ("publish", "history")
    with pytest.raises(ValueError, match="unknown action 'fly'"):
        check_actions(["publish", "fly"])
