"""What a channel costs in the memory of Redis: its record, its events, the ids of its events.

    python bench/redis_memory.py [--channels 2000] [--events 100] [--node-bytes 4096]

Events carry 128 bytes of data. Needs a redis-server on the PATH.
"""

import argparse
import json
import socket
import sys

from _load import Publisher, galecast, redis

_BATCH = 500
_DATA = {"p": "x" * 120}


def used_bytes(path: str) -> int:
    """Return the memory that Redis uses for data."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(b"INFO memory\r\n")
        text = sock.recv(65536).decode()
    return int(text.partition("used_memory_dataset:")[2].split()[0])


def publish(publisher: Publisher, channels: list[str]) -> None:
    """Publish one event to each channel."""
    for start in range(0, len(channels), _BATCH):
        events = [{"channel": each, "data": _DATA} for each in channels[start : start + _BATCH]]
        publisher.send(json.dumps(events).encode())
        publisher.receive()


def main() -> int:
    """Print bytes per channel and per event."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--channels", type=int, default=2000)
    parser.add_argument("--events", type=int, default=100, help="events in each channel")
    parser.add_argument(
        "--node-bytes", type=int, default=4096, help="stream-node-max-bytes of Redis"
    )
    args = parser.parse_args()
    names = [f"bench.memory.{number}" for number in range(args.channels)]
    options = ("--stream-node-max-bytes", str(args.node_bytes))
    with redis(*options) as url, galecast(broker_url=url) as server:
        server.await_ready()
        publisher = Publisher(server.port)
        path = url.removeprefix("unix://")
        publish(publisher, ["bench.first"])
        before = used_bytes(path)
        publish(publisher, names)
        first = used_bytes(path)
        for _ in range(args.events - 1):
            publish(publisher, names)
        last = used_bytes(path)
        publisher.close()
    one = (first - before) / args.channels
    more = (last - first) / args.channels / max(1, args.events - 1)
    print(f"a channel with one event: {one:,.0f} bytes")
    print(f"each further event:       {more:,.0f} bytes")
    print(f"a channel with {args.events} events: {one + more * (args.events - 1):,.0f} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
