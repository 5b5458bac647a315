"""Which tokens died before they expired."""

import pytest

from server.revocations import Revocations


class Clock:
    def __init__(self, at: float = 1_000_000.7) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def end(ended: Revocations, user: str) -> None:
    """End a user now."""
    ended.end(user, *ended.span())


def test_older_tokens_are_refused_and_newer_ones_are_not() -> None:
    clock = Clock()
    ended = Revocations(3600, clock)
    assert not ended.refuses("u7", 999_000)
    end(ended, "u7")
    assert ended.refuses("u7", 999_000)
    assert ended.refuses("u7", 1_000_000)  # issued in the same second, before or after
    assert not ended.refuses("u7", 1_000_001)
    assert not ended.refuses("u8", 999_000)


def test_a_token_that_does_not_say_when_it_was_issued_is_old() -> None:
    ended = Revocations(3600, Clock())
    assert not ended.refuses("u7", None)
    end(ended, "u7")
    assert ended.refuses("u7", None)


def test_ended_twice_counts_from_the_second_time() -> None:
    clock = Clock()
    ended = Revocations(3600, clock)
    end(ended, "u7")
    clock.at += 100
    end(ended, "u7")
    assert ended.refuses("u7", 1_000_100)
    clock.at += 3550
    assert ended.refuses("u7", 1_000_100)
    assert len(ended) == 1


def test_forgotten_when_no_token_can_be_left() -> None:
    clock = Clock()
    ended = Revocations(3600, clock)
    end(ended, "u7")
    end(ended, "u8")
    clock.at += 3600
    assert ended.refuses("u7", None)
    clock.at += 1
    assert not ended.refuses("u7", None)
    assert len(ended) == 1
    end(ended, "u9")
    assert len(ended) == 1


@pytest.mark.expect_log("server.revocations", "more than 2 ended users")
def test_full_means_that_the_oldest_goes(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    ended = Revocations(3600, clock, max_users=2)
    for name in ("a", "b", "a", "c"):
        clock.at += 1
        end(ended, name)
    assert ended.dropped == 1
    assert len(ended) == 2
    assert not ended.refuses("b", 0)
    assert ended.refuses("a", 0) and ended.refuses("c", 0)
    end(ended, "d")
    assert ended.dropped == 2
    assert len(caplog.records) == 1
    clock.at += 60
    end(ended, "e")
    assert len(caplog.records) == 2
    assert not any("'" in record.getMessage() for record in caplog.records)  # names nobody


def test_what_comes_again_or_late_changes_nothing() -> None:
    clock = Clock()
    ended = Revocations(3600, clock)
    at = clock.at
    ended.end("u7", at, at + 3600)
    ended.end("u7", at - 100, at + 9000)
    assert ended.refuses("u7", at) and not ended.refuses("u7", at + 1)
    ended.end("u7", at + 50, at + 3650)
    ended.end("u7", at, at + 3600)
    assert ended.refuses("u7", at + 50)
    ended.end("u8", at - 4000, at - 400)
    assert len(ended) == 1 and not ended.refuses("u8", None)


def test_of_two_of_the_same_time_the_longer_counts() -> None:
    clock = Clock()
    ended = Revocations(3600, clock)
    ended.end("u7", clock.at, clock.at + 10)
    ended.end("u7", clock.at, clock.at + 20)
    ended.end("u7", clock.at, clock.at + 10)
    clock.at += 15
    assert ended.refuses("u7", 0)
