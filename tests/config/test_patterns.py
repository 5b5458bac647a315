"""Names are refused by name of what is wrong; patterns match as a regex says."""

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.patterns import (
    NameRejected,
    Pattern,
    PatternMap,
    PatternRejected,
    check_channel,
    check_event_id,
    check_event_name,
    check_user,
)

ALPHABET = "abcXYZ019_~@:=-"
segments = st.text(ALPHABET, min_size=1, max_size=4)
channels = st.lists(segments, min_size=1, max_size=5).map(".".join)

# Few letters, so that literals meet; `z` is in no pattern, so that a wildcard is seen to be wider.
few = st.sampled_from(["a", "b", "*"])
small_patterns = st.builds(
    lambda head, tail: ".".join([*head, *tail]),
    st.lists(few, min_size=1, max_size=3),
    st.sampled_from([[], [">"]]),
) | st.just(">")
SMALL_CHANNELS = [".".join(each) for size in range(1, 6) for each in product("abz", repeat=size)]


def by_regex(pattern: str, channel: str) -> bool:
    """The model: what the words of the contract say, as one regular expression."""
    parts = {"*": r"[^.]+", ">": r"[^.]+(\.[^.]+)*", "{sub}": r"[^.]+"}
    regex = r"\.".join(parts.get(part) or re.escape(part) for part in pattern.split("."))
    return re.fullmatch(regex, channel) is not None


# ---- names


@pytest.mark.parametrize("name", ["a", "orders.eu.42", "A_~@:=-9.b", "x" * 255, "a." * 127 + "b"])
def test_a_channel_name_is_taken(name: str) -> None:
    check_channel(name)
    assert Pattern(name).matches(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        ("x" * 256, "longer than 255"),
        ("a" * 1_000_000 + "!", "longer than 255"),
        (".", "empty segment"),
        (".a", "empty segment"),
        ("a.", "empty segment"),
        ("a..b", "empty segment"),
        ("$sys", "reserved"),
        ("$", "reserved"),
        ("*", "wildcard"),
        ("a.*.b", "wildcard"),
        ("a.>", "wildcard"),
        ("a*", r"'\*'"),
        ("a\n", r"'\\n'"),
        ("a\r\nb", r"'\\r'"),
        ("a\x00", r"'\\x00'"),
        ("a b", "' '"),
        ("a?", r"'\?'"),
        ("a[1]", r"'\['"),
        ("{sub}", r"'\{'"),
        ("a$b", r"'\$'"),
        ("\u0430.b", r"'\\u0430'"),  # a Cyrillic letter that looks like an a
        ("\ud800", r"'\\ud800'"),
        ("١", r"'\\u0661'"),
    ],
)
def test_what_is_no_channel_name_is_refused_by_name(name: str, why: str) -> None:
    with pytest.raises(NameRejected, match=why):
        check_channel(name)
    for pattern in (">", "*", "*.>", "*.*"):
        assert not Pattern(pattern).matches(name)


@given(st.text(max_size=12) | st.text(ALPHABET + ".$*>\n", max_size=12))
def test_a_name_is_taken_when_the_contract_allows_it(name: str) -> None:
    allowed = all(re.fullmatch(r"[A-Za-z0-9_~@:=-]+\Z", part) for part in name.split("."))
    try:
        check_channel(name)
    except NameRejected:
        assert not allowed
    else:
        assert allowed


@pytest.mark.parametrize("name", ["message", "com.example.order:v1", "x" * 64, "a..b"])
def test_an_event_name_is_taken(name: str) -> None:
    check_event_name(name)
    with pytest.raises(NameRejected, match=r"'\\n'|longer"):
        check_event_name(name + "\n")


@pytest.mark.parametrize(("name", "why"), [("", "empty"), ("x" * 65, "longer than 64"), ("ä", "'")])
def test_what_is_no_event_name_is_refused(name: str, why: str) -> None:
    with pytest.raises(NameRejected, match=why):
        check_event_name(name)


@pytest.mark.parametrize("event_id", ["1", "a b", "!~", "x" * 64, '"\\"'])
def test_an_event_id_is_taken(event_id: str) -> None:
    check_event_id(event_id)
    with pytest.raises(NameRejected):
        check_event_id(event_id + "\n")


@pytest.mark.parametrize(
    ("event_id", "why"),
    [
        ("", "empty"),
        ("x" * 65, "longer than 64"),
        (" a", "space"),
        ("a ", "space"),
        (" ", "space"),
        ("a\x7f", "not printable ASCII"),
        ("é", "not printable ASCII"),
    ],
)
def test_what_is_no_event_id_is_refused(event_id: str, why: str) -> None:
    with pytest.raises(NameRejected, match=why):
        check_event_id(event_id)


@pytest.mark.parametrize("user", ["u7", "Zoë Müller", "日本", "a.b", "*", "x" * 255])
def test_a_user_is_taken(user: str) -> None:
    check_user(user)
    with pytest.raises(NameRejected, match="not printable"):
        check_user(user + "\n")


@pytest.mark.parametrize(
    ("user", "why"),
    [
        ("", "empty"),
        ("x" * 256, "longer than 255 bytes"),
        ("é" * 128, "longer than 255 bytes"),
        ("a\x00", "not printable"),
        ("a\u202eb", "not printable"),
        ("\ud800", "not printable"),
    ],
)
def test_what_is_no_user_is_refused(user: str, why: str) -> None:
    with pytest.raises(NameRejected, match=why):
        check_user(user)


