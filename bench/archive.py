"""How fast events come into the archive, and out of it again to a client that goes live.

For SQLite with the broker in memory, for Redis and SQLite, and for Redis and MongoDB (a `mongod` or
`ferretdb` on the PATH, or named by MONGOD or FERRETDB; else it is left out):

- written by the archive's interface alone, batch by batch;
- published to a node over HTTP, in arrays by four publishers, without an archive and with one; and
  until all of that is archived;
- replayed: one client that subscribes `from` 0, then one `since` the first event, each until an
  event that is published meanwhile; every offset has to come once, in order. With what the node's
  memory grew by meanwhile, at most;
- what others feel of it: how long an event of another channel takes, from its publish to its
  subscriber, with and without one replay after the other. Both share the core of the load.

Events of 128 bytes of data, all of one channel, of which the recent past holds 500. A `ferretdb`
gets 2,000 of them only: it uses no index for reads like these, so that each page of a replay takes
as long as there are events, which says nothing of MongoDB. The servers share a core, the load has
another where there is one; the disk is that of TMPDIR.
"""

import asyncio
import json
import multiprocessing
import re
import socket
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from _case import Case, note, ours
from _results import OURS, Claim, Figure, Result
from _servers import Server, find_mongod, galecast, mongodb, redis
from _talk import Requests, counter, sessions, wanted
from config.sources import load
from pubsub.archive import Kept
from pubsub.event import Event
from pubsub.position import Position, chain, start
from server.archiving import open_archive
from server.load_engine import Load
from server.load_frames import masked, websocket_frames
from server.load_layout import Layout
from server.load_run import Plan
from server.load_target import LoadFailed

OPTIONS = {
    "events": (10_000, 100_000, "events of each way"),
    "batch": (500, 500, "events of a write and of an array"),
    "live_seconds": (1.0, 4.0, "how long another channel is watched"),
}
MOST_GROWTH_BYTES = 32 * 1024 * 1024
_CHANNEL = "bench.archive"
_DATA = b'{"p":"' + b"x" * 120 + b'"}'
_PUBLISHERS = 4
# Each step ends in this time, or the whole fails.
_PATIENCE_S = 180.0
_RULES = '[[channels]]\nmatch = ">"\narchive = true\n'
_offset = re.compile(rb'"position":"[0-9a-f]{16}-(\d+)-').search


async def write(url: str, events: int, batch: int) -> float:
    """Return how many events a second the archive takes, alone and one batch at a time."""
    archive = open_archive(load({}, {}, None).settings, url)
    assert archive is not None
    position, at = start("00000000000000e1"), int(time.time() * 1000)
    entries = []
    for number in range(events):
        event_id = f"e{number}"
        after = Position(position.epoch, number + 1, chain(position.check, event_id))
        event = Event("bench.alone", after, position.check, event_id, "message", _DATA, at)
        entries.append(Kept(event))
        position = after
    await archive.start()
    try:
        began = time.perf_counter()
        for place in range(0, events, batch):
            await archive.write(entries[place : place + batch])
        return events / (time.perf_counter() - began)
    finally:
        await archive.close()


def publish(server: Server, events: int, batch: int) -> float:
    """Publish events in arrays; return how long it took until all were acknowledged."""
    event = {"channel": _CHANNEL, "data": json.loads(_DATA)}
    body = json.dumps([event] * batch, separators=(",", ":")).encode()
    with ExitStack() as stack:
        publishers = [stack.enter_context(Requests(server.port)) for _ in range(_PUBLISHERS)]
        began = time.perf_counter()
        total = events // batch
        for number in range(total + _PUBLISHERS):
            publisher = publishers[number % _PUBLISHERS]
            if _PUBLISHERS <= number and b'"error"' in (answer := publisher.receive()):
                raise LoadFailed(f"not all was published: {answer[:500]!r}")
            if number < total:
                publisher.send("POST", "/v1/events", body)
        return time.perf_counter() - began


def await_archived(server: Server, events: int) -> None:
    """Wait until the node has archived so many events."""
    deadline = time.monotonic() + _PATIENCE_S
    while counter(server, "galecast_archive_written_total") < events:
        if time.monotonic() > deadline:
            raise LoadFailed("the events were not archived in time")
        time.sleep(0.05)


def payloads(sock: socket.socket, data: bytes) -> Iterator[bytes]:
    """Yield the messages in `data` and those that come then, without end."""
    while True:
        bounds, taken = websocket_frames(data)
        for begin, end in bounds:
            yield data[begin:end]
        piece = sock.recv(1 << 18)
        if not piece:
            raise LoadFailed("the server closed the session")
        data = data[taken:] + piece


def replay(server: Server, first: int, last: int, **past: object) -> float:
    """Subscribe in the past and read until live; return how long that took."""
    command = {"type": "subscribe", "ref": 2, "channel": _CHANNEL, **past}
    wire = ours().target(server.port, Layout(sessions=1)).wires[0]
    asked = wanted(wire, 0, _CHANNEL, first=masked(json.dumps(command).encode()))
    with Requests(server.port) as publisher:
        began = time.perf_counter()
        (opened,) = sessions(server.port, [asked])
        opened.sock.setblocking(True)
        opened.sock.settimeout(_PATIENCE_S)
        expected, published = first, False
        for payload in payloads(opened.sock, opened.rest):
            found = _offset(payload)
            if b'{"type":"event"' not in payload or found is None:
                if b'"error"' in payload or b'"reset"' in payload:
                    raise LoadFailed(f"the server said {payload[:500]!r}")
                continue
            offset = int(found[1])
            if offset != expected:
                raise LoadFailed(f"offset {offset} came, {expected} should have")
            if not published and offset > (first + last) // 2:
                # In the midst of the replay, so that it has to come to what is live.
                body = json.dumps({"channel": _CHANNEL, "data": "live"}).encode()
                publisher.send("POST", "/v1/events", body)
                published = True
            if offset == last + 1:
                break
            expected += 1
        took = time.perf_counter() - began
        publisher.receive()
        opened.sock.close()
    return took


