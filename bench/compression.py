"""What compression of events saves and costs (`websocket.compression`), in one run.

    python bench/compression.py [--sessions 300] [--events 200] [--rounds 3]

First what it takes to compress one event, which is all that compression adds on the server, however
many sessions get it. Then the same node fans out the same events, JSON of about 500 bytes and of
4 KB as services send them, once with sessions that do not offer compression and once with sessions
that do. One publish is in flight: the next goes when all sessions have the one before. All that
arrives is checked. Server and load run on a core of their own where there are two. Exit code 1 if
less than a third of the bytes is saved, or if a delivery costs more than half as much CPU again.
"""

import argparse
import json
import random
import select
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from _case import ours
from _servers import Server, galecast, on_load_core, raise_file_limit
from _talk import Requests, drained, sessions, wanted
from config.sections import WebSocketSettings
from handlers.deflate import deflate
from server.load_layout import Layout

LEAST_SAVED = 1 / 3
MOST_CPU = 1.5
SIZES = (500, 4000)
LARGEST = 64_000
_OFFER = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
_END = b"\r\n\r\n"
_TAIL = b"\0\0\xff\xff"


@dataclass
class Measured:
    """What one run of events cost."""

    rate: float
    """Events delivered per second, over all sessions."""
    bytes_each: float
    """Bytes on the wire, per event and session."""
    cpu_us: float
    """CPU time of the server, per delivery."""
    longest_ms: float
    """Until the slowest event was everywhere."""


def data_of(size: int, number: int) -> dict[str, object]:
    """Return data of about `size` bytes as JSON: the state of an order, with its lines."""
    source = random.Random(number)  # the same in every run
    names = ("espresso beans", "paper filters", "oat milk", "grinder", "kettle", "scale", "cups")
    order: dict[str, object] = {
        "n": number,
        "order": f"{source.getrandbits(64):016x}",
        "status": source.choice(("received", "packed", "shipped", "delivered")),
        "customer": {"id": source.randrange(10**6), "tier": source.choice(("basic", "plus"))},
        "updated_at": f"2026-03-{source.randint(1, 28):02}T{source.randint(0, 23):02}:15:00Z",
    }
    lines: list[dict[str, object]] = []
    order["lines"] = lines
    while len(json.dumps(order, separators=(",", ":"))) < size - 60:
        lines.append(
            {
                "sku": f"{source.getrandbits(32):08x}",
                "name": source.choice(names),
                "quantity": source.randint(1, 20),
                "price": round(source.uniform(1, 400), 2),
                "in_stock": source.random() < 0.8,
            }
        )
    return order


def payloads(data: bytes) -> Iterator[bytes]:
    """Yield the payloads of the text frames in what a server sent, inflated where need be."""
    at = 0
    while at < len(data):
        first, size, at = data[at], data[at + 1], at + 2
        if size == 126:
            size, at = int.from_bytes(data[at : at + 2], "big"), at + 2
        payload, at = data[at : at + size], at + size
        if first & 0x40:
            payload = zlib.decompressobj(-15).decompress(payload + _TAIL)
        if first & 0x0F == 1:
            yield payload


