"""Valid histories for the tests of the checker: of a world that keeps every promise."""

import random
from dataclasses import dataclass, field

from checker.history import follows
from checker.records import (
    Closed,
    Delivery,
    Drained,
    Dump,
    Fault,
    Outcome,
    Present,
    Publish,
    Record,
    Reset,
    Scope,
    Seen,
    Subscribed,
)

ROOM = "room"


@dataclass(slots=True)
class Channel:
    """The truth about a channel: its epoch and its events, as (position, id, data)."""

    name: str
    rng: random.Random
    epoch: str = ""
    top: str = ""
    events: list[tuple[str, str, str]] = field(default_factory=list)
    # All events of all epochs, as the archive has them.
    kept: list[tuple[str, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.begin(0)

    def begin(self, offset: int) -> None:
        """Begin an epoch."""
        self.epoch = f"{self.rng.getrandbits(64):016x}"
        self.top = f"{self.epoch}-{offset}-{self.epoch}"
        self.events = []

    def add(self, event_id: str, data: str) -> str:
        """Take an event, return where it stands."""
        _epoch, offset, check = self.top.split("-")
        self.top = f"{self.epoch}-{int(offset) + 1}-{follows(check, event_id)}"
        self.events.append((self.top, event_id, data))
        self.kept.append(self.events[-1])
        return self.top


@dataclass(slots=True)
class Client:
    """A client of one channel: its session and how many events of the epoch it has."""

    name: str
    channel: Channel
    session: str = ""
    has: int = 0
    position: str = ""


class World:
    """Channels `a` and `b` (archived) and `c` (conflating), two clients each, and a room.

    Whatever is asked of it, in whichever order, `finish` returns a history without violations.
    """

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.channels = {name: Channel(name, self.rng) for name in "abc"}
        self.records: list[Record] = [
            Scope(conflating=("c",), archived=("a", "b"), tellings=1_000, loses=True, cuts_s=5)
        ]
        self.number = 0
        self.members: set[str] = set()
        self.clients = [
            Client(f"{name}{n}", channel) for name, channel in self.channels.items() for n in (1, 2)
        ]
        for client in self.clients:
            self.come(client, None)
        self.add(Fault, name="first", begins=True)
        self.add(Fault, name="first", begins=False)

    def add(self, kind: type[Record], **fields: object) -> None:
        """Record something that happens now."""
        self.now += 0.01
        self.records.append(kind(at=self.now, **fields))  # type: ignore[arg-type]

    def publish(self, channel: str, outcome: Outcome, *, happens: bool = True) -> None:
        """Publish an event, once or (where the outcome is unknown) until that is known."""
        self.number += 1
        self.now += 0.01
        event_id, where = f"e{self.number}", ""
        if outcome != "refused" and happens:
            where = self.channels[channel].add(event_id, f"data of {event_id}")
        fields = {
            "began": self.now,
            "publisher": "p",
            "channel": channel,
            "id": event_id,
            "data": f"data of {event_id}",
        }
        position = where if outcome == "acknowledged" else ""
        self.add(Publish, outcome=outcome, position=position, **fields)
        if outcome == "unknown" and where and self.number % 2:
            self.add(Publish, outcome="acknowledged", position=where, duplicate=True, **fields)

    def deliver(self, client: Client, number: int = 1_000_000) -> None:
        """Let a client have the next events."""
        channel = client.channel
        skipped = 0
        if channel.name == "c" and len(channel.events) - client.has > 2:
            skipped = len(channel.events) - client.has - 1
        for position, event_id, data in channel.events[client.has + skipped :][:number]:
            self.add(
                Delivery,
                client=client.name,
                session=client.session,
                channel=channel.name,
                position=position,
                id=event_id,
                data=data,
                skipped=skipped,
            )
            client.has += 1 + skipped
            client.position = position
            skipped = 0

    def come(self, client: Client, recovered: bool | None) -> None:
        """Begin a session, which goes on where the client was unless it is told otherwise."""
        client.session = f"s{len(self.records)}"
        if not recovered:
            client.has, client.position = len(client.channel.events), client.channel.top
        self.add(
            Subscribed,
            client=client.name,
            session=client.session,
            channel=client.channel.name,
            position=client.position,
            recovered=recovered,
        )

    def go(self, client: Client) -> None:
        """End its session, by a code or by a cut while a fault lasts."""
        about = {"client": client.name, "session": client.session}
        if self.number % 2:
            self.add(Closed, code=4001, told=True, **about)
            return
        self.add(Fault, name="cut", begins=True)
        self.add(Closed, **about)
        self.add(Fault, name="cut", begins=False)

    def fork(self, channel: Channel) -> None:
        """Lose the tail of a channel, of which somebody saw the first; a new epoch, all told."""
        offset = int(channel.top.split("-")[1])
        channel.begin(offset)
        for client in self.clients:
            if client.channel is channel:
                client.has, client.position = 0, channel.top
                self.add(
                    Reset,
                    client=client.name,
                    session=client.session,
                    channel=channel.name,
                    position=channel.top,
                )

    def enter(self, here: bool) -> None:
        """Let somebody enter the room, or leave; everybody sees it a little later."""
        if here:
            member = f"m{self.number}-{len(self.records)}"
            self.members.add(member)
        elif self.members:
            member = min(self.members)
            self.members.remove(member)
        else:
            return
        self.add(Present, channel=ROOM, member=member, here=here)
        self.see()

    def see(self) -> None:
        self.now += 1
        for client in self.clients[:2]:
            self.add(Seen, client=client.name, channel=ROOM, members=tuple(sorted(self.members)))

    def stale(self) -> None:
        """Show a wrong room for long, since a fault lasts."""
        self.see()
        self.add(Fault, name="away", begins=True)
        self.members.add(ghost := f"ghost{len(self.records)}")
        self.add(Present, channel=ROOM, member=ghost, here=True)
        self.now += 60
        self.add(Fault, name="away", begins=False)
        self.see()

    def step(self, number: int) -> None:
        """Do one of the things that happen."""
        client = self.clients[number % len(self.clients)]
        name = client.channel.name
        match number // len(self.clients) % 9:
            case 0 | 1:
                self.publish(name, "acknowledged")
            case 2:
                self.publish(name, "unknown", happens=bool(number % 3))
            case 3:
                self.publish(name, "refused")
            case 4:
                self.deliver(client, 1 + number % 3)
            case 5:
                self.go(client)
                self.come(client, True)
            case 6:
                self.go(client)
                self.come(client, False)
            case 7 if number % 4 == 0:
                self.fork(client.channel)
            case 7:
                self.enter(bool(number % 3))
            case 8:
                self.stale()

    def finish(self) -> list[Record]:
        """Let everybody have everything, and return the history."""
        self.see()
        for client in self.clients:
            self.deliver(client)
        self.add(Drained)
        self.now += 1
        for name in "ab":
            self.add(Dump, store="archive", channel=name, events=tuple(self.channels[name].kept))
        return self.records
