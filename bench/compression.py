"""What compression of events saves and costs (`websocket.compression`), and what it adds.

The same node fans out the same events, orders as JSON of about 500 bytes and of 4 KB, to sessions
that do not offer compression and to sessions that do, in turns. One publish is in flight: the next
goes when all sessions have the one before. All that arrives is inflated and checked. Beside that,
what it takes to compress one event, which is all that the server does for it, however many sessions
get it.
"""

import json
import random
import select
import sys
import time
import zlib
from argparse import Namespace
from collections.abc import Iterator

import msgspec

from _case import Case, claim_ratio, note, ours
from _results import Figure, Result, Rounds
from _servers import Server, galecast
from _talk import Requests, drained, sessions, wanted
from config.serving import WebSocketSettings
from handlers.deflate import deflate
from server.load_layout import Layout

OPTIONS = {
    "sessions": (100, 300, "subscribers of one channel"),
    "events": (50, 200, "published one after the other in a round"),
    "rounds": (1, 3, "how often"),
}
MOST_LEFT = 2 / 3
MOST_CPU = 1.5
SIZES = {"500 B": 500, "4 KB": 4000}
LARGEST = ("64 KB", 64_000)
PLAIN, COMPRESSED = "galecast", "galecast (compressed)"
_OFFER = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
_END = b"\r\n\r\n"
_TAIL = b"\0\0\xff\xff"


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
    server: Server, who: str, variant: str, bodies: list[bytes], channel: str, count: int
) -> Figure:
    """Publish all bodies to `count` sessions, one after the other."""
    note(f"{who} {variant}")
    offer = _OFFER if who == COMPRESSED else b""
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
    sizes = [0] * count
    cpu, started = server.cpu_s(), time.perf_counter()
    with Requests(server.port) as publisher:
        for body in bodies:
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
    note("")
    return Figure(
        who=who,
        variant=variant,
        values={
            "delivered_per_s": deliveries / seconds,
            "delivery_us": cpu / deliveries * 1e6,
            "sent_bytes": total / deliveries,
        },
    )


def compressed_alone(variant: str, size: int) -> Figure:
    """Return the time that compressing an event takes, best of many, and what is left of it."""
    level = WebSocketSettings().compression_level
    best, left = float("inf"), 0.0
    for number in range(50):
        payload = json.dumps(data_of(size, number), separators=(",", ":")).encode()
        started = time.perf_counter()
        squeezed = deflate(payload, level)
        best = min(best, time.perf_counter() - started)
        left = len(squeezed) / len(payload)
    return Figure(
        who="one event", variant=variant, values={"compress_us": best * 1e6, "left_share": left}
    )


def _whole(data: bytearray) -> bool:
    """Whether a frame is there as a whole, and nothing else."""
    size = data[1] if len(data) > 1 else 0
    if size < 126:
        return len(data) == 2 + size
    return len(data) >= 4 and len(data) == 4 + int.from_bytes(data[2:4], "big")


def run(options: Namespace, result: Result) -> None:
    """Measure each size with and without in turns; then compressing alone."""
    rounds = Rounds()
    with galecast(settings={"websocket_compression": "true"}) as server:
        for variant, size in SIZES.items():
            channel = f"bench.compression.{size}"
            bodies = [
                json.dumps(
                    {"channel": channel, "data": data_of(size, number)}, separators=(",", ":")
                ).encode()
                for number in range(options.events)
            ]
            for number in range(options.rounds):
                for who in (PLAIN, COMPRESSED) if number % 2 == 0 else (COMPRESSED, PLAIN):
                    rounds.add(measure(server, who, variant, bodies, channel, options.sessions))
    result.figures = rounds.figures()
    for variant in SIZES:
        for value, what, most in (
            ("sent_bytes", "bytes sent for an event, compressed against not", MOST_LEFT),
            ("delivery_us", "CPU for a delivery, compressed against not", MOST_CPU),
        ):
            claim_ratio(
                result,
                rounds,
                f"compression.{variant}.{value}",
                f"{what}, {variant}",
                value,
                COMPRESSED,
                PLAIN,
                variant=variant,
                target=most,
                at_most=True,
            )
    result.figures += [compressed_alone(*each) for each in (*SIZES.items(), LARGEST)]


CASE = Case("compression", __doc__, OPTIONS, run)

if __name__ == "__main__":
    sys.exit(CASE.main())