def measure(
    server: Server, channel: str, bodies: list[bytes], count: int, offer: bytes
) -> Measured:
    """Publish all bodies to `count` sessions, one after the other."""
    wire = ours().target(server.port, Layout(sessions=1)).wires[0]
    everyone = []
    for number in range(count):
        each = wanted(wire, number, channel)
        hello = each.hello.replace(_END, b"\r\n" + offer + b"\r\n", 1)
        everyone.append(msgspec.structs.replace(each, hello=hello))
    opened = [each.sock for each in sessions(server.port, everyone)]
    received = [bytearray() for _ in opened]
    poll = select.epoll()
    for sock in opened:
        poll.register(sock, select.EPOLLIN)
    places = {sock.fileno(): place for place, sock in enumerate(opened)}
    longest, sizes = 0.0, [0] * count
    cpu, started = server.cpu_s(), time.perf_counter()
    with Requests(server.port) as publisher:
        for body in bodies:
            sent = time.perf_counter()
            publisher.send("POST", "/v1/events", body)
            waiting = set(range(count))
            while waiting:
                ready = poll.poll(30.0)
                if not ready:
                    raise RuntimeError(f"{len(waiting)} sessions still wait")
                for number, _events in ready:
                    place = places[number]
                    received[place] += drained(opened[place])
                    if _whole(received[place][sizes[place] :]):
                        sizes[place] = len(received[place])
                        waiting.discard(place)
            longest = max(longest, time.perf_counter() - sent)
            publisher.receive()
    seconds, cpu = time.perf_counter() - started, server.cpu_s() - cpu
    poll.close()
    for sock in opened:
        sock.close()
    streams = {bytes(each) for each in received}
    for stream in streams:
        numbers = [json.loads(payload)["data"]["n"] for payload in payloads(stream)]
        assert numbers == list(range(len(bodies))), "lost, repeated or out of order"
    deliveries = count * len(bodies)
    total = sum(map(len, received))
    return Measured(deliveries / seconds, total / deliveries, cpu / deliveries * 1e6, longest * 1e3)


def compress_us(size: int) -> tuple[float, float]:
    """Return the time that compressing an event takes, best of many, and what part is left."""
    level = WebSocketSettings().compression_level
    best, part = float("inf"), 0.0
    for number in range(50):
        payload = json.dumps(data_of(size, number), separators=(",", ":")).encode()
        started = time.perf_counter()
        squeezed = deflate(payload, level)
        best = min(best, time.perf_counter() - started)
        part = len(squeezed) / len(payload)
    return best * 1e6, part


def _whole(data: bytearray) -> bool:
    """Whether a frame is there as a whole, and nothing else."""
    size = data[1] if len(data) > 1 else 0
    if size < 126:
        return len(data) == 2 + size
    return len(data) >= 4 and len(data) == 4 + int.from_bytes(data[2:4], "big")


def main() -> int:
    """Print a line for each size with and without, and what they make of each other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=300)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    raise_file_limit()
    fine = True
    for size in (*SIZES, LARGEST):
        cost_us, part = compress_us(size)
        print(f"{size:6,} bytes  {cost_us:7,.0f} us to compress, to {part:.0%}", flush=True)
    with on_load_core(), galecast(settings={"websocket_compression": "true"}) as server:
        for size in SIZES:
            kinds: dict[str, Measured] = {}
            channel = f"bench.compression.{size}"
            bodies = [
                json.dumps(
                    {"channel": channel, "data": data_of(size, number)}, separators=(",", ":")
                ).encode()
                for number in range(args.events)
            ]
            for _ in range(args.rounds):
                for name, offer in (("plain", b""), ("compressed", _OFFER)):
                    found = measure(server, channel, bodies, args.sessions, offer)
                    if name not in kinds or found.rate > kinds[name].rate:
                        kinds[name] = found
            for name, each in kinds.items():
                print(
                    f"{size:5,} bytes  {name:10} {each.bytes_each:7,.0f} bytes/event"
                    f" {each.rate:10,.0f} events/s delivered {each.cpu_us:6.2f} us CPU each"
                    f"  slowest {each.longest_ms:5.1f} ms",
                    flush=True,
                )
            plain, compressed = kinds["plain"], kinds["compressed"]
            left = compressed.bytes_each / plain.bytes_each
            cpu = compressed.cpu_us / plain.cpu_us
            print(
                f"{size:5,} bytes  {1 - left:.0%} of the bytes saved,"
                f" {compressed.rate / plain.rate:.2f} times the rate, {cpu:.2f} times the CPU"
                f" (best of {args.rounds}, {args.sessions} sessions)"
            )
            fine = fine and 1 - left >= LEAST_SAVED and cpu <= MOST_CPU
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
