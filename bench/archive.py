"""How fast events come into the archive, and out of it again to a client that goes live.

    python bench/archive.py [--events 100000] [--batch 500]

For SQLite with the broker in memory, for Redis and SQLite, and for Redis and MongoDB (a `mongod` or
`ferretdb` on the PATH, or named by MONGOD or FERRETDB; else it is left out):

- written by the archive's interface alone, batch by batch;
- published to a node over HTTP, in arrays by four publishers, without an archive and with one; and
  until all of that is archived;
- replayed: one client that subscribes `from` 0, then one `since` the first event, each until an
  event that is published meanwhile; every offset has to come once, in order. With the memory of
  the node before, at most, and after;
- what others feel of it: how long an event of another channel takes, from its publish to its
  subscriber, with and without one replay after the other. Both share the core of the load.

Events of 128 bytes of data, all of one channel, of which the recent past holds 500. A `ferretdb`
gets 2,000 of them only: it uses no index for reads like these, so that each page of a replay takes
as long as there are events, which says nothing of MongoDB. The servers share a core, the load has
another where there is one; the disk is that of TMPDIR. Exit code 1 if an event is lost or doubled,
or if the node's memory grows by more than 32 MB in a replay.
"""

import argparse
import asyncio
import json
import multiprocessing
import re
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from _load import (
    Publisher,
    Server,
    find_mongod,
    galecast,
    mask,
    mongodb,
    on_load_core,
    redis,
    subscriber,
)
from across import at
from across import measure as latencies
from config.sources import load
from pubsub.archive import Kept
from pubsub.event import Event
from pubsub.position import Position, chain, start
from server.archiving import open_archive

