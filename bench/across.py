"""Publish on one node, receive on another, under light load; against one node, in the same run.

    python bench/across.py [--events 300] [--every-ms 20] [--rounds 3]

From the moment before the publish is sent over HTTP to the moment when the event is read from the
subscriber's WebSocket. Three ways take turns: one node with its broker in memory, one node over
Redis, and two nodes over Redis with the publisher at one and the subscriber at the other. Servers
share a core, the load has another where there is one. Needs a redis-server on the PATH. Exit code
1 if an event is lost, or if p50 or p99 across nodes passes 2 ms or 8 ms.
"""

import argparse
import json
import sys
import time
from contextlib import ExitStack

from _load import Fleet, Publisher, Server, frames, galecast, on_load_core, redis, subscriber

MOST_P50_MS = 2.0
MOST_P99_MS = 8.0
_CHANNEL = "bench.across"
_PADDING = "x" * 100


def measure(publishing: Server, receiving: Server, events: int, every_s: float) -> list[float]:
    """Return how long each event took, in ms, sorted."""
    fleet = Fleet([subscriber(receiving.port, _CHANNEL)])
    publisher = Publisher(publishing.port)
    fleet.add(publisher)
    took = []
    for number in range(events):
        data = {"n": number, "p": _PADDING}
        body = json.dumps({"channel": _CHANNEL, "data": data}, separators=(",", ":")).encode()
        time.sleep(every_s)
        sent = time.perf_counter()
        publisher.send(body)
        waiting = {-1, 0}
        while waiting:
            places = fleet.poll()
            if not places:
                raise RuntimeError(f"event {number} did not come")
            if 0 in places:
                took.append((time.perf_counter() - sent) * 1000)
            if -1 in places:
                publisher.receive()
            waiting.difference_update(places)
    publisher.close()
    fleet.close()
    numbers = [json.loads(each)["data"]["n"] for each in frames(b"".join(fleet.received[0]))]
    assert numbers == list(range(events)), "lost, repeated or out of order"
    return sorted(took)


def at(sorted_ms: list[float], part: float) -> float:
    """Return the value that `part` of all do not pass."""
    return sorted_ms[min(len(sorted_ms) - 1, int(len(sorted_ms) * part))]


def main() -> int:
    """Print p50 and p99 of each way, over all rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", type=int, default=300, help="events in each round")
    parser.add_argument("--every-ms", type=float, default=20.0, help="pause between two events")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        url = stack.enter_context(redis())
        alone = stack.enter_context(galecast())
        one, two = (stack.enter_context(galecast(broker_url=url)) for _ in range(2))
        for server in (one, two):
            server.await_ready()
        stack.enter_context(on_load_core())
        ways = {
            "one node, in memory": (alone, alone),
            "one node, over Redis": (one, one),
            "across two nodes, over Redis": (one, two),
        }
        for _ in range(args.rounds):
            for name, (publishing, receiving) in ways.items():
                took = measure(publishing, receiving, args.events, args.every_ms / 1000)
                found.setdefault(name, []).extend(took)
    base = at(sorted(found["one node, in memory"]), 0.5)
    for name, times in found.items():
        times.sort()
        p50, p99 = at(times, 0.5), at(times, 0.99)
        print(f"{name:30} p50 {p50:5.2f} ms  p99 {p99:5.2f} ms  {p50 / base:4.1f} times the first")
    return int(p50 > MOST_P50_MS or p99 > MOST_P99_MS)


if __name__ == "__main__":
    sys.exit(main())
