"""Where are events kept? This file: the names of all keys and pub/sub channels in Redis (pure).

    {prefix:p<n>}:r:<channel>    record (hash)
    {prefix:p<n>}:s:<channel>    stream of events
    {prefix:p<n>}:i0:<channel>   first and second generation of published ids (hashes)
    {prefix:p<n>}:i1:<channel>
    {prefix:p<n>}:f0:<channel>   the same of ids that schedules had, of which there may be none
    {prefix:p<n>}:f1:<channel>
    {prefix:p<n>}:known          the partition's channels by when they lapse (sorted set)
    {prefix:p<n>}:active         the partition's active channels by name (sorted set)
    {prefix:p<n>}:due            the partition's active channels by when to look (sorted set)
    {prefix:p<n>}:q              the partition's queue of the archive (stream)
    {prefix:p<n>}:g              notes that wait for room in it, by channel (hash)
    {prefix:p<n>}:c:<channel>    pub/sub channel of a channel's envelopes
    {prefix:p<n>}:m:<channel>    members by session (hash)
    {prefix:p<n>}:o:<channel>    sessions of the members in order (sorted set)
    {prefix:p<n>}:v:<channel>    version of the presence set
    {prefix:p<n>}:e:<generation> what one life of a node entered in the partition (set)
    {prefix:p<n>}:lives          lives that have entries in the partition (set)
    {prefix:n}:leases            lives of nodes by when their lease ends (sorted set)
    {prefix:n}:claims            who cleans up behind a dead node (hash)
    {prefix:n}:steady            since when lives renew their leases without a gap (hash)
    {prefix:n}:archivists        nodes that archive by when their lease ends (sorted set)
    {prefix:n}:shares            which of them archives which partition (hash)
    {prefix:n}:nodes             pub/sub channel to all nodes
    {prefix:n}:node:<node>       pub/sub channel to one node
    {prefix:n}:taken:<digest>    who took what can be taken once
    {prefix:n}:notices:<topic>   notices by name (hash)
    {prefix:n}:changed:<topic>   their names by revision (sorted set)
    {prefix:n}:ends:<topic>      their names by when they end (sorted set)
    {prefix:n}:state:<topic>     epoch and revision of a topic's notices (hash)

A channel belongs to one partition, by a hash of its name, and all that a script touches is in one
partition, so in one slot of a cluster. The number of partitions can never change for a prefix.
"""

import re
from typing import Final
from zlib import crc32

PARTITIONS: Final = 64


class _Send(str):
    __slots__ = ()


# How envelopes are sent. It stands as an argument of scripts, and a topology that has sharded
# pub/sub puts SPUBLISH in its place when it sends them: which it is cannot be known before it has
# seen the servers, and no event can have this very object in it.
SEND: Final = _Send("PUBLISH")

_is_prefix = re.compile(r"[A-Za-z0-9_.:-]{1,64}").fullmatch


class RedisKeys:
    """The names under one prefix; raises ValueError if that is not 1 to 64 of `A-Za-z0-9_.:-`."""

    send: Final = SEND

    def __init__(self, prefix: str = "galecast", partitions: int = PARTITIONS) -> None:
        if _is_prefix(prefix) is None:
            raise ValueError("a key prefix is 1 to 64 of A-Z a-z 0-9 _ . : -")
        self.prefix = prefix
        self.partitions = partitions
        # All that concerns nodes is in one slot: it is little, and asked for together.
        self._nodes = f"{{{prefix}:n}}"
        self.nodes = f"{self._nodes}:nodes"
        self.leases = (f"{self._nodes}:leases", f"{self._nodes}:claims", f"{self._nodes}:steady")
        self.shares = (f"{self._nodes}:archivists", f"{self._nodes}:shares")
        self._tags = [f"{{{prefix}:p{number}}}" for number in range(partitions)]
        self._lists = [(f"{tag}:known", f"{tag}:active", f"{tag}:due") for tag in self._tags]
        self._queues = [(f"{tag}:q", f"{tag}:g") for tag in self._tags]

    def partition(self, channel: str) -> int:
        """Return the partition of a channel: the same on all nodes, for ever."""
        return crc32(channel.encode()) % self.partitions

    def record(self, channel: str) -> str:
        """Return the key of a channel's record."""
        return f"{self._tag(channel)}:r:{channel}"

    def stream(self, channel: str) -> str:
        """Return the key of a channel's stream."""
        return f"{self._tag(channel)}:s:{channel}"

    def ids(self, channel: str) -> tuple[str, str]:
        """Return the keys of the two generations of a channel's ids."""
        tag = self._tag(channel)
        return f"{tag}:i0:{channel}", f"{tag}:i1:{channel}"

    def fired(self, channel: str) -> tuple[str, str]:
        """Return the keys of the two generations of ids that schedules of a channel had."""
        tag = self._tag(channel)
        return f"{tag}:f0:{channel}", f"{tag}:f1:{channel}"

    def lists(self, partition: int) -> tuple[str, str, str]:
        """Return the keys of a partition's lists: known, active, due."""
        return self._lists[partition]

    def queue(self, partition: int) -> tuple[str, str]:
        """Return the keys of a partition's queue of the archive: queue, gaps."""
        return self._queues[partition]

    def address(self, channel: str) -> str:
        """Return the pub/sub channel on which a channel's envelopes travel."""
        return f"{self._tag(channel)}:c:{channel}"

    def presence(self, channel: str) -> tuple[str, str, str]:
        """Return the keys of a channel's presence set: members, order, version."""
        tag = self._tag(channel)
        return f"{tag}:m:{channel}", f"{tag}:o:{channel}", f"{tag}:v:{channel}"

    def entries(self, partition: int, generation: str) -> str:
        """Return the key of what one life of a node entered in a partition."""
        return f"{self._tags[partition]}:e:{generation}"

    def lives(self, partition: int) -> str:
        """Return the key of the lives that have entries in a partition."""
        return f"{self._tags[partition]}:lives"

    def node(self, name: str) -> str:
        """Return the pub/sub channel to one node."""
        return f"{self._nodes}:node:{name}"

    def taken(self, digest: str) -> str:
        """Return the key of what can be taken once."""
        return f"{self._nodes}:taken:{digest}"

    def notices(self, topic: str) -> tuple[str, str, str, str]:
        """Return the keys of a topic's notices: notices, changed, ends, state."""
        nodes = self._nodes
        return (
            f"{nodes}:notices:{topic}",
            f"{nodes}:changed:{topic}",
            f"{nodes}:ends:{topic}",
            f"{nodes}:state:{topic}",
        )

    def _tag(self, channel: str) -> str:
        return self._tags[crc32(channel.encode()) % self.partitions]
