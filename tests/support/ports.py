"""Ports of this machine for servers that are restarted where they were."""

import random
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Final

_LEAST: Final = 10_000
# Ports that one process of the tests has for itself; it takes more when they are used up.
_BLOCK: Final = 100

_blocks: list[socket.socket] = []
_left: list[int] = []


def steady_ports(number: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on, and no connection takes meanwhile.

    They are below those that the kernel gives to connections that go out, and none of them was
    returned before, nor is to other processes of tests while this one lives.
    """
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < number:
            if not _left:
                _left.extend(_take_block())
            port = _left.pop()
            sock = stack.enter_context(socket.socket())
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    return found


def _take_block() -> list[int]:
    """Return the ports of a block that no other process has, in any order.

    Whoever has one holds a socket of that name, which goes with the process.
    """
    range_file = Path("/proc/sys/net/ipv4/ip_local_port_range")
    low = int(range_file.read_text().split()[0]) if range_file.exists() else 32_768
    begins = list(range(_LEAST, max(low, _LEAST + 10_000) - _BLOCK, _BLOCK))
    random.shuffle(begins)
    for begin in begins:
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            holder.bind(f"\0galecast-tests-{begin}")
        except OSError:
            holder.close()
            continue
        _blocks.append(holder)
        ports = list(range(begin, begin + _BLOCK))
        random.shuffle(ports)
        return ports
    raise AssertionError("no ports are left for tests")
