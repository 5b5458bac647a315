"""The server as an operator has it: a process that is signalled, drained and reloaded."""

import asyncio
import http.client
import json
import signal
import socket
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import websocket

from fleet import await_true
from processes import ROOT, ServerProcess
from redis_server import RedisServer, free_port

_TIMEOUT_S = 20.0


def get(server: ServerProcess, path: str, **headers: str) -> tuple[int, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_TIMEOUT_S)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, response.headers


def session(server: ServerProcess, **headers: str) -> websocket.WebSocket:
    # A service, not a page: no Origin.
    return websocket.create_connection(
        f"ws://127.0.0.1:{server.port}/v1/ws",
        timeout=_TIMEOUT_S,
        suppress_origin=True,
        header=[f"{name}: {value}" for name, value in headers.items()],
    )


def cut(client: websocket.WebSocket) -> None:
    """Close the socket: `close` leaves it open when the server's close frame was read."""
    client.shutdown()  # type: ignore[no-untyped-call]


def hear(client: websocket.WebSocket) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(client.recv())
    return message


async def test_a_drain_tells_every_session_when_to_come_back() -> None:
    await asyncio.to_thread(drain)


def drain() -> None:
    # Long enough for all that is asked meanwhile, by whoever is held up.
    with ServerProcess("--dev", environ={"GALECAST_DRAIN_DELAY_S": "5"}) as server:
        clients = [session(server) for _ in range(5)]
        for client in clients:
            client.send(json.dumps({"type": "connect", "ref": 1}))
            assert hear(client)["type"] == "connected"
        assert get(server, "/readyz")[0] == 200
        server.signal(signal.SIGTERM)
        server.await_log("draining")
        # Not ready, but still here: whoever has not heard of it yet is served.
        status, headers = get(server, "/readyz")
        assert status == 503
        assert headers["Connection"] == "close"
        late = session(server)
        late.send(json.dumps({"type": "connect", "ref": 1}))
        assert hear(late)["type"] == "connected"
        for client in [*clients, late]:
            closing = hear(client)
            assert (closing["type"], closing["code"]) == ("closing", 4001)
            assert closing["reason"] == "draining"
            assert 0 <= closing["retry_in_ms"] <= 5000
            opcode, data = client.recv_data()
            assert opcode == websocket.ABNF.OPCODE_CLOSE
            assert int.from_bytes(data[:2], "big") == 4001
            cut(client)
        assert server.wait() == 0
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", server.port), timeout=_TIMEOUT_S)


async def test_a_second_signal_ends_at_once() -> None:
    await asyncio.to_thread(second_signal)


def second_signal() -> None:
    with ServerProcess("--dev", environ={"GALECAST_DRAIN_DELAY_S": "60"}) as server:
        server.signal(signal.SIGTERM)
        server.await_log("draining")
        server.signal(signal.SIGTERM)
        assert server.wait() == 1


@pytest.mark.parametrize("twice", [True, False])
async def test_an_end_does_not_wait_for_a_redis_that_is_frozen(twice: bool) -> None:
    """It waited for `broker.call_timeout_s`, whatever the grace time, and whoever was in a hurry.

    What waited was the node's farewell to its presence entries; a second signal that came then was
    heard by nobody, and the code was 0.
    """
    await asyncio.to_thread(end_while_redis_is_frozen, twice)


def end_while_redis_is_frozen(twice: bool) -> None:
    environ = {
        "GALECAST_DRAIN_DELAY_S": "0",
        "GALECAST_DRAIN_GRACE_S": "25" if twice else "0.5",
        "GALECAST_BROKER_CALL_TIMEOUT_S": "30",
    }
    with RedisServer() as redis:
        with ServerProcess("--dev", "--broker-url", redis.url, environ=environ) as server:
            await_true(lambda: get(server, "/readyz")[0] == 200, lambda: "never ready")
            redis.stop()
            server.signal(signal.SIGTERM)
            server.await_log("draining")
            if twice:
                server.signal(signal.SIGTERM)
            # Gives up long before Redis' answer is due.
            assert server.wait() == (1 if twice else 0)
            server.await_log("ends without waiting")
        redis.go_on()


async def test_a_drain_ends_with_the_grace_time() -> None:
    await asyncio.to_thread(grace)


def grace() -> None:
    environ = {"GALECAST_DRAIN_GRACE_S": "0.3", "GALECAST_SESSION_CLOSE_TIMEOUT_S": "60"}
    with ServerProcess("--dev", environ=environ) as server:
        # A client that never answers the close frame.
        client = session(server)
        client.send(json.dumps({"type": "connect", "ref": 1}))
        assert hear(client)["type"] == "connected"
        server.signal(signal.SIGTERM)
        server.await_log("the grace time is over")
        assert server.wait() == 0
        cut(client)


KEY = """
[[keys]]
name = "{name}"
id = "{name}"
hash = "sha256:{digest}"
scopes = {{ publish = [">"], history = [">"] }}
"""


async def test_a_reload_changes_keys_rules_and_level(tmp_path: Path) -> None:
    await asyncio.to_thread(reload, tmp_path)


def reload(tmp_path: Path) -> None:
    def key(name: str) -> str:
        return KEY.format(name=name, digest=sha256(b"secret").hexdigest())

    path = tmp_path / "galecast.toml"
    path.write_text(key("one"))
    environ = {"GALECAST_DRAIN_DELAY_S": "0"}
    with ServerProcess("--config", str(path), environ=environ) as server:
        mine = session(server, Authorization="Bearer one.secret")
        assert hear(mine)["type"] == "connected"
        path.write_text(key("two") + '[log]\nlevel = "nonsense"\n')
        server.signal(signal.SIGHUP)
        server.await_log("not reloaded")
        path.write_text(key("two") + '[limits]\ndepth = 10\n[log]\nlevel = "debug"\n')
        server.signal(signal.SIGHUP)
        assert "limits.depth" in server.await_log("need a restart")
        server.await_log("reloaded: ")
        # The key is gone, and so is the session that it opened.
        closing = hear(mine)
        assert (closing["type"], closing["code"]) == ("closing", 4501)
        cut(mine)
        with pytest.raises(websocket.WebSocketBadStatusException):
            session(server, Authorization="Bearer one.secret")
        other = session(server, Authorization="Bearer two.secret")
        assert hear(other)["type"] == "connected"
        other.close()
        assert "secret" not in server.log


async def test_a_port_in_use_is_a_clear_error() -> None:
    await asyncio.to_thread(port_in_use)


def port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "server.cli", "serve", "--dev", "--port", port]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1, port {port}: " in done.stderr
    assert "Traceback" not in done.stderr


async def test_admin_port_serves_health_and_metrics() -> None:
    await asyncio.to_thread(admin_port)


def admin_port() -> None:
    port = free_port()
    with ServerProcess("--dev", "--admin-port", str(port)) as server:
        assert get(server, "/metrics")[0] == 401
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
        for path in ("/healthz", "/readyz", "/metrics"):
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
            assert response.status == 200, (path, body)
        assert b"galecast_connections" in body
        connection.request("GET", "/v1/channels")
        response = connection.getresponse()
        response.read()
        assert response.status == 404
        connection.close()
