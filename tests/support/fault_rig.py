"""Nodes, Redis and an archive under load, with a proxy on every way, and all that is seen recorded.

    client --- to_node[n] --- node n --- to_redis[n] --- Redis
    publisher --'                `--- archive (SQLite)

`async with open_rig(Setup(...)) as rig` runs it. A fault is done to its parts, then healed;
`flow` waits for more load, `drain` for everything to have come, and `verdict` checks.
"""

import asyncio
import random
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest

from checker import Violation, check
from checker.records import (
    Closed,
    Delivery,
    Drained,
    Dump,
    Fault,
    Publish,
    Reset,
    Scope,
    Strange,
    write_history,
)
from fake_clock import FakeClock
from fault_proxy import FaultProxy
from fleet import KEY, NAMES, Node, at_once, await_true, redis_lines, settings_file
from fleet_clients import LOST, until
from fleet_http import ask
from mongo_server import MongoServer
from muting_proxy import MutingProxy
from pubsub.archive import Archive
from pubsub.archive_url import parse_archive_url
from pubsub.mongo_archive import MongoArchive
from pubsub.sqlite_archive import SqliteArchive
from recorded import (
    KINDS,
    RecordedFollower,
    RecordedPublisher,
    RecordedRated,
    RecordedSocketPublisher,
    RecordedStalling,
    RecordedStream,
    Recorder,
)
from redis_cluster import RedisCluster
from redis_sentinel import SentinelRig
from redis_server import PACKAGED, RedisServer, find_packaged_server
from small_disk import SmallDisk
from stored import read_stored

