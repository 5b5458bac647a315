"""HTTP/1.1 as bytes: what is sent goes out as it is, what comes is cut into answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer; the names of its headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def request(self) -> str:
        """The id of the request that this answers, if it says so."""
        return self.headers.get("x-request-id", "")


def exchange(sock: socket.socket, data: bytes, silence_s: float) -> tuple[bytes, bool]:
    """Send bytes and read to the end; return what came, and whether the end came too.

    Without the end it is over when nothing came for `silence_s`.
    """
    got = bytearray()
    # The server may be done with it all before it has read it all.
    with suppress(ConnectionError):
        sock.settimeout(10)
        sock.sendall(data)
    sock.settimeout(silence_s)
    try:
        while chunk := sock.recv(65_536):
            got += chunk
    except TimeoutError:
        return bytes(got), False
    except ConnectionError:
        pass
    return bytes(got), True


def read_answers(data: bytes, *, bodiless: bool = False) -> Iterator[Answer]:
    """Cut what a server sent into answers; those that only announce another one are left out.

    `bodiless`: the first one answers HEAD. An answer without a head (HTTP/0.9) has status 0.
    """
    if not data.startswith(b"HTTP/1.1 ") and data:
        yield Answer(0, {}, data)
        return
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, f"a head is cut off: {head[:200]!r}"
        start, *lines = head.decode("latin-1").split("\r\n")
        version, status = start.split(" ")[:2]
        assert version == "HTTP/1.1", start
        pairs = (line.split(":", 1) for line in lines)
        headers = {name.lower(): value.strip() for name, value in pairs}
        if 100 <= int(status) < 200:
            continue
        body = b""
        if not bodiless and status not in ("204", "304"):
            body, data = _body(headers, data)
        bodiless = False
        yield Answer(int(status), headers, body)


def _body(headers: dict[str, str], data: bytes) -> tuple[bytes, bytes]:
    """Return a body and what follows it."""
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while True:
            line, _, data = data.partition(b"\r\n")
            size = int(line, 16)
            body, data = body + data[:size], data[size + 2 :]
            if not size:
                return body, data
    size = int(headers.get("content-length", "0"))
    assert len(data) >= size, "a body is cut off"
    return data[:size], data[size:]
