"""Where is an event kept? This file: how what is due is published, each event once."""

from collections.abc import Sequence
from typing import Protocol

from pubsub.errors import PubSubError
from pubsub.event import Published
from pubsub.schedules import Schedule

Fired = list[Published | PubSubError]


class Firing(Protocol):
    """Publishes what is due; every call may raise BrokerUnavailable and ArchiveUnavailable.

    - `claim_ms`: how long claims last; 0 if there is nobody else.
    """

    claim_ms: int

    async def now_ms(self) -> int:
        """Return the time by which schedules are due and claims end."""
        ...

    async def fire(self, schedules: Sequence[Schedule], till_ms: int) -> Fired:
        """Publish what schedules say, in order, unless the claim has ended; safe to repeat.

        An answer with a position, or Cancelled, says that a schedule is done; ClaimEnded that
        somebody else may have it; any other error that it was not published, or may not have been.
        """
        ...

    async def settle(self) -> None:
        """Finish what an earlier call, which failed, may have begun."""
        ...

    async def done(self, schedules: Sequence[Schedule]) -> None:
        """Delete schedules that are done."""
        ...

    async def cancel(self, schedule: Schedule) -> bool:
        """Delete a schedule so that it is never published; False if it was published.

        It is one or the other, whoever is about to fire it.
        """
        ...
