"""Tests here speak to whole nodes; what they say of rates and of ends of tokens takes no time."""

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from server.limits import Quota, TokenBucket


@pytest.fixture
def rates_stand_still(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Let nothing of a rate come back while a test runs, however slow the machine is.

    What it gives lets time go on.
    """
    moment = 0.0
    take, quota = TokenBucket.take, TokenBucket.quota

    def take_then(bucket: TokenBucket, now: float, n: float = 1) -> float:
        return take(bucket, moment, n)

    def quota_then(bucket: TokenBucket, now: float) -> Quota | None:
        return quota(bucket, moment)

    with monkeypatch.context() as patched:
        patched.setattr(TokenBucket, "take", take_then)
        patched.setattr(TokenBucket, "quota", quota_then)
        yield patched.undo


@pytest.fixture
def ends_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """What lets a token which expires at a time have so many seconds left, for live sessions.

    It goes on having them, so that no token has expired before a test has come to its session; how
    long that waits is as it always is.
    """

    def ends_in(expires_at: float, left_s: float) -> None:
        clock = SimpleNamespace(time=lambda: expires_at - left_s, monotonic=time.monotonic)
        monkeypatch.setattr("server.session.time", clock)

    return ends_in
