"""What was seen in a run? This file: the records of a history, one JSON object to a line.

`at` is in seconds by one monotonic clock for the whole history, and records stand in the order in
which they were made. Positions are what clients see: `epoch-offset-check`.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

Outcome = Literal["acknowledged", "refused", "unknown"]


class Scope(msgspec.Struct, tag_field="kind", tag="scope", frozen=True, kw_only=True):
    """What the history is held to; the first record, or all defaults.

    `conflating` channels promise the newest event, and so does any to clients that are `rated`.
    `tellings`: how often a client may be told at most, for each channel, that events may be
    missing. `loses`: the faults may take acknowledged events with them, if everybody is told.
    `endings`: how many sessions of a client may end (None: any number). `cuts_s`: how long after a
    fault a session may still be cut; with it none may end before the first fault (None: neither is
    asked). `presence_s`: how long anybody may see a wrong room while no fault lasts.
    """

    conflating: tuple[str, ...] = ()
    rated: tuple[str, ...] = ()
    archived: tuple[str, ...] = ()
    tellings: int = 0
    loses: bool = False
    forgets: bool = False
    endings: int | None = None
    cuts_s: float | None = None
    presence_s: float = 10.0
    at: float = 0.0


class Publish(msgspec.Struct, tag_field="kind", tag="publish", frozen=True, kw_only=True):
    """One attempt to publish, when it was answered or given up; `began` is when it was begun.

    Attempts with the same id are the same event. `unknown`: it may or may not have happened.
    `publisher` publishes one event after another, each once the one before was acknowledged.
    """

    at: float
    began: float
    publisher: str
    channel: str
    id: str
    data: str = ""
    outcome: Outcome
    position: str = ""
    duplicate: bool = False


class Subscribed(msgspec.Struct, tag_field="kind", tag="subscribed", frozen=True, kw_only=True):
    """A subscription began; `recovered` is None where it did not resume."""

    at: float
    client: str
    session: str
    channel: str
    position: str
    recovered: bool | None = None


class Delivery(msgspec.Struct, tag_field="kind", tag="delivery", frozen=True, kw_only=True):
    """An event came; `skipped` of a conflating channel were left out before it."""

    at: float
    client: str
    session: str
    channel: str
    position: str
    id: str
    data: str = ""
    skipped: int = 0


class Reset(msgspec.Struct, tag_field="kind", tag="reset", frozen=True, kw_only=True):
    """A client was told that events may be missing, and goes on from a position."""

    at: float
    client: str
    session: str
    channel: str
    position: str


class Closed(msgspec.Struct, tag_field="kind", tag="closed", frozen=True, kw_only=True):
    """A session ended; `last`: the client went of its own will and does not come back.

    `code` is what it was closed with, 0 where it was cut; `told`: a message had said so before.
    """

    at: float
    client: str
    session: str
    last: bool = False
    code: int = 0
    told: bool = False
    reason: str = ""


class Strange(msgspec.Struct, tag_field="kind", tag="strange", frozen=True, kw_only=True):
    """Something came that never should: a 500, a message of no known kind."""

    at: float
    who: str
    text: str


class Seen(msgspec.Struct, tag_field="kind", tag="seen", frozen=True, kw_only=True):
    """Who is in a room, as a client sees it from now on; None: it sees nothing any more."""

    at: float
    client: str
    channel: str
    members: tuple[str, ...] | None


class Present(msgspec.Struct, tag_field="kind", tag="present", frozen=True, kw_only=True):
    """The truth about a room: a session entered it, or left it."""

    at: float
    channel: str
    member: str
    here: bool


class Fault(msgspec.Struct, tag_field="kind", tag="fault", frozen=True, kw_only=True):
    """A fault began, or ended. Those of one name do not overlap."""

    at: float
    name: str
    begins: bool


class Dump(msgspec.Struct, tag_field="kind", tag="dump", frozen=True, kw_only=True):
    """All that a store has of a channel, oldest first.

    `events` are position, id and data; `missing` are the ranges that the reader was told of: what
    lies behind the first position and up to the second.
    """

    at: float
    store: Literal["archive", "history"]
    channel: str
    events: tuple[tuple[str, str, str], ...]
    missing: tuple[tuple[str, str], ...] = ()


class Drained(msgspec.Struct, tag_field="kind", tag="drained", frozen=True, kw_only=True):
    """All is healed and everybody had the time to get everything; nothing is expected later."""

    at: float


Record = (
    Scope
    | Publish
    | Subscribed
    | Delivery
    | Reset
    | Closed
    | Strange
    | Seen
    | Present
    | Fault
    | Dump
    | Drained
)
_decoder = msgspec.json.Decoder(Record)


def write_history(path: Path, records: Iterable[Record]) -> None:
    """Write records into a file, one to a line."""
    with path.open("wb") as file:
        for record in records:
            file.write(msgspec.json.encode(record) + b"\n")


def read_history(path: Path) -> Iterator[Record]:
    """Read what `write_history` wrote; raises msgspec.ValidationError."""
    with path.open("rb") as file:
        for line in file:
            yield _decoder.decode(line)
