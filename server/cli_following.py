"""Who is connected here? This file: what `tail` has seen, and how it goes on (pure).

No event is lost and none comes twice: every session begins behind the last position that was heard
of (`subscribed`, `event`, `reset`).
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import Raw

from server.cli_output import CommandFailed

# Codes from here on tell a client to stay away (server.closing).
_STAY_AWAY: Final = range(4500, 5000)
NO_CLOSE_FRAME: Final = 1006
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_PING_S: Final = 25.0
_SILENT_PINGS: Final = 1.5


class Said(msgspec.Struct):
    """Any message of the server; what a type does not have is empty."""

    type: str = ""
    ref: int | None = None
    channel: str = ""
    position: str = ""
    name: str = ""
    data: Raw = Raw(b"null")
    time: int = 0
    skipped: int = 0
    recovered: bool | None = None
    code: str | int = ""
    message: str = ""
    reason: str = ""
    retry: bool = False
    retry_in_ms: int = 0
    ping_s: float = 0
    in_s: int = 0


class Heard(msgspec.Struct):
    """What follows from a message: an event to show, notes to tell, commands to send."""

    event: Said | None = None
    notes: list[str] = []
    commands: list[str] = []


class Following:
    """The channels that are followed, and the position of each; `since` and `rewind` begin.

    With `max_rate_hz` it is the newest events, at most so many of each channel a second.
    `later` holds channels whose subscription was refused for now; `opened` says that a session
    was open once.
    """

    def __init__(
        self,
        channels: Iterable[str],
        since: str | None,
        rewind: int | None,
        max_rate_hz: float | None = None,
    ) -> None:
        self.positions: dict[str, str | None] = dict.fromkeys(channels, since)
        self.later: list[str] = []
        self.opened = False
        self._rewinds = dict.fromkeys(self.positions, rewind) if rewind else {}
        self._max_rate_hz = max_rate_hz
        self._ref = 0
        self._asked: dict[int, str] = {}
        self._ping_s = _PING_S
        self._closing: Said | None = None

    @property
    def silence_s(self) -> float:
        """How long the server may say nothing before it is asked for a sign of life."""
        return _SILENT_PINGS * self._ping_s

    def begin(self, *, anonymous: bool) -> list[str]:
        """Begin a new session; return what to send first."""
        self._ref = 0
        self._asked.clear()
        self.later.clear()
        self._closing = None
        return [self._command(type="connect")] if anonymous else []

    def ping(self) -> str:
        """Return the command that asks for a sign of life."""
        return self._command(type="ping")

    def subscribe_later(self) -> list[str]:
        """Return the commands for what was refused for now."""
        channels, self.later = self.later, []
        return [self._subscribe(channel) for channel in channels]

    def pause_s(self, attempt: int, draw: float) -> float:
        """Return how long to stay away: full jitter (`draw` is 0 to 1) behind what was asked for.

        `attempt` counts from 0.
        """
        asked_s = self._closing.retry_in_ms / 1000 if self._closing is not None else 0.0
        return asked_s + draw * min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * (1 << min(attempt, 16)))

    def closed(self, code: int, reason: str) -> str:
        """Return why the session is over; raises CommandFailed if the client shall stay away.

        `code` is that of the close frame, 1006 without one; what the server said before counts
        for more.
        """
        if self._closing is not None:
            code, reason = int(self._closing.code), self._closing.reason
        elif code == NO_CLOSE_FRAME:
            return f"the connection was lost ({reason})"
        text = f"the server ended the session: {code} {reason.replace('_', ' ')}".rstrip()
        if code in _STAY_AWAY:
            raise CommandFailed(text)
        return text

    def receive(self, text: str | bytes) -> Heard:
        """Take a message of the server.

        Raises CommandFailed if it cannot be read, or leaves nothing to follow.
        """
        try:
            said = msgspec.json.decode(text, type=Said)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise CommandFailed("this server does not speak the event server's protocol") from None
        heard = Heard()
        match said.type:
            case "event":
                self._move(said)
                heard.event = said
            case "connected":
                self.opened = True
                self._ping_s = said.ping_s or _PING_S
                heard.commands = [self._subscribe(channel) for channel in self.positions]
            case "subscribed":
                self._on_subscribed(said, heard)
            case "reset":
                self._move(said)
                heard.notes.append(f"{said.channel}: continuity was lost; events may be missing")
            case "unsubscribed":
                self._drop(said.channel, f"{said.code}: {said.message}", heard)
            case "error":
                self._on_error(said, heard)
            case "expiring":
                heard.notes.append(f"the token expires in {said.in_s} s")
            case "closing":
                self._closing = said
        return heard

    def _move(self, said: Said) -> None:
        if said.channel in self.positions:
            self.positions[said.channel] = said.position

    def _on_subscribed(self, said: Said, heard: Heard) -> None:
        self._asked.pop(said.ref or 0, None)
        self._rewinds.pop(said.channel, None)
        before = self.positions.get(said.channel)
        self._move(said)
        if said.recovered is False:
            text = f"{said.channel}: could not be resumed behind {before}; events may be missing"
            heard.notes.append(text)

    def _on_error(self, said: Said, heard: Heard) -> None:
        channel = self._asked.pop(said.ref or 0, None)
        text = f"{said.code}: {said.message}"
        if channel is None:
            if not self.opened and said.ref is not None and not said.retry:
                raise CommandFailed(f"no session: {text}")
            heard.notes.append(text)
        elif said.retry:
            self.later.append(channel)
        else:
            self._drop(channel, text, heard)

    def _drop(self, channel: str, why: str, heard: Heard) -> None:
        self.positions.pop(channel, None)
        if not self.positions:
            raise CommandFailed(f"{channel}: {why}")
        heard.notes.append(f"{channel} is followed no more: {why}")

    def _subscribe(self, channel: str) -> str:
        command: dict[str, Any] = {"type": "subscribe", "channel": channel}
        if (position := self.positions[channel]) is not None:
            command["since"] = position
        if (rewind := self._rewinds.get(channel)) is not None:
            command["rewind"] = rewind
        if self._max_rate_hz is not None:
            command["max_rate_hz"] = self._max_rate_hz
        text = self._command(**command)
        self._asked[self._ref] = channel
        return text

    def _command(self, **fields: Any) -> str:
        self._ref += 1
        return msgspec.json.encode({**fields, "ref": self._ref}).decode()


def event_line(event: Said) -> str:
    """Return an event as a line for a person: local time, channel, name, data, what was skipped."""
    try:
        at = datetime.fromtimestamp(event.time / 1000).isoformat(" ", "milliseconds")
    except (ValueError, OverflowError, OSError):
        at = str(event.time)
    skipped = f"  ({event.skipped} skipped)" if event.skipped else ""
    return f"{at}  {event.channel}  {event.name}  {bytes(event.data).decode()}{skipped}"
