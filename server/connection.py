"""Who is connected here? This file: what a session needs of its connection (handlers give it)."""

from collections.abc import Callable, Sequence
from typing import Protocol

from pubsub.event import Event
from server.closing import Closing
from server.codec import Codec
from server.protocol import Message


class Wire(Protocol):
    """How messages look on one kind of connection; one object serves all connections of a kind.

    `transport` (ws, sse) and `label` (the encoding) name the kind in metrics. Where `individual` is
    set, an event's bytes differ from session to session, and the session composes them itself
    (`Session.send_events`).
    """

    transport: str
    label: str
    codec: Codec
    individual: bool

    def event(self, event: Event, skipped: int = 0) -> bytes:
        """Return the bytes of an event, the same for every session of this wire.

        `skipped` is how many events of the channel were left out directly before it.
        """
        ...

    def message(self, message: Message) -> bytes:
        """Return the bytes of any other message."""
        ...


class Connection(Protocol):
    """A socket that takes bytes without waiting. Plain calls: none waits, none raises."""

    unsent: int
    """Bytes taken that the kernel has not taken yet."""

    def send(self, data: bytes) -> None:
        """Write what the kernel takes, keep the rest; over the limit the session is told later."""

    def clear(self) -> bool:
        """Say whether so little is unsent that a replay may go on."""
        ...

    def pause(self) -> None:
        """Read no more from the client for now."""

    def resume(self) -> None:
        """Read on."""

    def close(self, closing: Closing, last: bytes = b"") -> None:
        """Send `last`, then end the connection as its kind does; nothing is sent after that."""

    async def drained(self) -> bool:
        """Wait until little is unsent; False when the connection ended. Safe to cancel."""
        ...


class Peer(Protocol):
    """What a connection tells its session. Plain calls."""

    def on_messages(self, payloads: Sequence[bytes]) -> None:
        """Complete messages came."""

    def on_slow(self) -> None:
        """The limit of unsent bytes was met; called once, from the loop, never within a send."""

    def on_room(self) -> None:
        """Little is unsent, after there was something. From the loop, never within a send."""

    def on_violation(self, closing: Closing) -> None:
        """The client broke the protocol or a limit of it, or gave no sign of life."""

    def on_goodbye(self, answer: Callable[[], None]) -> None:
        """The client closes: carry out what came before, let go of everything, then `answer`."""

    def on_lost(self) -> None:
        """The connection is over; called at most once, whoever ended it."""
