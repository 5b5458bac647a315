"""The names in Redis: one slot for all of a channel, the same on every node, for ever."""

import pytest

from pubsub.redis_keys import RedisKeys


def test_a_channel_has_the_same_partition_for_ever() -> None:
    """Nodes of two versions would otherwise not find each other's channels."""
    keys = RedisKeys()
    assert [keys.partition(name) for name in ("a.b", "chat.lobby", "$probe.n1")] == [29, 8, 57]
    assert keys.record("a.b") == "{galecast:p29}:r:a.b"


def test_all_of_a_channel_has_one_tag() -> None:
    keys = RedisKeys("x")
    for number in range(200):
        name = f"c.{number}"
        tag = f"{{x:p{keys.partition(name)}}}:"
        every = [keys.record(name), keys.stream(name), keys.address(name), *keys.ids(name)]
        every += keys.lists(keys.partition(name))
        assert len(set(every)) == len(every)
        assert all(key.startswith(tag) for key in every)


def test_nodes_have_channels_of_their_own() -> None:
    keys = RedisKeys("x")
    assert (keys.nodes, keys.node("n1")) == ("{x:n}:nodes", "{x:n}:node:n1")


@pytest.mark.parametrize("prefix", ["", "a b", "{a}", "a*", "é", "x" * 65, "a\n"])
def test_a_prefix_that_would_break_the_tags_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        RedisKeys(prefix)
