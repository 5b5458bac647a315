"""How do nodes act as one? This file: what nodes tell each other beside events, the interface."""

from typing import Protocol

import msgspec


class Answers(msgspec.Struct, frozen=True):
    """What the living nodes answered to an order, by their names.

    `silent` are those that live, as far as is known, but did not answer in time, or could not.
    """

    answers: dict[str, bytes]
    silent: tuple[str, ...]


class ControlSink(Protocol):
    """What a node offers to its control."""

    async def on_order(self, order: bytes) -> bytes:
        """Carry out an order that any node gave and return the answer; raises nothing.

        Called in tasks of their own, up to a hundred at once; cancelled by `close`. An answer of
        more than 512 KiB is not sent, so that the node counts as silent.
        """
        ...

    def on_notice(self, topic: str, name: str, at_s: float, until_s: float) -> None:
        """Learn that something holds of `name` since `at_s` until `until_s` (s since 1970).

        May come again, and late; of several for one name the latest `at_s` counts, and of two of
        the same time the one that holds longer. A plain call that neither waits nor raises.
        """


class Control(Protocol):
    """Carries orders and notices between nodes. Calls raise BrokerUnavailable; safe to cancel.

    Orders, topics and names are the caller's: one that is too large, or not a topic that was given
    at construction, raises ValueError.
    """

    def bind(self, sink: ControlSink) -> None:
        """Say who carries orders out and learns of notices; called once, before `start`."""
        ...

    async def start(self) -> None:
        """Begin to listen, now or as soon as it can; called once, on the node's loop."""
        ...

    def problem(self) -> str | None:
        """Return what keeps this node from hearing orders and notices, or None.

        Until it is None for the first time, this node does not know what others told before.
        """
        ...

    async def ask(self, order: bytes) -> Answers:
        """Give an order to all living nodes, this one included, and return their answers.

        Returns as soon as all have answered, or when the time for answers is over. It may have been
        carried out by nodes that are silent, and is carried out at most once by each. If this
        raises BrokerUnavailable it is not carried out here (unless `close` came between), elsewhere
        it may be. At most 64 KiB. Orders in flight are bounded: one too many raises
        BrokerUnavailable.
        """
        ...

    async def take(self, name: str, ttl_s: float) -> bool:
        """Take what can be taken once; False if any node took it within the last `ttl_s`.

        `ttl_s` is that of whoever took it. After BrokerUnavailable it may be taken or not.
        """
        ...

    async def notify(self, topic: str, name: str, at_s: float, until_s: float) -> None:
        """Let all nodes know, also those that start later, before `until_s` (s since 1970).

        When this returns it is kept, and this node's sink knows: other nodes that are there hear of
        it within a moment, at the latest when they next compare. The latest of several for one name
        is kept; of more than can be kept (100,000 per topic) the oldest goes. What has ended
        already is not told. Names are 1 to 1,024 bytes. After BrokerUnavailable each node, this one
        included, may have been told or not.
        """
        ...

    async def close(self) -> None:
        """Stop listening, end what is carried out; may be called twice.

        To be called before the broker's.
        """
        ...
