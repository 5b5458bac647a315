"""Who may do what? This file answers: which tokens died before they expired."""

import logging
import time
from collections.abc import Callable
from typing import Final

_log = logging.getLogger(__name__)

LOG_EVERY_S: Final = 60.0


class Revocations:
    """Users whose sessions were ended, and since when their older tokens are refused.

    Kept in memory, by wall clock; the nodes tell each other. `remember_s` is the longest that a
    token may live after it was issued, leeway included, so that no token outlives its refusal.
    Holds `max_users` at most; beyond that the entry that came first goes (`dropped` counts, and it
    is logged).
    """

    __slots__ = ("_ended", "_logged_at", "_max_users", "_now", "_remember_s", "dropped")

    def __init__(
        self, remember_s: float, now: Callable[[], float] = time.time, *, max_users: int = 100_000
    ) -> None:
        self._remember_s = remember_s
        self._now = now
        self._max_users = max_users
        # Since when and until when, in the order in which they came: nearly that of time.
        self._ended: dict[str, tuple[float, float]] = {}
        self._logged_at: float | None = None
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._ended)

    def span(self) -> tuple[float, float]:
        """Return from when until when a user counts who is ended now (s since 1970)."""
        now = self._now()
        return now, now + self._remember_s

    def end(self, user: str, at_s: float, until_s: float) -> None:
        """Refuse tokens of `user` that were issued up to `at_s`; of several the latest counts.

        `iat` counts whole seconds, so a token issued later within this second is refused too. A
        token without `iat` counts as issued long ago: it is refused as long as the user is
        remembered.
        """
        now = self._now()
        known = self._ended.get(user)
        if until_s < now or (known is not None and known >= (at_s, until_s)):
            return
        self._ended.pop(user, None)
        self._forget(now)
        if len(self._ended) >= self._max_users:
            del self._ended[next(iter(self._ended))]
            self.dropped += 1
            self._log_drop(now)
        self._ended[user] = (at_s, until_s)

    def refuses(self, user: str, issued_at: float | None) -> bool:
        """Say whether a token of `user`, issued at `issued_at` (s since 1970), is refused."""
        ended = self._ended.get(user)
        if ended is None:
            return False
        at_s, until_s = ended
        if until_s < self._now():
            del self._ended[user]
            return False
        return issued_at is None or issued_at <= at_s

    def _forget(self, now: float) -> None:
        while self._ended:
            user = next(iter(self._ended))
            if self._ended[user][1] >= now:
                return
            del self._ended[user]

    def _log_drop(self, now: float) -> None:
        if self._logged_at is None or now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            _log.warning(
                "more than %d ended users: old tokens of the oldest are valid again",
                self._max_users,
            )
