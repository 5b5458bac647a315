"""How many connections there may be, before any of them is a session."""

import asyncio
import resource
import socket
import time

import pytest

from config.serving import DrainSettings
from live_rig import live, until
from processes import ServerProcess

CLOSED = b""


async def opened(port: int) -> socket.socket:
    """A connection that sends nothing."""
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return sock


async def ends(sock: socket.socket) -> bool:
    """Say whether the server closes the connection at once."""
    try:
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1), 5)
    except ConnectionResetError:
        return True
    return data == CLOSED


@pytest.mark.parametrize("limit", ["http_connections", "http_connections_per_address"])
async def test_one_more_than_the_limit_is_closed_at_once(limit: str) -> None:
    async with live(**{f"limits__{limit}": 2}) as rig:
        held = [await opened(rig.app.port) for _ in range(2)]
        third = await opened(rig.app.port)
        assert await ends(third)
        assert rig.refusals(limit) == 1
        # There is room again as soon as one of them goes.
        held[0].close()
        await until(lambda: rig.app.http_connections == 1)
        response = await rig.request("GET", "/healthz")
        assert response.status == 200
        for sock in (*held, third):
            sock.close()
        await until(lambda: rig.app.http_connections == 0)


async def test_a_trusted_proxy_has_no_limit_of_its_own() -> None:
    settings = {"limits__http_connections_per_address": 1, "trusted_proxies": ("127.0.0.0/8",)}
    async with live(**settings) as rig:
        held = [await opened(rig.app.port) for _ in range(3)]
        await until(lambda: rig.app.http_connections == 3)
        assert (await rig.request("GET", "/healthz")).status == 200
        for sock in held:
            sock.close()


async def test_a_session_counts_as_a_session_only() -> None:
    async with live(limits__http_connections=1) as rig:
        sessions = [await rig.ws() for _ in range(3)]
        assert rig.app.http_connections == 0
        assert rig.node.occupancy.sessions == 3
        for session in sessions:
            session.close()


async def test_a_node_without_descriptors_waits_and_recovers() -> None:
    """Accepting again at once burnt a whole core and wrote 22,000 lines of log in 3 s."""
    await asyncio.to_thread(exhaust)


def exhaust() -> None:
    with ServerProcess() as server:
        # Below what the node saw at its start, so that accepting really fails.
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (40, 40))
        before = server.cpu_s()
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(80)]
        server.await_log("no connections are accepted for a while")
        started = time.monotonic()
        while time.monotonic() - started < 1.5:
            time.sleep(0.1)
        assert server.cpu_s() - before < 1.0
        assert server.log.count("\n") < 30
        assert "Traceback" not in server.log
        for sock in held:
            sock.close()
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 200")


async def test_descriptors_are_kept_back_for_the_node_itself() -> None:
    async with live() as rig:
        (acceptor,) = rig.app._acceptors
        acceptor._most_files = 2
        held = [await opened(rig.app.port) for _ in range(2)]
        third = await opened(rig.app.port)
        assert await ends(third)
        assert rig.refusals("file_limit") == 1
        for sock in (*held, third):
            sock.close()


async def test_who_was_connected_before_the_end_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel reset what it had taken and the node had not, some of it with a publish inside."""
    # Of the moment that they get nothing is used up by a machine that stands still.
    monkeypatch.setattr("server.app._LAST_REQUESTS_S", 10.0)
    async with live(drain=DrainSettings(delay_s=0.0, grace_s=20.0)) as rig:
        late = await opened(rig.app.port)
        draining = asyncio.create_task(rig.app.drain())
        # Not accepted before it listens no more: all this happens within one turn of the loop.
        loop = asyncio.get_running_loop()
        with socket.create_connection(("127.0.0.1", rig.app.port)) as sock:
            sock.setblocking(False)
            rig.app._acceptors[0].close()
            await asyncio.sleep(0.05)
            assert not draining.done(), "what was accepted last gets a moment"
            await loop.sock_sendall(sock, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = await asyncio.wait_for(loop.sock_recv(sock, 4096), 5)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"Connection: close" in answer
        late.close()
        await draining
