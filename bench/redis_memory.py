"""What a channel costs in the memory of Redis: its record, its events, the ids of its events.

Events carry 128 bytes of data. Needs a redis-server on the PATH.
"""

import json
import socket
import sys
from argparse import Namespace

from _case import Case
from _results import OURS, Figure, Result
from _servers import galecast, redis
from _talk import Requests

OPTIONS = {
    "channels": (500, 2000, "channels"),
    "events": (20, 100, "events in each channel"),
    "node_bytes": (4096, 4096, "stream-node-max-bytes of Redis"),
}
_BATCH = 500
_DATA = {"p": "x" * 120}


def used_bytes(path: str) -> int:
    """Return the memory that Redis uses for data."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(b"INFO memory\r\n")
        text = sock.recv(65536).decode()
    return int(text.partition("used_memory_dataset:")[2].split()[0])


def publish(publisher: Requests, channels: list[str]) -> None:
    """Publish one event to each channel."""
    for start in range(0, len(channels), _BATCH):
        events = [{"channel": each, "data": _DATA} for each in channels[start : start + _BATCH]]
        publisher.ask("POST", "/v1/events", json.dumps(events).encode())


def run(options: Namespace, result: Result) -> None:
    """Fill the channels of a node over a Redis of its own, and look at that."""
    names = [f"bench.memory.{number}" for number in range(options.channels)]
    config = ("--stream-node-max-bytes", str(options.node_bytes))
    with redis(*config) as url, galecast(settings={"broker_url": url}) as server:
        server.await_ready()
        path = url.removeprefix("unix://")
        with Requests(server.port) as publisher:
            publish(publisher, ["bench.first"])
            before = used_bytes(path)
            publish(publisher, names)
            first = used_bytes(path)
            for _ in range(options.events - 1):
                publish(publisher, names)
            last = used_bytes(path)
    one = (first - before) / options.channels
    more = (last - first) / options.channels / max(1, options.events - 1)
    for variant, size in (
        ("a channel with one event", one),
        ("each further event", more),
        (f"a channel with {options.events} events", one + more * (options.events - 1)),
    ):
        values = {"redis_bytes": size}
        result.figures.append(Figure(who=OURS, variant=variant, values=values))


CASE = Case("redis_memory", __doc__, OPTIONS, run)

if __name__ == "__main__":
    sys.exit(CASE.main())
