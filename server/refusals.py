"""Who may do how much? This file answers: how many refusals a session may collect (pure)."""

from typing import Final

from server.closing import Closing
from server.errors import RateLimited, Refused

_WINDOW_S: Final = 60.0


class Refusals:
    """Counts what a session was refused in a minute, by whose doing it was.

    What the client did wrong ends the session for good. Who is merely too eager is to come back at
    its ease. What may succeed later (`retry`) is the server's own doing, and not counted.
    """

    __slots__ = ("_hasty", "_until", "_wrong")

    def __init__(self) -> None:
        self._until = 0.0
        self._wrong = 0
        self._hasty = 0

    def count(self, refused: Refused, now: float, most: int) -> Closing | None:
        """Count a refusal; return how the session is to end, if it had more than `most` of a kind.

        `now` is of a monotonic clock, in s; `most` 0 is no limit.
        """
        if now > self._until:
            self._until = now + _WINDOW_S
            self._wrong = self._hasty = 0
        if isinstance(refused, RateLimited):
            self._hasty += 1
        elif not refused.retry:
            self._wrong += 1
        if most and self._wrong > most:
            return Closing.TOO_MANY_ERRORS
        if most and self._hasty > most:
            return Closing.RATE_LIMITED
        return None
