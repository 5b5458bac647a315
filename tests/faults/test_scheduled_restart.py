"""A single node that is killed around the time at which something is due."""

import asyncio
import http.client
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from processes import ServerProcess

KEY = "dev.galecast"
RULES = """
[[channels]]
match = "a.>"
archive = true
client_publish = true
"""


def ask(server: ServerProcess, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    headers = {"Authorization": f"Bearer {KEY}"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, json.loads(text) if text else None


def kept(server: ServerProcess) -> list[str]:
    _status, page = ask(server, "GET", "/v1/channels/a.b/events")
    return [event["id"] for event in page["events"]]


def await_events(server: ServerProcess, count: int) -> None:
    deadline = time.monotonic() + 20
    while len(kept(server)) < count:
        assert time.monotonic() < deadline, "they never came"
        time.sleep(0.01)


def serve(folder: Path) -> ServerProcess:
    config = folder / "galecast.toml"
    config.write_text(RULES)
    return ServerProcess(
        "--dev", "--config", str(config), "--archive-url", f"sqlite:///{folder}/archive.db"
    )


def schedule(server: ServerProcess, event_id: str, at: int) -> bool:
    """Schedule an event; False if it was published, as its time had come when it arrived."""
    event = {"channel": "a.b", "data": 1, "id": event_id, "deliver_at": at}
    status, answer = ask(server, "POST", "/v1/events", event)
    if status == 200:
        assert now_ms() >= at
        return False
    assert (status, answer["scheduled"]) == (202, True)
    return True


def kill(server: ServerProcess) -> None:
    server.signal(signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.mark.timeout(seconds=150)
@pytest.mark.parametrize("ahead_ms", [50, 400])
async def test_what_was_answered_is_there_after_a_kill(tmp_path: Path, ahead_ms: int) -> None:
    await asyncio.to_thread(killed_after_the_answer, tmp_path, ahead_ms)


def killed_after_the_answer(folder: Path, ahead_ms: int) -> None:
    # With little ahead it may have begun to publish when it is killed.
    early = ahead_ms > 100
    while True:
        folder = folder / f"{ahead_ms}"
        folder.mkdir()
        with serve(folder) as server:
            at = now_ms() + ahead_ms
            scheduled = [
                schedule(server, event_id, at + later)
                for event_id, later in [("z", 5), ("y", 3), ("x", 1)]
            ]
            kill(server)
        if all(scheduled) and (not early or now_ms() < at):
            break
        # The machine stood still for that long.
        ahead_ms *= 2
    # It is due while nobody is there.
    time.sleep(max(0.0, (at + 100 - now_ms()) / 1000))
    with serve(folder) as server:
        await_events(server, 3)
        assert sorted(kept(server)) == ["x", "y", "z"]
        if early:
            assert kept(server) == ["x", "y", "z"]
        kill(server)
    with serve(folder) as server:
        # One that follows is published, and those before it not again.
        schedule(server, "w", now_ms() + 200)
        await_events(server, 4)
        assert sorted(kept(server)) == ["w", "x", "y", "z"]


@pytest.mark.timeout(seconds=150)
async def test_what_was_published_is_not_published_again_after_a_kill(tmp_path: Path) -> None:
    await asyncio.to_thread(killed_after_the_event, tmp_path)


def killed_after_the_event(folder: Path) -> None:
    expected = []
    for round_ in range(3):
        with serve(folder) as server:
            expected.append(f"x{round_}")
            schedule(server, expected[-1], now_ms() + 200)
            await_events(server, round_ + 1)
            kill(server)
    with serve(folder) as server:
        status, page = ask(server, "GET", "/v1/channels/a.b/schedules")
        assert (status, page["schedules"]) == (200, [])
        schedule(server, "y", now_ms() + 200)
        await_events(server, 4)
        assert kept(server) == [*expected, "y"]