# ---- patterns


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("x" * 256, "longer"),
        ("a..b", "empty segment"),
        ("a.>.b", "last segment"),
        (">.>", "last segment"),
        ("a*", "whole segment"),
        ("**", "whole segment"),
        ("a.b>", "whole segment"),
        ("$sys.>", "reserved"),
        ("a b", "not allowed"),
        ("a\n", "not allowed"),
        ("{sub}", "only in the match of a channel rule"),
        ("{user}", "not allowed"),
    ],
)
def test_what_is_no_pattern_is_refused_by_name(text: str, why: str) -> None:
    with pytest.raises(PatternRejected, match=why):
        Pattern(text)


@pytest.mark.parametrize(("text", "why"), [("u{sub}", "whole segment"), ("{s}", r"\{sub\}")])
def test_what_is_no_template_is_refused_by_name(text: str, why: str) -> None:
    with pytest.raises(PatternRejected, match=why):
        Pattern(text, template=True)


@given(small_patterns, st.sampled_from(SMALL_CHANNELS) | channels)
def test_a_pattern_matches_as_its_translation_does(text: str, channel: str) -> None:
    pattern = Pattern(text)
    assert pattern.matches(channel) is by_regex(text, channel)
    assert pattern.is_literal is (set(text) & set("*>") == set())


@given(small_patterns, small_patterns)
def test_covering_is_inclusion_of_the_matched_channels(one: str, other: str) -> None:
    mine = {channel for channel in SMALL_CHANNELS if by_regex(one, channel)}
    theirs = {channel for channel in SMALL_CHANNELS if by_regex(other, channel)}
    assert Pattern(one).covers(Pattern(other)) is (theirs <= mine)


def test_a_name_beyond_the_longest_is_never_matched() -> None:
    longest, longer = "a." * 127 + "b", "a." * 127 + "bb"
    assert Pattern(">").matches(longest)
    assert not Pattern(">").matches(longer)
    assert Pattern("{sub}.>", template=True).matches_for(longest, "a")
    assert not Pattern("{sub}.>", template=True).matches_for(longer, "a")


# ---- templates

TEMPLATE = "{sub}.x.*.{sub}"


@pytest.mark.parametrize(
    "sub", ["*", ">", "a.b", "", ".", "{sub}", "$a", "a\n", "é", "a*", "x" * 260]
)
def test_a_user_that_is_no_segment_binds_nothing(sub: str) -> None:
    pattern = Pattern("user.{sub}.>", template=True)
    assert pattern.bind(sub) is None
    for channel in ("user.a.b", "user.a.b.c", "user.b.b", f"user.{sub}.b"):
        assert not pattern.matches_for(channel, sub)


@given(st.text(max_size=6) | segments, st.sampled_from(SMALL_CHANNELS) | channels, segments)
def test_binding_never_widens(sub: str, channel: str, other: str) -> None:
    """A bound pattern matches only what the template matches, with the user in the user's place."""
    for text in ("{sub}", "user.{sub}", "user.{sub}.>", "{sub}.*", TEMPLATE):
        template = Pattern(text, template=True)
        bound = template.bind(sub)
        named = text.replace("{sub}", sub).replace("*", "s").replace(">", "s.t")
        for each in (channel, named, text.replace("{sub}", other).replace("*", "s")):
            matched = bound is not None and bound.matches(each)
            assert template.matches_for(each, sub) is matched
            if matched:
                assert template.matches(each)
                assert by_regex(text.replace("{sub}", sub), each)
        if bound is not None:
            assert len(bound.segments) == len(template.segments)
            assert not bound.is_template
            assert bound.matches(named)


def test_an_unbound_template_stands_for_any_one_segment() -> None:
    pattern = Pattern("user.{sub}.>", template=True)
    assert pattern.is_template
    assert pattern.matches("user.7.x.y")
    assert not pattern.matches("user.7")
    assert pattern.covers(Pattern("user.*.x"))
    assert Pattern("user.*.>").covers(pattern)


def test_a_pattern_without_template_is_bound_as_it_is() -> None:
    pattern = Pattern("chat.*")
    assert pattern.bind("*") is pattern
    assert pattern.matches_for("chat.a", "anyone")


def test_patterns_are_values() -> None:
    assert Pattern("a.*") == Pattern("a.*")
    assert Pattern("a.*") != Pattern("a.b")
    assert Pattern("a.*") != "a.*"
    assert len({Pattern("a"), Pattern("a"), Pattern("b")}) == 2
    assert str(Pattern("a.>")) == "a.>"
    assert repr(Pattern("a.>")) == "Pattern('a.>')"


# ---- maps


def test_the_first_pattern_that_matches_decides() -> None:
    found = PatternMap([(Pattern("a.b"), 1), (Pattern("a.*"), 2), (Pattern(">"), 3)], 0)
    assert [found.get(name) for name in ("a.b", "a.c", "b", "a.b.c")] == [1, 2, 3, 3]
    assert PatternMap([(Pattern("a"), 1)], 0).get("b") == 0


@given(
    st.lists(st.tuples(small_patterns, st.integers())), st.lists(st.sampled_from(SMALL_CHANNELS))
)
def test_what_is_remembered_is_what_was_found(
    items: list[tuple[str, int]], asked: list[str]
) -> None:
    found = PatternMap([(Pattern(text), value) for text, value in items], -1, remember=2)
    for channel in asked + asked:
        expected = next((value for text, value in items if by_regex(text, channel)), -1)
        assert found.get(channel) == expected
        assert len(found._known) <= 2
