"""How does an event reach every node? This file: which server of a cluster has which slot."""

from collections.abc import Sequence
from typing import Any, Final

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from pubsub.redis_client import Part
from pubsub.redis_url import Endpoint

# Commands in use that any server answers for itself.
_KEYLESS: Final = frozenset({"PING", "TIME", "INFO", "CONFIG", "COMMAND", "CLUSTER"})
_SCRIPTS: Final = frozenset({"EVAL", "EVALSHA"})
# Servers that do not know their own name answer so; it is the one that was asked.
_NAMELESS: Final = (None, b"", b"?")


class SlotMap:
    """Who owns each slot, as one server told it.

    `owners` has the masters that own slots, `replicas` theirs.
    """

    __slots__ = ("_by_slot", "owners", "replicas")

    def __init__(
        self,
        by_slot: Sequence[Endpoint | None] = (),
        replicas: frozenset[Endpoint] = frozenset(),
    ) -> None:
        self._by_slot = list(by_slot) or [None] * REDIS_CLUSTER_HASH_SLOTS
        self.owners = frozenset(each for each in self._by_slot if each is not None)
        self.replicas = replicas

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SlotMap) and self._by_slot == other._by_slot

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return bool(self.owners)

    def owner(self, slot: int) -> Endpoint | None:
        """Return the master that owns a slot, None if nobody does."""
        return self._by_slot[slot]

    def moved(self, slot: int, owner: Endpoint) -> "SlotMap":
        """Return the map in which one slot has another owner."""
        by_slot = self._by_slot.copy()
        by_slot[slot] = owner
        return SlotMap(by_slot, self.replicas)


def read_slots(answer: Any, asked: Endpoint) -> SlotMap:
    """Read the answer to CLUSTER SLOTS of the server `asked`; raises ValueError if it is none.

    https://redis.io/docs/latest/commands/cluster-slots/
    """
    by_slot: list[Endpoint | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
    replicas: set[Endpoint] = set()
    try:
        for first, last, master, *others in answer:
            if not 0 <= first <= last < REDIS_CLUSTER_HASH_SLOTS:
                raise ValueError
            by_slot[first : last + 1] = [_endpoint(master, asked)] * (last + 1 - first)
            replicas.update(_endpoint(each, asked) for each in others)
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError("it is no list of slots") from error
    return SlotMap(by_slot, frozenset(replicas))


def slot_of_key(key: str) -> int:
    """Return the slot of a key, or of a sharded pub/sub channel."""
    return key_slot(key.encode())


def slot_of(command: Sequence[Part]) -> int | None:
    """Return the slot of a command by its first key, None if any server may answer it."""
    name = command[0]
    if name in _KEYLESS:
        return None
    key = command[3 if name in _SCRIPTS else 1]
    return slot_of_key(key) if isinstance(key, str) else key_slot(bytes(key))


def _endpoint(said: Sequence[Any], asked: Endpoint) -> Endpoint:
    host = asked.host if said[0] in _NAMELESS else said[0].decode()
    return Endpoint(host, int(said[1]))