MOST_GROWTH_BYTES = 32 * 1024 * 1024
_CHANNEL = "bench.archive"
_DATA = b'{"p":"' + b"x" * 120 + b'"}'
_PUBLISHERS = 4
_LIVE_EVENTS = 200
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
    """Publish events in arrays; return when the first was sent."""
    publishers = [Publisher(server.port) for _ in range(_PUBLISHERS)]
    event = {"channel": _CHANNEL, "data": json.loads(_DATA)}
    body = json.dumps([event] * batch, separators=(",", ":")).encode()
    began = time.perf_counter()
    sent = waiting = 0
    while sent < events or waiting:
        publisher = publishers[sent // batch % _PUBLISHERS]
        if waiting == _PUBLISHERS or sent >= events:
            oldest = publishers[(sent // batch - waiting) % _PUBLISHERS]
            answer = oldest.receive()
            assert b'"error"' not in answer, answer[:1_000]
            waiting -= 1
        if sent < events and waiting < _PUBLISHERS:
            publisher.send(body)
            sent += batch
            waiting += 1
    for each in publishers:
        each.close()
    return began


def await_archived(server: Server, events: int) -> None:
    """Wait until the node has archived so many events."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/metrics", headers={"Authorization": "Bearer dev.galecast"}
    )
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        with urllib.request.urlopen(request, timeout=10) as response:
            text = response.read().decode()
        found = re.search(r"^galecast_archive_written_total (\S+)", text, re.MULTILINE)
        if found is not None and float(found[1]) >= events:
            return
        time.sleep(0.05)
    raise RuntimeError("the events were not archived in time")


def payloads(sock: socket.socket) -> Iterator[bytes]:
    """Yield the text messages that come, without end."""
    data = b""
    while True:
        piece = sock.recv(1 << 18)
        if not piece:
            raise ConnectionError("the server closed the session")
        data, at = data + piece, 0
        while len(data) - at >= 2:
            size, head = data[at + 1], 2
            if size == 126:
                size, head = int.from_bytes(data[at + 2 : at + 4], "big"), 4
            elif size == 127:
                size, head = int.from_bytes(data[at + 2 : at + 10], "big"), 10
            if len(data) - at < head + size or len(data) - at < head:
                break
            if data[at] & 0x0F == 1:
                yield data[at + head : at + head + size]
            at += head + size
        data = data[at:]


def replay(server: Server, first: int, last: int, **past: object) -> float:
    """Subscribe in the past and read until live; return how long that took."""
    sock = subscriber(server.port, None)
    sock.setblocking(True)
    sock.settimeout(_PATIENCE_S)
    publisher = Publisher(server.port)
    commands = (
        {"type": "connect", "ref": 1},
        {"type": "subscribe", "ref": 2, "channel": _CHANNEL, **past},
    )
    began = time.perf_counter()
    sock.sendall(b"".join(mask(json.dumps(each).encode()) for each in commands))
    expected, published = first, False
    for payload in payloads(sock):
        found = _offset(payload)
        if not payload.startswith(b'{"type":"event"') or found is None:
            assert b'"error"' not in payload and b'"reset"' not in payload, payload
            continue
        offset = int(found[1])
        if offset != expected:
            raise RuntimeError(f"offset {offset} came, {expected} should have")
        if not published and offset > (first + last) // 2:
            # In the midst of the replay, so that it has to come to what is live.
            publisher.send(json.dumps({"channel": _CHANNEL, "data": "live"}).encode())
            published = True
        if offset == last + 1:
            break
        expected += 1
    took = time.perf_counter() - began
    publisher.receive()
    publisher.close()
    sock.close()
    return took


def measure(name: str, server: Server, events: int, batch: int) -> bool:
    """Print how a node takes events and gives them back; say whether its memory stayed flat."""
    began = publish(server, events, batch)
    answered = time.perf_counter() - began
    await_archived(server, events)
    archived = time.perf_counter() - began
    print(
        f"{name:20} published {events / answered:9,.0f} events/s,"
        f" archived {events / archived:9,.0f} events/s"
    )
    flat = True
    first = first_position(server)
    # An archived channel begins at an offset of its own.
    lowest = int(first.split("-")[1])
    last = lowest + events - 1
    for word, past in (("from 0", {"from": 0}), ("since the first", {"since": first})):
        before = server.rss_bytes()
        server.forget_peak()
        begin = lowest if "from" in past else lowest + 1
        took = replay(server, begin, last, **past)
        peak, after = server.peak_bytes(), server.rss_bytes()
        last += 1
        flat = flat and peak - before <= MOST_GROWTH_BYTES
        print(
            f"{'':20} replayed  {(last - begin + 1) / took:9,.0f} events/s, {word};"
            f" memory {mb(before)} before, {mb(peak)} at most, {mb(after)} after"
        )
    feel(server, lowest, last)
    return flat


def live(port: int) -> list[float]:
    """Return how long events of another channel take, in ms, sorted."""
    server = cast(Server, SimpleNamespace(port=port))
    return latencies(server, server, _LIVE_EVENTS, 0.02)


def feel(server: Server, first: int, last: int) -> None:
    """Print what a live subscriber of another channel feels of replays."""
    found = []
    for replaying in (False, True):
        with multiprocessing.get_context("fork").Pool(1) as pool:
            # In a process of its own, lest it waits for the one that replays.
            measured = pool.apply_async(live, (server.port,))
            while not measured.ready():
                if replaying:
                    replay(server, first, last, **{"from": 0})
                    last += 1
                else:
                    measured.wait(_PATIENCE_S)
            took = measured.get()
        found.append(f"p50 {at(took, 0.5):.1f} ms, p99 {at(took, 0.99):.1f} ms")
    print(f"{'':20} others: {found[0]}; during replays {found[1]}")


def mb(size_bytes: int) -> str:
    """Return a size for people."""
    return f"{size_bytes / 1e6:.1f} MB"


def first_position(server: Server) -> str:
    """Return the position of the channel's first event."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/v1/channels/{_CHANNEL}/events?limit=1",
        headers={"Authorization": "Bearer dev.galecast"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return str(json.load(response)["events"][0]["position"])


def main() -> int:
    """Print all rates."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", type=int, default=100_000, help="events of each run")
    parser.add_argument("--batch", type=int, default=500, help="events of a write and of an array")
    args = parser.parse_args()
    events = args.events // args.batch * args.batch
    alone = min(events, 20_000)
    flat = True
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        stack.enter_context(on_load_core())
        config = folder / "galecast.toml"
        config.write_text(_RULES)
        broker = stack.enter_context(redis())
        mongo = stack.enter_context(mongodb())
        sqlite = f"sqlite:///{folder}/alone.db"
        rate = asyncio.run(write(sqlite, alone, args.batch))
        print(f"SQLite alone         written   {rate:9,.0f} events/s")
        if mongo is None:
            print("There is neither a mongod nor a ferretdb: MongoDB is left out.")
        else:
            rate = asyncio.run(write(f"{mongo}_alone", alone, args.batch))
            print(f"MongoDB alone        written   {rate:9,.0f} events/s")
        ways: list[tuple[str, dict[str, str | None]]] = [
            ("memory and SQLite", {"archive_url": f"sqlite:///{folder}/memory.db"}),
            ("Redis and SQLite", {"archive_url": f"sqlite:///{folder}/redis.db"}),
            ("Redis and MongoDB", {"archive_url": mongo}),
        ]
        for name, settings in ways:
            if settings["archive_url"] is None:
                continue
            ferret = name.endswith("MongoDB") and find_mongod() is None
            count = min(events, 2_000) if ferret else events
            if name.startswith("Redis"):
                prefix = re.sub(r"\W", "", name).lower()
                settings |= {"broker_url": broker, "broker_prefix": prefix}
            without = {key: value for key, value in settings.items() if key != "archive_url"}
            with galecast(**without | {"broker_prefix": "without"}) as server:
                server.await_ready()
                began = publish(server, count, args.batch)
                took = time.perf_counter() - began
            print(f"{name:20} published {count / took:9,.0f} events/s without the archive")
            with galecast(config=config, **settings) as server:
                server.await_ready()
                flat = measure(name, server, count, args.batch) and flat
    if not flat:
        print("a replay took too much memory")
    return int(not flat)


if __name__ == "__main__":
    sys.exit(main())