def live(port: int, seconds: float) -> dict[str, float]:
    """Return how long events of another channel take, in ms."""
    layout = Layout(sessions=1, prefix="bench.live")
    with Load(ours().target(port, layout), layout) as load_:
        load_.open()
        report = load_.run(Plan(rate=50, seconds=seconds, warmup_s=0.2))
    if report.problems:
        raise LoadFailed("; ".join(report.problems[:3]))
    return report.latency_ms()


def feel(server: Server, first: int, last: int, seconds: float) -> dict[str, float]:
    """Return what a live subscriber of another channel feels of replays, and without them."""
    found: dict[str, float] = {}
    for name, replaying in (("others", False), ("others_replay", True)):
        with multiprocessing.get_context("fork").Pool(1) as pool:
            # In a process of its own, lest it waits for the one that replays.
            measured = pool.apply_async(live, (server.port, seconds))
            while not measured.ready():
                if replaying:
                    replay(server, first, last, **{"from": 0})
                    last += 1
                else:
                    measured.wait(_PATIENCE_S)
            took = measured.get()
        found |= {f"{name}_p50_ms": took["p50"], f"{name}_p99_ms": took["p99"]}
    return found


def first_position(server: Server) -> str:
    """Return the position of the channel's first event."""
    with Requests(server.port) as requests:
        text = requests.ask("GET", f"/v1/channels/{_CHANNEL}/events?limit=1")
    return str(json.loads(text)["events"][0]["position"])


def measure(server: Server, events: int, options: Namespace) -> dict[str, float]:
    """Return how a node takes events and gives them back."""
    began = time.perf_counter()
    answered = publish(server, events, options.batch)
    await_archived(server, events)
    found = {
        "published_per_s": events / answered,
        "archived_per_s": events / (time.perf_counter() - began),
    }
    first = first_position(server)
    # An archived channel begins at an offset of its own.
    lowest = int(first.split("-")[1])
    last = lowest + events - 1
    growth = 0
    for word, past in (("from", {"from": 0}), ("since", {"since": first})):
        before = server.rss_bytes()
        server.forget_peak()
        begin = lowest if word == "from" else lowest + 1
        took = replay(server, begin, last, **past)
        growth = max(growth, server.peak_bytes() - before)
        last += 1
        found[f"replay_{word}_per_s"] = (last - begin + 1) / took
    found["growth_bytes"] = growth
    return found | feel(server, lowest, last, options.live_seconds)


def run(options: Namespace, result: Result) -> None:
    """Measure each archive alone, and behind a node."""
    events = options.events // options.batch * options.batch
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        config = folder / "galecast.toml"
        config.write_text(_RULES)
        broker = stack.enter_context(redis())
        mongo = stack.enter_context(mongodb())
        alone = {"SQLite alone": f"sqlite:///{folder}/alone.db"}
        ways = {
            "memory and SQLite": {"archive_url": f"sqlite:///{folder}/memory.db"},
            "Redis and SQLite": {"archive_url": f"sqlite:///{folder}/redis.db"},
        }
        if mongo is None:
            result.left_out["MongoDB"] = "there is neither a mongod nor a ferretdb"
        else:
            alone["MongoDB alone"] = f"{mongo}_alone"
            ways["Redis and MongoDB"] = {"archive_url": mongo}
        for name, url in alone.items():
            rate = asyncio.run(write(url, min(events, 20_000), options.batch))
            result.figures.append(Figure(who=OURS, variant=name, values={"written_per_s": rate}))
        for name, settings in ways.items():
            ferret = name.endswith("MongoDB") and find_mongod() is None
            count = min(events, 2_000) if ferret else events
            more: dict[str, object] = {}
            if name.startswith("Redis"):
                prefix = re.sub(r"\W", "", name).lower()
                more = {"broker_url": broker, "broker_prefix": prefix}
            note(name)
            with galecast(settings={**more, "broker_prefix": "without"}) as server:
                server.await_ready()
                rate = count / publish(server, count, options.batch)
            with galecast(settings={"config": config, **settings, **more}) as server:
                server.await_ready()
                values = measure(server, count, options)
            note("")
            values = {"unarchived_per_s": rate, **values}
            result.figures.append(Figure(who=OURS, variant=name, values=values))
            claim(result, name, values)


def claim(result: Result, name: str, values: dict[str, float]) -> None:
    """Say what is asked of an archive, and what it costs."""
    result.claims += [
        Claim(
            key=f"archive.growth.{name}",
            what=f"memory that a node grows by in a replay, {name}",
            value=values["growth_bytes"],
            unit="_bytes",
            target=MOST_GROWTH_BYTES,
            at_most=True,
        ),
        Claim(
            key=f"archive.published.{name}",
            what=f"events published per second with the archive, against without, {name}",
            value=values["published_per_s"] / values["unarchived_per_s"],
        ),
    ]


CASE = Case("archive", __doc__, OPTIONS, run)

if __name__ == "__main__":
    sys.exit(CASE.main())
