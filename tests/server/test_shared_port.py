import socket
from typing import Any

import pytest

from server.shared_port import reserve

_PATIENCE_S = 20.0


def test_a_reserved_port_is_nobody_elses() -> None:
    held = reserve("localhost", 0)
    try:
        ports = {sock.getsockname()[1] for sock in held}
        assert len(ports) == 1
        port = ports.pop()
        with pytest.raises(OSError):
            socket.create_server(("127.0.0.1", port))
        # It does not listen: nobody is kept waiting there.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S)
        with pytest.raises(OSError):
            reserve("127.0.0.1", port)
        worker = socket.create_server(("127.0.0.1", port), reuse_port=True)
        with worker, socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S):
            worker.accept()[0].close()
    finally:
        for sock in held:
            sock.close()


def test_localhost_without_ipv6_is_what_is_left_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where ::1 is nobody's address."""

    def found(*_: Any, **__: Any) -> list[Any]:
        tcp = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(socket.AF_INET6, *tcp, ("2001:db8::1", 0, 0, 0)), *four]

    four: list[Any] = socket.getaddrinfo("127.0.0.1", 0, type=socket.SOCK_STREAM)
    monkeypatch.setattr(socket, "getaddrinfo", found)
    [sock] = reserve("localhost", 0)
    with sock:
        assert sock.getsockname()[0] == "127.0.0.1"
    four.clear()
    with pytest.raises(OSError):
        reserve("localhost", 0)


def test_a_host_that_is_not_here_cannot_be_listened_on() -> None:
    with pytest.raises(OSError):
        reserve("192.0.2.1", 0)
