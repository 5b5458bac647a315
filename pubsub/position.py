"""How does an event get its position? This file: positions and the chain of checks (pure)."""

import re
import secrets
from hashlib import sha1

import msgspec

from pubsub.errors import PositionRejected

_TEXT = re.compile(r"([0-9a-f]{16})-(0|[1-9][0-9]{0,17})-([0-9a-f]{16})")


class Position(msgspec.Struct, frozen=True, gc=False):
    """Where an event stands in its channel: epoch, offset and check.

    `epoch` and `check` are 16 lower-case hexadecimal digits, `offset` counts from 0 (before the
    first event). Two positions are equal only if all that came before them is equal.
    """

    epoch: str
    offset: int
    check: str

    def __str__(self) -> str:
        """Return the one opaque string that clients see; safe in URLs and in SSE ids."""
        return f"{self.epoch}-{self.offset}-{self.check}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Read what `str()` wrote; raises PositionRejected."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise PositionRejected("not a position")
        return cls(match[1], int(match[2]), match[3])


def new_epoch() -> str:
    """Return a random epoch."""
    return secrets.token_hex(8)


def start(epoch: str, offset: int = 0) -> Position:
    """Return the position before the first event of an epoch: its check is the epoch itself."""
    return Position(epoch, offset, epoch)


def chain(check: str, event_id: str) -> str:
    """Return check(n) = H(check(n-1), id(n)): the first 16 digits of a SHA-1.

    SHA-1 since it is the one hash that Redis offers to scripts; it guards against histories that
    differ by accident of a fail-over, not against an attacker with write access to the broker.
    """
    return sha1((check + event_id).encode(), usedforsecurity=False).hexdigest()[:16]
