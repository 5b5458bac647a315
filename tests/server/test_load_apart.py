"""A load whose publishers go to another server than its sessions."""

import socket
from contextlib import ExitStack

import pytest

from server.load_engine import Load
from server.load_layout import Layout
from server.load_target import Publishing, Target, Wire


def accepted(listening: socket.socket) -> int:
    """How many connections wait to be accepted."""
    listening.setblocking(False)
    number = 0
    while True:
        try:
            listening.accept()[0].close()
        except BlockingIOError:
            return number
        number += 1


@pytest.mark.parametrize(("apart", "expected"), [(False, (5, 0)), (True, (3, 2))])
def test_publishers_connect_to_their_own_port(apart: bool, expected: tuple[int, int]) -> None:
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=16))
            for _ in range(2)
        )
        target = Target(
            name="none",
            host="127.0.0.1",
            port=one.getsockname()[1],
            publish_port=two.getsockname()[1] if apart else 0,
            # Without a request a connection is open as soon as it is there.
            wires=(Wire(name="none", hello=lambda _: b"", first=lambda _: b"", ready=b""),),
            publishing=lambda: Publishing(
                name="none", build=lambda _: b"", acked=b"yes", refused=b"no"
            ),
        )
        load = stack.enter_context(Load(target, Layout(sessions=3, publishers=2)))
        load.open()
        assert (accepted(one), accepted(two)) == expected
