"""Tests here speak to whole nodes; what they say of rates takes no time."""

from collections.abc import Callable, Iterator

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
