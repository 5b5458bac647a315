"""Clients and publishers that record what they see, for the checker."""

import asyncio
import json
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from websockets import Subprotocol
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from checker.records import (
    Closed,
    Delivery,
    Fault,
    Outcome,
    Present,
    Publish,
    Record,
    Reset,
    Seen,
    Strange,
    Subscribed,
)
from fleet import KEY, make_token
from fleet_clients import LOST, Follower, MsgpackFollower, StreamFollower, WebSocketFollower
from fleet_http import Answer, Exchange
from fleet_publishers import Publisher
from one_session import JSON, decode, encode

# How long a publisher waits for an answer before it asks another node.
ATTEMPT_S: Final = 4.0
# From here on close codes say that a client is to stay away.
STAY_AWAY: Final = 4500
# No close frame came: the connection is open, it was cut, or only its stream of bytes has ended.
CUT: Final = (0, 1005, 1006)
# For how long clients may stand still without that being a fault: pings come every 2 s.
_STILL_S: Final = 0.5


class Recorder:
    """The history of a run, as it comes."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.acknowledged = 0
        self._began = time.monotonic()

    @property
    def now(self) -> float:
        """Seconds since the history began."""
        return time.monotonic() - self._began

    def add(self, kind: type[Record], **fields: Any) -> None:
        """Record something that happens now."""
        self.records.append(kind(at=self.now, **fields))

    async def note_stalls(self) -> None:
        """Record as a fault whenever all clients stood still, until this is cancelled.

        Whoever answers no ping is cut, and what came meanwhile is yet to be read.
        """
        while True:
            before = self.now
            await asyncio.sleep(0.1)
            if self.now - before > _STILL_S:
                name = "clients stood still"
                self.records.append(Fault(at=before, name=name, begins=True))
                self.add(Fault, name=name, begins=False)


class RecordedFollower(Follower):
    """A client that records; each connection is to the next of `urls`.

    It is the `number`th: it begins with another of them. With `user`, it is a member of its
    channels, and records who it sees there.
    """

    code = 0

    def __init__(
        self,
        recorder: Recorder,
        urls: Sequence[str],
        channels: Sequence[str],
        number: int,
        user: str | None,
    ) -> None:
        self.name = f"{type(self).__name__.removeprefix('Recorded')}-{number}"
        self._recorder = recorder
        self._urls = urls
        self._number = number
        self._user = user
        # What the server said that the session ends with, and whether it said that it does.
        self._said, self._told = 0, False
        super().__init__(urls[0], None, channels, user=user)

    def on_begin(self) -> None:
        super().on_begin()
        self.code = self._said = 0
        self._told = False
        if self._user is not None:
            self.bearer = make_token(self._user)
        self.url = self._urls[self._number % len(self._urls)]
        self._number += 1

    def on_end(self, error: Exception | None) -> None:
        super().on_end(error)
        if isinstance(error, ConnectionClosed) and error.rcvd and error.rcvd.code >= STAY_AWAY:
            self._strange(f"closed with {error.rcvd}")
        self._leave(repr(error)[:100], last=False)

    async def depart(self) -> None:
        """Go for good, which is no loss of a session."""
        self._leave("", last=True)
        await self.close()

    def _leave(self, reason: str, *, last: bool) -> None:
        if not self.session and not last:
            return
        about = {"client": self.name, "session": self.session}
        code = self._said if self.code in CUT else self.code
        if self._said not in (0, code):
            self._strange(f"was to be closed with {self._said}, and was with {code}")
        self._recorder.add(Closed, last=last, code=code, told=self._told, reason=reason, **about)
        if self.presence:
            for channel in self.channels:
                self._recorder.add(Seen, client=self.name, channel=channel, members=None)
                self._recorder.add(Present, channel=channel, member=self.session, here=False)
        self.session = ""

    def take(self, message: dict[str, Any]) -> None:
        channel, place = message.get("channel"), message.get("position")
        about = {"client": self.name, "session": self.session, "channel": channel}
        match message["type"]:
            case "event":
                skipped, data = message.get("skipped", 0), message["data"]
                self._recorder.add(
                    Delivery,
                    position=place,
                    id=message["id"],
                    data=data,
                    skipped=skipped,
                    **about,
                )
            case "subscribed":
                recovered = message.get("recovered")
                self._recorder.add(Subscribed, position=place, recovered=recovered, **about)
                if self.presence:
                    self._recorder.add(Present, channel=channel, member=self.session, here=True)
            case "closing":
                self._said, self._told = message["code"], True
            case "error":
                self._told = True
            case "expiring":
                # It comes back with a new token.
                return
            case "reset":
                self._recorder.add(Reset, position=place, **about)
        super().take(message)
        if self.presence and message["type"] in ("subscribed", "presence"):
            members = tuple(sorted(self.channels[message["channel"]].members))
            self._recorder.add(Seen, client=self.name, channel=channel, members=members)
        for each in self.unexpected:
            self._strange(str(each))
        self.unexpected.clear()

    def _strange(self, text: str) -> None:
        self._recorder.add(Strange, who=self.name, text=text)

    @property
    def task(self) -> "asyncio.Task[None]":
        return self._task


class RecordedWebSocket(RecordedFollower, WebSocketFollower):
    """Over WebSocket, in JSON."""


class RecordedMsgpack(RecordedFollower, MsgpackFollower):
    """Over WebSocket, in MessagePack."""


class RecordedRated(RecordedWebSocket):
    """Over WebSocket, with a rate that leaves events out."""

    max_rate_hz = 5.0


class RecordedStalling(RecordedWebSocket):
    """Over WebSocket; it reads while `reading` is set, and has buffers that hold little."""

    narrow = True

    def __init__(self, *about: Any) -> None:
        self.reading = asyncio.Event()
        self.reading.set()
        super().__init__(*about)

    async def before_reading(self) -> None:
        await self.reading.wait()


class RecordedStream(RecordedFollower, StreamFollower):
    """Over Server-Sent Events."""


# A bad one in so many events of a publisher; it is to be refused, and never to come.
BAD_ONE_IN: Final = 9
BATCH: Final = 4
# What is added to the data of events that are heavy.
PADDING: Final = "." * 2_000


class RecordedPublisher(Publisher):
    """A publisher that records, and asks another of `urls` when one does not answer well.

    `how` as in `Publisher`, or "batch": arrays of events with ids. What is not answered with
    200 or refused for good is sent again with the same id until it is. Events of the channels
    `heavy` are large.
    """

    def __init__(
        self,
        recorder: Recorder,
        urls: Sequence[str],
        number: int,
        channels: Sequence[str],
        how: str,
        heavy: Collection[str] = (),
    ) -> None:
        self._recorder = recorder
        self._heavy = heavy
        self._urls = urls
        self._number = number
        # How often it tried, and how many times it had a good answer.
        self.attempts = 0
        self.done = 0
        super().__init__(
            urls[number % len(urls)],
            None,
            f"p{number}",
            channels,
            how=how,
            pause_s=0.04,
            patient=True,
        )

    async def _publish(self, channel: str, name: str) -> bool:
        events = [{"channel": channel, "data": name, "id": name}]
        if self._how == "batch":
            events = [
                {"channel": each, "data": f"{name}.{n}", "id": f"{name}.{n}"}
                for n in range(BATCH)
                for each in [self._channels[n % len(self._channels)]]
            ]
        elif int(name[-6:]) % BAD_ONE_IN == BAD_ONE_IN - 1:
            events[0]["tags"] = {"number": 1}  # type: ignore[assignment]
        for event in events:
            if event["channel"] in self._heavy:
                event["data"] += PADDING
        began = self._recorder.now
        self.attempts += 1
        answer = await self._ask(events)
        outcomes = [self._outcome(answer, place) for place in range(len(events))]
        for event, (outcome, result) in zip(events, outcomes, strict=True):
            self._recorder.add(
                Publish,
                began=began,
                publisher=self.name,
                channel=event["channel"],
                id=event["id"],
                data=event["data"],
                outcome=outcome,
                position=result.get("position", "") if outcome == "acknowledged" else "",
                duplicate=result.get("duplicate", False),
            )
            self._recorder.acknowledged += outcome == "acknowledged"
        if any(outcome == "unknown" for outcome, _result in outcomes):
            self._next_node()
            return False
        self.done += 1
        return True

    async def _ask(self, events: list[dict[str, str]]) -> Answer | None:
        """Return the answer; None where none came."""
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        body: Any = events if self._how == "batch" else events[0]
        if self._how == "key":
            headers["Idempotency-Key"] = body["id"]
            body = {name: value for name, value in body.items() if name != "id"}
        try:
            async with asyncio.timeout(ATTEMPT_S):
                if self._exchange is None:
                    self._exchange = await Exchange.open(self.url, None)
                answer = await self._exchange.ask("POST", "/v1/events", body, headers=headers)
        except LOST:
            self._drop()
            return None
        if answer.headers.get("connection") == "close":
            self._drop()
        return answer

    def _outcome(self, answer: Answer | None, place: int) -> tuple[Outcome, dict[str, Any]]:
        if answer is None:
            return "unknown", {}
        found = json.loads(answer.body)
        if answer.status == 200 and self._how == "batch":
            found = found["results"][place]
            found = found.get("error", found)
        if answer.status == 200 and "code" not in found:
            return "acknowledged", found
        if not found["retry"] and found["code"] in ("bad_request", "invalid_data"):
            return "refused", found
        if not found["retry"]:
            self._recorder.add(Strange, who=self.name, text=f"{answer.status} {found}")
        return "unknown", found

    def _next_node(self) -> None:
        self._drop()
        self._number += 1
        self.url = self._urls[self._number % len(self._urls)]


class RecordedSocketPublisher(RecordedPublisher):
    """The same over WebSocket: each `publish` waits for its `published`, or an `error`."""

    _socket: ClientConnection | None = None
    _ref = 0

    async def _ask(self, events: list[dict[str, str]]) -> Answer | None:
        self._ref += 1
        try:
            async with asyncio.timeout(ATTEMPT_S):
                if self._socket is None:
                    self._socket = await connect(
                        self.url.replace("http", "ws", 1) + "/v1/ws",
                        subprotocols=[Subprotocol(JSON)],
                        additional_headers={"Authorization": f"Bearer {KEY}"},
                        compression=None,
                        proxy=None,
                    )
                command = {"type": "publish", "ref": self._ref, **events[0]}
                await self._socket.send(encode(JSON, command))
                while True:
                    message = decode(JSON, await self._socket.recv())
                    if message.get("ref") == self._ref:
                        break
        except LOST:
            self._drop()
            return None
        # As if HTTP had said so.
        status = 200 if message["type"] == "published" else 400
        return Answer(status, {}, json.dumps(message).encode())

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.transport.abort()
            self._socket = None


KINDS: Final[Sequence[Callable[..., RecordedFollower]]] = (
    RecordedWebSocket,
    RecordedMsgpack,
    RecordedStream,
    RecordedRated,
)
