"""Fan-out, one publish in flight: ours against a loop over `write_message`, in the same run.

    python bench/fanout.py [--sessions 1000] [--events 300] [--rounds 3]

Every event goes to every session; the next is published when the one before was acknowledged. All
that arrives is checked: each session has every event, once and in order. Server and load run on a
core of their own where there are two. Exit code 1 if ours is less than 4 times as fast.
"""

import argparse
import json
import sys
import time

from _load import (
    Fleet,
    Publisher,
    Server,
    frames,
    galecast,
    naive,
    on_load_core,
    raise_file_limit,
    subscriber,
)

LEAST_RATIO = 4.0
_PADDING = "x" * 100


def measure(server: Server, channel: str | None, sessions: int, events: int) -> float:
    """Return events delivered per second, over all sessions."""
    fleet = Fleet([subscriber(server.port, channel) for _ in range(sessions)])
    publisher = Publisher(server.port)
    fleet.add(publisher)
    last = f'"n":{events - 1},'.encode()
    waiting = set(range(sessions))
    published = 0
    started = time.perf_counter()
    while waiting:
        if published == 0:
            publisher.send(_body(published))
            published += 1
        places = fleet.poll()
        if not places:
            raise RuntimeError(f"{len(waiting)} sessions still wait")
        for place in places:
            if place < 0:
                publisher.receive()
                if published < events:
                    publisher.send(_body(published))
                    published += 1
            elif place in waiting and last in b"".join(fleet.received[place][-2:]):
                waiting.discard(place)
    seconds = time.perf_counter() - started
    publisher.close()
    fleet.close()
    for received in fleet.received:
        numbers = [json.loads(frame)["data"]["n"] for frame in frames(b"".join(received))]
        assert numbers == list(range(events)), "lost, repeated or out of order"
    return sessions * events / seconds


def _body(number: int) -> bytes:
    event = {"channel": "bench.fanout", "name": "tick", "data": {"n": number, "p": _PADDING}}
    return json.dumps(event, separators=(",", ":")).encode()


def main() -> int:
    """Print a line for each round and the ratio of the best ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--events", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    raise_file_limit()
    best = {"galecast": 0.0, "write_message": 0.0}
    with on_load_core():
        for number in range(1, args.rounds + 1):
            for name, start, channel in (
                ("write_message", naive, None),
                ("galecast", galecast, "bench.fanout"),
            ):
                with start() as server:
                    rate = measure(server, channel, args.sessions, args.events)
                best[name] = max(best[name], rate)
                print(f"round {number}  {name:14} {rate:12,.0f} events/s delivered", flush=True)
    ratio = best["galecast"] / best["write_message"]
    print(
        f"best of {args.rounds}: {ratio:.1f} times write_message (at least {LEAST_RATIO:g} asked)"
    )
    return 0 if ratio >= LEAST_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
