"""Who is present in a channel, over all nodes? This file: that Redis holds what a node entered.

A node keeps what it entered in memory, and makes Redis hold the same: after each call, and by
comparing both where that is in doubt. So nothing that was missed need be queued, and a Redis that
forgot gets it back.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from pubsub.envelope import pack_member
from pubsub.errors import BrokerUnavailable
from pubsub.node_lease import NodeLease, generation_of
from pubsub.presence import Member
from pubsub.presence_scripts import PresenceScripts
from pubsub.redis_channels import gather
from pubsub.redis_client import Part
from pubsub.redis_keys import RedisKeys
from pubsub.redis_link import RedisLink

_log = logging.getLogger(__name__)

# Members in one script: it holds all of Redis up meanwhile.
_BATCH: Final = 100
_SCANNED: Final = 1_000
# The version of an empty set outlives whoever may have seen it, but for those who watch: they
# prolong it.
KEEP_MS: Final = 600_000
# Between the channel and the session of an entry; in neither of them.
_SEPARATOR: Final = "\0"


class _Set:
    """What this node entered in one channel, and what Redis has yet to be told of it."""

    __slots__ = ("channel", "due", "members", "partition", "pushing")

    def __init__(self, channel: str, partition: int) -> None:
        self.channel = channel
        self.partition = partition
        self.members: dict[str, Member] = {}
        # By session, those who wait until Redis was told.
        self.due: dict[str, list[asyncio.Future[None]]] = {}
        self.pushing: asyncio.Task[None] | None = None


class NodeEntries:
    """What this node entered, by partition and channel.

    Calls for one channel reach Redis in batches, one after another. Where one failed, Redis may
    hold something else; whoever owns this calls `tell_doubtful` and `compare` now and then.
    """

    def __init__(
        self,
        link: RedisLink,
        scripts: PresenceScripts,
        keys: RedisKeys,
        lease: NodeLease,
        now: Callable[[], int | str],
    ) -> None:
        self._link = link
        self._scripts = scripts
        self._keys = keys
        self._lease = lease
        self._now = now
        self._sets: list[dict[str, _Set]] = [{} for _ in range(keys.partitions)]
        self._pushes: set[asyncio.Task[None]] = set()
        # Partitions in which Redis may hold something else.
        self._doubtful: set[int] = set()

    def doubt_all(self) -> None:
        """Let all be compared."""
        self._doubtful.update(range(self._keys.partitions))

    async def put(self, channel: str, member: Member) -> None:
        """Enter a member; raises BrokerUnavailable, and then all is to be as it was before."""
        kept = self._set(channel)
        before = kept.members.get(member.session)
        kept.members[member.session] = member
        try:
            await self._settle(kept, member.session)
        except BrokerUnavailable:
            # Whatever Redis did: it will be told that it did not happen.
            if kept.members.get(member.session) is member:
                if before is None:
                    del kept.members[member.session]
                else:
                    kept.members[member.session] = before
            self._drop(kept)
            raise

    async def remove(self, channel: str, session: str) -> None:
        """Remove a member; raises BrokerUnavailable if Redis will be told of that later only."""
        kept = self._set(channel)
        kept.members.pop(session, None)
        await self._settle(kept, session)

    async def remove_all(self) -> None:
        """Remove all that this node entered, also what Redis holds though it was told otherwise.

        Raises BrokerUnavailable; then Redis may hold some of it.
        """
        waiting = []
        for kept in self._all():
            sessions = list(kept.members)
            kept.members.clear()
            waiting += [self._settle(kept, session) for session in sessions]
        await gather(waiting)
        while self._pushes:
            # What was under way before may fail yet.
            await asyncio.wait(self._pushes)
        if self._lease.life:
            await self.tell_doubtful()

    async def close(self) -> None:
        """Let all fail that is under way; may be called twice."""
        tasks = list(self._pushes)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        # A task that had not begun cannot have told them.
        for kept in self._all():
            _fail_due(kept, BrokerUnavailable("the presence store is closed"))

    async def tell_doubtful(self) -> None:
        """Tell Redis everything wherever that is in doubt; raises BrokerUnavailable."""
        for partition in sorted(self._doubtful):
            self._doubtful.discard(partition)
            try:
                await self.compare(partition, everything=True)
            except BaseException:
                self._doubtful.add(partition)
                raise

    async def compare(self, partition: int, *, everything: bool = False) -> None:
        """Tell Redis where the sessions that it holds of this node are not those entered here.

        With `everything` it is told of the others too, since their info may differ. Raises
        BrokerUnavailable.
        """
        there = await self._there(partition)
        waiting = []
        for channel in {*there, *self._sets[partition]}:
            kept = self._set(channel)
            found = there.get(channel, set())
            mine = set(kept.members)
            due = found | mine if everything else found ^ mine
            waiting += [self._settle(kept, session) for session in due]
            self._drop(kept)
        await gather(waiting)

    async def _there(self, partition: int) -> dict[str, set[str]]:
        """Return the sessions that Redis holds of this node, by channel."""
        entries = self._keys.entries(partition, generation_of(await self._lease.hold()))
        found: list[bytes] = []
        cursor = b"0"
        while True:
            cursor, some = await self._link.command("SSCAN", entries, cursor, "COUNT", _SCANNED)
            found += some
            if cursor == b"0":
                return _by_channel(found)[0]

    async def sweep(self, life: str, go_on: Callable[[], bool]) -> bool:
        """Remove all that a life of a node entered; False if it was to stop.

        Members that were entered anew since, under another generation, stay. Raises
        BrokerUnavailable.
        """
        for partition in range(self._keys.partitions):
            entries = self._keys.entries(partition, generation_of(life))
            keys = (entries, self._keys.lives(partition))
            while True:
                if not go_on():
                    return False
                found = await self._link.run(self._scripts.left, keys, life, _BATCH)
                if not found:
                    break
                shares, junk = _by_channel(sorted(found))
                await gather(
                    [
                        self._depart(channel, partition, life, sessions)
                        for channel, sessions in shares.items()
                    ]
                )
                if junk:
                    await self._link.command("SREM", entries, *junk)
        return True

    async def adopt(self, partition: int) -> None:
        """Let lives count as dead that have entries in a partition, but no lease.

        A Redis that forgot the lease of a node takes entries under it until the node's next
        heartbeat, which may never come. Raises BrokerUnavailable.
        """
        listed = self._keys.lives(partition)
        lives = sorted(await self._link.command("SRANDMEMBER", listed, _BATCH))
        junk = [life for life in lives if not _is_text(life)]
        if junk:
            await self._link.command("SREM", listed, *junk)
        if lives := [life for life in lives if life not in junk]:
            await self._link.run(self._scripts.adopt, self._keys.leases[:1], *lives)

    def _all(self) -> list[_Set]:
        return [kept for channels in self._sets for kept in channels.values()]

    def _set(self, channel: str) -> _Set:
        partition = self._keys.partition(channel)
        kept = self._sets[partition].get(channel)
        if kept is None:
            kept = self._sets[partition][channel] = _Set(channel, partition)
        return kept

    def _drop(self, kept: _Set) -> None:
        """Forget a set in which nothing is left to do."""
        if not kept.members and not kept.due and kept.pushing is None:
            self._sets[kept.partition].pop(kept.channel, None)

    def _settle(self, kept: _Set, session: str) -> "asyncio.Future[None]":
        """Let Redis be told how it stands with a session; the future is done when it was."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        kept.due.setdefault(session, []).append(future)
        if kept.pushing is None:
            kept.pushing = asyncio.get_running_loop().create_task(self._push(kept))
            self._pushes.add(kept.pushing)
            kept.pushing.add_done_callback(self._pushes.discard)
        return future

    async def _push(self, kept: _Set) -> None:
        """Tell Redis of all that is due in a set, one batch after another, so in one order."""
        failure: BrokerUnavailable | None = None
        waiting: list[asyncio.Future[None]] = []
        try:
            while kept.due:
                batch = list(islice(kept.due, _BATCH))
                waiting = [future for session in batch for future in kept.due.pop(session)]
                await self._tell(kept, batch)
                _finish(waiting, None)
        except BrokerUnavailable as error:
            failure = error
        except Exception:
            _log.exception("presence could not be told", extra={"channel": kept.channel})
            failure = BrokerUnavailable("the presence store failed")
        except asyncio.CancelledError:
            failure = BrokerUnavailable("the presence store is closed")
            raise
        finally:
            if failure is not None:
                self._doubtful.add(kept.partition)
                _finish(waiting, failure)
                _fail_due(kept, failure)
            kept.pushing = None
            self._drop(kept)

    async def _tell(self, kept: _Set, sessions: list[str]) -> None:
        life = await self._lease.hold()
        parts: list[Part] = []
        gone: list[str] = []
        for session in sessions:
            member = kept.members.get(session)
            if member is None:
                gone.append(session)
            else:
                parts += (session, pack_member(member))
        if parts:
            keys = self._keys_of(kept.channel, kept.partition, life)
            keys += (self._keys.lives(kept.partition),)
            head = (self._now(), kept.channel, self._keys.address(kept.channel), self._keys.send)
            await self._link.run(self._scripts.enter, keys, *head, life, *parts)
        if gone:
            await self._depart(kept.channel, kept.partition, life, gone, whoever=True)

    async def _depart(
        self,
        channel: str,
        partition: int,
        life: str,
        sessions: Iterable[str | bytes],
        *,
        whoever: bool = False,
    ) -> None:
        """Remove members; only those of the life, or (`whoever`) of any."""
        await self._link.run(
            self._scripts.depart,
            self._keys_of(channel, partition, life),
            *(self._now(), channel, self._keys.address(channel), self._keys.send),
            *("" if whoever else generation_of(life), KEEP_MS),
            *sessions,
        )

    def _keys_of(self, channel: str, partition: int, life: str) -> tuple[str, ...]:
        entries = self._keys.entries(partition, generation_of(life))
        return (*self._keys.presence(channel), entries)


def _by_channel(entries: Iterable[bytes]) -> tuple[dict[str, set[str]], list[bytes]]:
    """Return the sessions of a node's entries by channel, and what no node wrote."""
    found: dict[str, set[str]] = {}
    junk = []
    for entry in entries:
        try:
            channel, session = entry.decode().split(_SEPARATOR)
        except ValueError:
            junk.append(entry)
        else:
            found.setdefault(channel, set()).add(session)
    return found, junk


def _is_text(life: bytes) -> bool:
    try:
        life.decode()
    except UnicodeDecodeError:
        return False
    return True


def _finish(waiting: Iterable["asyncio.Future[None]"], failure: BrokerUnavailable | None) -> None:
    for future in waiting:
        if future.done():
            continue
        if failure is None:
            future.set_result(None)
        else:
            future.set_exception(failure)


def _fail_due(kept: _Set, failure: BrokerUnavailable) -> None:
    """Let all fail that wait in a set."""
    _finish([future for each in kept.due.values() for future in each], failure)
    kept.due.clear()
