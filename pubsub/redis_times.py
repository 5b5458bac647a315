"""Where are events kept? This file: the times and durations that the scripts are given."""

from collections.abc import Callable
from typing import Final

# A subscribed node has a lease on the channel's record, so that the record stays; the leases are
# renewed with the comparison of tops, every few seconds.
_LEASE_S: Final = 60.0


class RedisTimes:
    """Durations in ms, and the time that is given in place of Redis's own.

    `clock_ms` is for tests, which cannot turn Redis's clock.
    """

    __slots__ = ("_clock_ms", "lapse_ms", "lease_ms", "window_ms")

    def __init__(
        self,
        *,
        idempotency_window_s: float,
        position_ttl_s: float,
        lease_s: float = _LEASE_S,
        clock_ms: Callable[[], int] | None = None,
    ) -> None:
        self.window_ms = round(idempotency_window_s * 1000)
        # A record must not go before the ids of its channel.
        self.lapse_ms = max(round(position_ttl_s * 1000), 2 * self.window_ms)
        self.lease_ms = round(lease_s * 1000)
        self._clock_ms = clock_ms

    def now(self) -> int | str:
        """Return the time in ms, or nothing: then it is Redis's."""
        return "" if self._clock_ms is None else self._clock_ms()