CHANNELS: Final = ("load.a", "load.b")
# The one of which only the newest event is promised, where a rig has it.
CONFLATED: Final = "load.newest"
HOWS: Final = ("id", "key", "batch", "socket")
# What presence may take: the lease of a node (2 s), a heartbeat of the others, and a busy machine.
PRESENCE_S: Final = 8.0
# How long after a fault a session may still turn out to be cut: two pings, and a busy machine.
CUTS_S: Final = 8.0
PATIENCE_S: Final = 30.0
# After so long without a new event, none is on its way into the archive any more.
_QUIET_S: Final = 8.0
# Enough for what a scenario writes, and no more than a moment to fill.
_DISK_BYTES: Final = 16_000_000
_RULE: Final = """
[[channels]]
match = ">"
history_size = 20000
presence = true
archive = {archive}
"""
_CONFLATED_RULE: Final = f"""
[[channels]]
match = "{CONFLATED}"
history_size = 20000
presence = true
slow = "conflate"
"""
ENVIRON: Final = {
    "GALECAST_BROKER_CALL_TIMEOUT_S": "1.5",
    "GALECAST_ARCHIVE_CALL_TIMEOUT_S": "1",
    "GALECAST_DRAIN_DELAY_S": "0.2",
    "GALECAST_DRAIN_GRACE_S": "2",
    "GALECAST_DRAIN_RETRY_SPREAD_MS": "200",
    "GALECAST_SESSION_PING_S": "2",
    "GALECAST_LIMITS_KEY_PUBLISHES_PER_S": "0",
    # A bad event in so many is refused, on one session over and over.
    "GALECAST_LIMITS_ERRORS_PER_MINUTE": "0",
}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a rig is made of: see the fields' defaults for the usual one.

    `redis`: "one", "sentinel" (a master, a replica and three Sentinels; without proxies), "cluster"
    (three masters, each with a replica; without proxies) or "none" (one node, which keeps
    everything in memory). `aof`: what Redis acknowledged is on disk.
    `archive`: there is one, in SQLite or (`database`) in a MongoDB. `disk`: whose disk is small,
    "redis" or "archive"; `clock`: whose clock may jump, "redis" or "node" (the first).
    `conflates`: there is a channel more, which conflates and has large events.
    """

    nodes: int = 2
    redis: str = "one"
    aof: bool = True
    redis_options: tuple[str, ...] = ()
    archive: bool = False
    database: bool = False
    disk: str = ""
    clock: str = ""
    conflates: bool = False
    environ: Mapping[str, str] = field(default_factory=dict)
    clients: int = 5
    publishers: int = 4
    seed: int = 0


class FaultRig:
    """What `open_rig` gives: its parts are attributes, to be harmed by faults."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.recorder = Recorder()
        self.folder = Path(tempfile.mkdtemp(prefix="faults-"))
        self.archive_path = self.folder / "archive.db"
        self.database: MongoServer | None = None
        self.disk: SmallDisk | None = None
        self.clock: FakeClock | None = None
        self.sentinels: SentinelRig | None = None
        self.cluster: RedisCluster | None = None
        self.redis: RedisServer
        self.nodes: list[Node] = []
        self.to_redis: list[MutingProxy] = []
        self.to_node: list[FaultProxy] = []
        self.clients: list[RecordedFollower] = []
        self.publishers: list[RecordedPublisher] = []
        self.rated: list[str] = []
        self.rng = random.Random(setup.seed)
        # What the scope of the history will be, as far as the faults so far allow it.
        self.tellings = 0
        self.loses = self.forgets = False

    @property
    def urls(self) -> list[str]:
        """Where clients and publishers go."""
        return [f"http://127.0.0.1:{proxy.port}" for proxy in self.to_node]

    @property
    def channels(self) -> tuple[str, ...]:
        """What is published to and followed."""
        return (*CHANNELS, CONFLATED) if self.setup.conflates else CHANNELS

    def client(self, number: int) -> RecordedFollower:
        """Let a client come; those over SSE are services, the others are users."""
        kind = KINDS[number % len(KINDS)]
        user = None if kind is RecordedStream else f"u{number}"
        client = kind(self.recorder, self.urls, self.channels, number, user)
        if kind is RecordedRated:
            self.rated.append(client.name)
        return client

    def stalling(self) -> RecordedStalling:
        """Let a client come that can stop reading; what it reads comes straight from a node."""
        urls = [f"http://127.0.0.1:{node.port}" for node in self.nodes]
        client = RecordedStalling(self.recorder, urls, self.channels, 0, None)
        self.clients.append(client)
        return client

    # ---- what the load does

    async def flow(self, number: int = 3) -> None:
        """Wait until each publisher had some more events acknowledged."""
        before = [each.done for each in self.publishers]
        await until(
            lambda: all(
                each.done >= was + number for each, was in zip(self.publishers, before, strict=True)
            ),
            PATIENCE_S,
        )

    async def tried(self, number: int = 2) -> None:
        """Wait until each publisher has tried some more, whatever came of it."""
        before = [each.attempts for each in self.publishers]
        await until(
            lambda: all(
                each.attempts >= was + number
                for each, was in zip(self.publishers, before, strict=True)
            ),
            PATIENCE_S,
        )

    async def all_ready(self) -> None:
        """Wait until every node says that it is."""
        await asyncio.to_thread(self._await_ready)

    def _await_ready(self) -> None:
        await_true(
            lambda: all(node.readiness()[0] == 200 for node in self.nodes),
            lambda: f"{[node.readiness() for node in self.nodes]}",
        )

    @contextmanager
    def fault(self, name: str) -> Iterator[None]:
        """Record that a fault lasts for as long as the block runs."""
        self.recorder.add(Fault, name=name, begins=True)
        try:
            yield
        finally:
            self.recorder.add(Fault, name=name, begins=False)

    def heal(self) -> None:
        """Let all proxies pass everything."""
        for proxy in (*self.to_redis, *self.to_node):
            proxy.heal()

    # ---- the end

    async def leave(self) -> None:
        """End all clients and publishers."""
        await asyncio.gather(
            *(each.close() for each in self.publishers), *(each.close() for each in self.clients)
        )

    async def drain(self) -> None:
        """Stop the load, and wait until everybody has what there is and sees who is there.

        What has not come by then never comes: the checker says what that was.
        """
        await asyncio.gather(*(each.close() for each in self.publishers))
        with suppress(AssertionError):
            await until(self._all_live, PATIENCE_S)
        tops = {channel: await self.top(channel) for channel in self.channels}
        with suppress(AssertionError):
            await until(lambda: self._all_at(tops), PATIENCE_S)
        with suppress(AssertionError):
            await until(self._rooms_are_right, PRESENCE_S + 4)
        self.recorder.add(Drained)
        for node in self.nodes:
            for line in node.log.splitlines():
                if '"level":"error"' in line or "Traceback" in line:
                    self.recorder.add(Strange, who=node.name, text=line)
        for channel in self.channels:
            await self._dump_history(channel)
            if self.setup.archive and channel in CHANNELS:
                await self._dump_archive(channel)

    def _all_live(self) -> bool:
        return all(each.live for each in self.clients)

    def _all_at(self, tops: Mapping[str, str]) -> bool:
        return all(
            each.channels[channel].since == top
            for each in self.clients
            for channel, top in tops.items()
        )

    def _rooms_are_right(self) -> bool:
        people = {each.session for each in self.clients if each.presence}
        return all(
            followed.members == people
            for each in self.clients
            if each.presence
            for followed in each.channels.values()
        )

    async def get(self, path: str) -> Any:
        """Read something over HTTP, from whichever node has it."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for node in self.nodes:
                    with suppress(*LOST):
                        url = f"http://127.0.0.1:{node.port}"
                        headers = {"Authorization": f"Bearer {KEY}"}
                        answer = await ask(url, None, "GET", path, headers=headers)
                        if answer.status == 200:
                            return answer.json
                await asyncio.sleep(0.1)

    async def top(self, channel: str) -> str:
        """Return where a channel stands."""
        found: str = (await self.get(f"/v1/channels/{channel}"))["position"]
        return found

    async def _dump_history(self, channel: str) -> None:
        events: list[tuple[str, str, str]] = []
        missing: list[tuple[str, str]] = []
        cursor = ""
        while True:
            page = await self.get(f"/v1/channels/{channel}/events?limit=1000{cursor}")
            events += [(each["position"], each["id"], each["data"]) for each in page["events"]]
            missing += [(each["after"], each["before"]) for each in page.get("missing", ())]
            if "cursor" not in page:
                break
            cursor = f"&cursor={quote(page['cursor'])}"
        self.recorder.add(
            Dump, store="history", channel=channel, events=tuple(events), missing=tuple(missing)
        )

    async def _dump_archive(self, channel: str) -> None:
        """Record what is in the archive, once it has all that was acknowledged."""
        expected = {
            each.id
            for each in self.recorder.records
            if isinstance(each, Publish)
            and (each.channel, each.outcome) == (channel, "acknowledged")
        }
        began = grew = asyncio.get_running_loop().time()
        size = -1
        while True:
            events, missing = await read_stored(self._archive(), channel)
            now = asyncio.get_running_loop().time()
            if len(events) > size:
                size, grew = len(events), now
            # Where some may be lost, the rest is there when nothing more comes.
            over = now - (grew if self.loses else began) > (_QUIET_S if self.loses else PATIENCE_S)
            if over or expected <= {event_id for _place, event_id, _data in events}:
                break
            await asyncio.sleep(0.2)
        self.recorder.add(
            Dump, store="archive", channel=channel, events=tuple(events), missing=tuple(missing)
        )

    def _archive(self) -> Archive:
        """Open the archive for reading, past the nodes."""
        if self.database is not None:
            target = parse_archive_url(self.database.url)
            return MongoArchive(target.url, target.database)
        path = self.archive_path
        if self.disk is not None and self.setup.disk == "archive":
            # SQLite would resolve the path in this process' namespace.
            for file in self.disk.outside.glob("archive.db*"):
                if not file.name.endswith("-shm"):
                    shutil.copy(file, self.folder)
            path = self.folder / "archive.db"
        return SqliteArchive(str(path))

    def scope(self) -> Scope:
        """Return what the history is held to."""
        return Scope(
            conflating=(CONFLATED,) if self.setup.conflates else (),
            archived=CHANNELS if self.setup.archive else (),
            rated=tuple(self.rated),
            tellings=self.tellings,
            loses=self.loses,
            forgets=self.forgets,
            cuts_s=CUTS_S,
            presence_s=PRESENCE_S,
        )

    def felt(self) -> set[str]:
        """Return how what happened was felt: by publishers, by clients, by telling them.

        "skipped": events were left out for a client that has no rate.
        """
        found = set()
        for record in self.recorder.records:
            if isinstance(record, Publish) and record.outcome == "unknown":
                found.add("publishers")
            elif isinstance(record, Closed):
                found.add("clients")
            elif isinstance(record, Delivery) and record.client not in self.rated:
                found |= {"skipped"} if record.skipped else set()
            elif isinstance(record, Reset) or getattr(record, "recovered", None) is False:
                found.add("told")
        return found

    def verdict(self) -> list[Violation]:
        """Check all that was recorded."""
        return check([self.scope(), *self.recorder.records])

    def keep(self) -> Path:
        """Write the history and what the nodes said where it stays, and return the folder."""
        kept = Path(tempfile.mkdtemp(prefix="galecast-history-"))
        write_history(kept / "history.jsonl", [self.scope(), *self.recorder.records])
        for node in self.nodes:
            (kept / f"{node.name}.log").write_text(node.log)
        return kept


def is_there(client: RecordedFollower) -> bool:
    """Say whether a client has begun to follow all of its channels."""
    return all(each.first is not None for each in client.channels.values())


@asynccontextmanager
async def open_rig(setup: Setup) -> AsyncIterator[FaultRig]:
    """Start everything, with clients that follow and publishers that publish; end it all."""
    rig = FaultRig(setup)
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, rig.folder, ignore_errors=True)
        if setup.disk:
            rig.disk = SmallDisk(_DISK_BYTES)
            stack.callback(rig.disk.close)
        if setup.clock:
            rig.clock = FakeClock(rig.folder)
        if setup.database:
            rig.database = MongoServer()
            stack.callback(rig.database.close)
            await asyncio.to_thread(rig.database.start)
        await _start_redis(rig, stack)
        await _start_nodes(rig, stack)
        stalls = asyncio.create_task(rig.recorder.note_stalls())
        stack.push_async_callback(asyncio.wait, [stalls])
        stack.callback(stalls.cancel)
        stack.push_async_callback(rig.leave)
        for number in range(setup.clients):
            rig.clients.append(rig.client(number))
        await until(lambda: all(map(is_there, rig.clients)))
        for number in range(setup.publishers):
            how = HOWS[number % len(HOWS)]
            kind = RecordedSocketPublisher if how == "socket" else RecordedPublisher
            heavy = (CONFLATED,)
            publisher = kind(rig.recorder, rig.urls, number, rig.channels, how, heavy)
            rig.publishers.append(publisher)
        yield rig


async def _start_redis(rig: FaultRig, stack: AsyncExitStack) -> None:
    setup = rig.setup
    if setup.redis == "sentinel":
        rig.sentinels = SentinelRig()
        stack.callback(rig.sentinels.close)
        await asyncio.to_thread(rig.sentinels.start)
        rig.redis = rig.sentinels.master
    elif setup.redis == "cluster":
        rig.cluster = RedisCluster(replicas=True)
        stack.callback(rig.cluster.close)
        await asyncio.to_thread(rig.cluster.start)
    elif setup.redis == "one":
        lines = [line for line in redis_lines() if not line.startswith("append")]
        before: Sequence[str] = ()
        program = None
        if rig.disk is not None and setup.disk == "redis":
            # One that syncs always ends itself when its disk is full.
            lines += ["appendonly yes", "appendfsync everysec", f"dir {rig.disk.path}"]
            before = rig.disk.before
        if rig.clock is not None and setup.clock == "redis":
            before = ("env", *(f"{name}={value}" for name, value in rig.clock.environ.items()))
            # Distributions build theirs with an allocator that libfaketime cannot live with.
            program = next(filter(None, map(find_packaged_server, reversed(PACKAGED))), None)
            if program is None:
                pytest.skip("there is no Redis that libfaketime works with")
        options = (*lines, *setup.redis_options)
        rig.redis = RedisServer(*options, tcp=True, aof=setup.aof, program=program, before=before)
        stack.callback(rig.redis.close)
        await asyncio.to_thread(rig.redis.start)
        for number in range(setup.nodes):
            proxy = MutingProxy(rig.redis.port, seed=setup.seed + number)
            rig.to_redis.append(await stack.enter_async_context(proxy))


async def _start_nodes(rig: FaultRig, stack: AsyncExitStack) -> None:
    setup = rig.setup
    rule = _RULE.format(archive=str(setup.archive).lower())
    config = settings_file(rig.folder, (_CONFLATED_RULE if setup.conflates else "") + rule)
    before: Sequence[str] = ()
    if rig.disk is not None and setup.disk == "archive":
        rig.archive_path = rig.disk.path / "archive.db"
        before = rig.disk.before
    archive_url = f"sqlite:///{rig.archive_path}" if setup.archive else "none"
    if rig.database is not None:
        archive_url = rig.database.url
    for number in range(setup.nodes):
        if rig.sentinels is not None:
            broker_url = rig.sentinels.url
        elif rig.cluster is not None:
            broker_url = rig.cluster.url
        else:
            broker_url = rig.to_redis[number].url if rig.to_redis else "memory://"
        environ = {**ENVIRON, **setup.environ}
        if rig.clock is not None and setup.clock == "node" and not number:
            environ |= rig.clock.environ
        node = Node(
            NAMES[number],
            config,
            broker_url,
            archive_url,
            environ=environ,
            before=before,
        )
        rig.nodes.append(node)
    # In threads: they reach Redis through proxies of this loop.
    ends = [partial(_end, node) for node in rig.nodes]
    stack.push_async_callback(asyncio.to_thread, at_once, *ends)
    await asyncio.to_thread(at_once, *(node.start for node in rig.nodes))
    for number, node in enumerate(rig.nodes):
        proxy = FaultProxy(node.port, seed=setup.seed + 100 + number)
        rig.to_node.append(await stack.enter_async_context(proxy))


def _end(node: Node) -> None:
    if node.process is not None:
        with suppress(ProcessLookupError):
            node.signal(signal.SIGCONT)
    node.hurry()
