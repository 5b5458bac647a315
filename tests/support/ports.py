"""Ports of this machine for servers that are restarted where they were."""

import random
import socket
from contextlib import ExitStack
from pathlib import Path

_LEAST = 10_000
_given: set[int] = set()


def steady_ports(number: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on, and no connection takes meanwhile.

    They are below those that the kernel gives to connections that go out, and none of them was
    returned before.
    """
    range_file = Path("/proc/sys/net/ipv4/ip_local_port_range")
    low = int(range_file.read_text().split()[0]) if range_file.exists() else 32_768
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < number:
            sock = stack.enter_context(socket.socket())
            port = random.randrange(_LEAST, max(low, _LEAST + 10_000))
            if port in _given:
                continue
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
            _given.add(port)
    return found
