"""A single node with an archive is killed under load: nothing is lost, nothing is doubled."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from itertools import count
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
from websocket import WebSocket, create_connection

from fleet import await_true
from ports import steady_ports
from processes import ServerProcess

BEARER = {"Authorization": "Bearer dev.galecast", "Content-Type": "application/json"}
CHANNELS = ("a.one", "a.two")
KILLS = 4


class Node:
    """A node on one port, with one archive, however often it dies."""

    def __init__(self, folder: Path) -> None:
        (self.port,) = steady_ports(1)
        config = folder / "galecast.toml"
        config.write_text('[[channels]]\nmatch = "a.>"\narchive = true\nhistory_size = 20\n')
        address = f"sqlite:///{folder / 'archive.db'}"
        self._arguments = (
            *("--dev", "--port", str(self.port)),
            *("--config", str(config), "--archive-url", address),
        )
        self.process = ServerProcess(*self._arguments)

    def die_and_rise(self) -> None:
        self.process.signal(SIGKILL)
        self.process.__exit__(None, None, None)
        self.process = ServerProcess(*self._arguments)


class Publisher:
    """Publishes in arrays of ten; what is not acknowledged is sent again with the same ids."""

    def __init__(self, node: Node, name: str) -> None:
        self.acknowledged: dict[str, list[tuple[str, str]]] = {channel: [] for channel in CHANNELS}
        self.batches = 0
        self.failures = 0
        self._node = node
        self._name = name
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for number in count():
            events = [
                {"channel": CHANNELS[n % 2], "id": f"{self._name}.{number}.{n}", "data": n}
                for n in range(10)
            ]
            while not self._publish(events):
                self.failures += 1
                if self._stop.wait(0.05):
                    return
            self.batches += 1
            if self._stop.is_set():
                return

    def _publish(self, events: list[Any]) -> bool:
        connection = HTTPConnection("127.0.0.1", self._node.port, timeout=10)
        try:
            connection.request("POST", "/v1/events", json.dumps(events), BEARER)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, HTTPException, ValueError):
            return False
        finally:
            connection.close()
        if response.status != 200 or any("code" in each for each in answer["results"]):
            return False
        for each in answer["results"]:
            self.acknowledged[each["channel"]].append((each["id"], each["position"]))
        return True

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@contextmanager
def publishing(node: Node, number: int) -> Iterator[list[Publisher]]:
    publishers = [Publisher(node, f"p{n}") for n in range(number)]
    try:
        yield publishers
    finally:
        for publisher in publishers:
            publisher.stop()


def more(publishers: list[Publisher]) -> None:
    """Wait until each has had three more arrays acknowledged."""
    before = [each.batches for each in publishers]
    await_true(
        lambda: all(e.batches >= b + 3 for e, b in zip(publishers, before, strict=True)),
        lambda: f"{before}, then {[each.batches for each in publishers]}",
    )


def every_event(node: Node, channel: str) -> list[Any]:
    """Read all that is kept of a channel, page by page; nothing may be missing."""
    found: list[Any] = []
    cursor = ""
    while True:
        connection = HTTPConnection("127.0.0.1", node.port, timeout=10)
        connection.request("GET", f"/v1/channels/{channel}/events?limit=1000{cursor}", None, BEARER)
        page = json.loads(connection.getresponse().read())
        connection.close()
        assert "missing" not in page
        found += page["events"]
        if "cursor" not in page:
            return found
        cursor = f"&cursor={page['cursor']}"


def subscribe(node: Node, channel: str, since: str | None) -> tuple[WebSocket, Any]:
    socket = create_connection(
        f"ws://127.0.0.1:{node.port}/v1/ws",
        timeout=10,
        header=[f"Authorization: {BEARER['Authorization']}"],
    )
    socket.send(json.dumps({"type": "subscribe", "ref": 1, "channel": channel, "since": since}))
    while True:
        message = json.loads(socket.recv())
        if message["type"] == "subscribed":
            return socket, message


@pytest.mark.timeout(seconds=120)
def test_what_was_acknowledged_is_there_after_every_crash(tmp_path: Path) -> None:
    node = Node(tmp_path)
    try:
        socket, begun = subscribe(node, CHANNELS[0], None)
        socket.close()
        with publishing(node, 4) as publishers:
            for _ in range(KILLS):
                more(publishers)
                node.die_and_rise()
            more(publishers)
        assert all(each.failures for each in publishers)
        for channel in CHANNELS:
            events = every_event(node, channel)
            expected = {
                name: place for each in publishers for name, place in each.acknowledged[channel]
            }
            assert {event["id"]: event["position"] for event in events} == expected
            assert len(events) == len(expected)
            # One epoch through all of it.
            places = [event["position"].split("-") for event in events]
            assert len({epoch for epoch, _offset, _check in places}) == 1
            assert [int(offset) for _epoch, offset, _check in places] == [
                *range(1, len(events) + 1)
            ]
        # A client that was away all the time gets all of it, once and in order.
        socket, resumed = subscribe(node, CHANNELS[0], begun["position"])
        assert resumed["recovered"] is True
        expected_ids = [event["id"] for event in every_event(node, CHANNELS[0])]
        got = [json.loads(socket.recv())["id"] for _ in expected_ids]
        socket.close()
        assert got == expected_ids
    finally:
        node.process.__exit__(None, None, None)
