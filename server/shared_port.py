"""Who is connected here? This file: an address that several workers listen on."""

import errno
import socket
from contextlib import ExitStack
from typing import Final

_NO_IPV6: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


def reserve(host: str, port: int) -> list[socket.socket]:
    """Return sockets bound to an address that workers can share, on any free port for 0.

    They do not listen, so the kernel gives them no connections; while they are open the port is
    ours. Raises OSError if another process listens there.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    bound: list[socket.socket] = []
    missing: OSError | None = None
    with ExitStack() as undo:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                sock = _bound(family, kind, protocol, (address[0], port, *address[2:]))
            except OSError as error:
                # localhost may stand for ::1 too, on a machine without IPv6.
                if family != socket.AF_INET6 or error.errno not in _NO_IPV6:
                    raise
                missing = error
                continue
            bound.append(undo.enter_context(sock))
            port = sock.getsockname()[1]
        if not bound and missing is not None:
            raise missing
        undo.pop_all()
    return bound


def _bound(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> socket.socket:
    def make() -> socket.socket:
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        return sock

    if address[1]:
        # First as one that shares with nobody: it would share with a server of the same user that
        # shares too, and each would get a part of the other's clients.
        with make() as alone:
            alone.bind(address)
    with ExitStack() as undo:
        sock = undo.enter_context(make())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        # Who reuses addresses could else listen here for as long as no worker does.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        undo.pop_all()
    return sock
