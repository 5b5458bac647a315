"""Who is present in a channel, over all nodes? This file: the presence store's interface."""

from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec


class Member(msgspec.Struct, frozen=True, gc=False):
    """A session that is present in a channel; `info` is JSON text."""

    session: str
    user: str | None
    info: bytes = b"{}"


class PresenceChange(msgspec.Struct, frozen=True):
    """A change of a channel's presence set; `version` counts a channel's changes by one.

    It may jump up, which looks like lost changes, but never goes backwards.
    """

    channel: str
    action: Literal["join", "leave", "update"]
    member: Member
    version: int


class Members(msgspec.Struct, frozen=True):
    """A page of a channel's presence set, ordered by session.

    `cursor` asks for the next page (None: this was the last); `total` counts the whole set.
    """

    members: tuple[Member, ...]
    total: int
    version: int
    cursor: str | None = None


class PresenceSink(Protocol):
    """What a node offers to the presence store. Plain calls that neither wait nor raise."""

    def on_presence(self, change: PresenceChange) -> None:
        """A presence set changed."""

    def watched(self) -> Mapping[str, int]:
        """Return the channels whose presence sets are watched here, with the version last told."""
        ...

    def on_presence_version(self, channel: str, version: int) -> None:
        """All changes up to `version` were announced; those that did not come are lost."""


class PresenceStore(Protocol):
    """Keeps who is present where; a session enters on one node only.

    Every call may raise BrokerUnavailable. Who was refused to enter is as it was before. A leave
    may be carried out later instead, when the broker is back.
    """

    def bind(self, sink: PresenceSink) -> None:
        """Say where changes go; called once, before any other call. Not a call to the store."""
        ...

    async def enter(self, channel: str, member: Member) -> None:
        """Add a member (join), or set the info of one that is there (update, if it differs)."""
        ...

    async def leave(self, channel: str, session: str) -> None:
        """Remove a member; nothing happens if it is not there."""
        ...

    async def members(self, channel: str, *, cursor: str | None = None, limit: int) -> Members:
        """Return a page of the set; a cursor that nobody gave out raises ValueError."""
        ...
