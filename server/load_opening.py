"""Who is connected here? This file: many connections opened at once, as a load client does."""

import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from server.load_frames import Framing
from server.load_histogram import Histogram
from server.load_target import LoadFailed

_READ_BYTES: Final = 65_536
_HEAD_BYTES: Final = 65_536
_HEAD_END: Final = b"\r\n\r\n"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A connection to open: what is said on it, and what has to come before it is open.

    `ready` has to stand in `confirmations` messages after the head.
    """

    hello: bytes
    accepted: bytes
    first: bytes
    ready: bytes
    confirmations: int
    refused: bytes
    frames: Framing


class Open(msgspec.Struct, frozen=True):
    """An open connection, not blocking; what was said until it was, and what came behind that."""

    sock: socket.socket
    said: bytes
    rest: bytes


class Opened(msgspec.Struct):
    """How the opening went: connections, over which time, and how long each took."""

    connections: int = 0
    seconds: float = 0.0
    refusals: int = 0
    durations: Histogram = msgspec.field(default_factory=Histogram)

    @property
    def per_s(self) -> float:
        """Return connections per second."""
        return self.connections / self.seconds if self.seconds else 0.0


class _Flight:
    """One connection on its way to be open."""

    __slots__ = (
        "buffer",
        "confirmed",
        "head",
        "messages",
        "place",
        "said",
        "sock",
        "started",
        "wanted",
    )

    def __init__(self, place: int, wanted: Wanted, sock: socket.socket) -> None:
        self.place = place
        self.wanted = wanted
        self.sock = sock
        self.started = time.perf_counter()
        self.buffer = b""
        self.head = b""
        self.messages = b""
        self.said = False
        self.confirmed = 0


class Refusal(LoadFailed):
    """The server refused a handshake; `answer` is all that it said."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(_first_line(answer))
        self.answer = answer


class Opening:
    """Opens connections to one address, `parallel` at a time.

    `again` is asked about a refused handshake: seconds until the next try, or None if it is final.
    `heard` is told now and then how many are open.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        parallel: int = 128,
        timeout_s: float = 20.0,
        again: Callable[[bytes], float | None] = lambda _: None,
        heard: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._family, self._address = _resolve(host, port)
        self._parallel = parallel
        self._timeout_s = timeout_s
        self._again = again
        self._heard = heard
        self._epoll = select.epoll()
        self._flights: dict[int, _Flight] = {}
        self._result = Opened()

    def open(self, wanted: Sequence[Wanted]) -> tuple[list[Open], Opened]:
        """Open them all; raises LoadFailed, and then none of them stays open."""
        opened: list[Open | None] = [None] * len(wanted)
        waiting = deque(enumerate(wanted))
        pause_s = not_before = 0.0
        started = opened_at = time.perf_counter()
        try:
            while waiting or self._flights:
                now = time.perf_counter()
                while waiting and len(self._flights) < self._parallel and now >= not_before:
                    self._launch(*waiting.popleft())
                for flight, done in self._events(0.05 if self._flights else not_before - now):
                    if isinstance(done, Open):
                        opened[flight.place] = done
                        opened_at = time.perf_counter()
                        continue
                    # Refused for now; nothing else is tried before its time either.
                    waiting.append((flight.place, flight.wanted))
                    pause_s, not_before = done, time.perf_counter() + done
                self._heard(self._result.connections)
                if time.perf_counter() - opened_at > self._timeout_s + pause_s:
                    raise LoadFailed(
                        f"the server opened no session within {self._timeout_s + pause_s:g} s; "
                        f"{self._result.connections} of {len(wanted)} are open"
                    )
        except BaseException:
            for each in opened:
                if each is not None:
                    each.sock.close()
            raise
        finally:
            for flight in self._flights.values():
                flight.sock.close()
            self._flights.clear()
            self._epoll.close()
        self._result.seconds = time.perf_counter() - started
        return [each for each in opened if each is not None], self._result

    def _too_many(self, error: OSError, opened: int) -> str:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            why = "this process may open no more files (ulimit -n)"
            return f"no more than {opened} connections: {why}"
        if error.errno in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
            return f"no more than {opened} connections: this machine has no free port left"
        return self._broken(error)

    def _broken(self, error: OSError) -> str:
        host, port = self._address[:2]
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return f"no connection to {where}: {error.strerror or error}"

    def _launch(self, place: int, wanted: Wanted) -> None:
        try:
            sock = socket.socket(self._family, socket.SOCK_STREAM)
        except OSError as error:
            raise LoadFailed(self._too_many(error, self._result.connections)) from None
        flight = _Flight(place, wanted, sock)
        self._flights[sock.fileno()] = flight
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        failed = sock.connect_ex(self._address)
        if failed not in (0, errno.EINPROGRESS):
            raise LoadFailed(self._too_many(OSError(failed, os.strerror(failed)), place))
        self._epoll.register(sock.fileno(), select.EPOLLOUT)

    def _events(self, timeout_s: float) -> Iterator[tuple[_Flight, Open | float]]:
        for number, _event in self._epoll.poll(max(0.0, timeout_s), 512):
            flight = self._flights[number]
            try:
                done = self._step(flight)
            except BlockingIOError:
                continue
            except OSError as error:
                raise LoadFailed(self._broken(error)) from None
            if done is not None:
                del self._flights[number]
                if isinstance(done, Open):
                    self._epoll.unregister(number)
                    self._result.connections += 1
                    self._result.durations.add(time.perf_counter() - flight.started)
                else:
                    self._result.refusals += 1
                    flight.sock.close()
                yield flight, done

    def _step(self, flight: _Flight) -> Open | float | None:
        """Go on with one: it is open, or how long to wait before the next try, or not there yet."""
        sock, wanted = flight.sock, flight.wanted
        if not flight.said:
            if failed := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(failed, os.strerror(failed))
            if not wanted.hello:
                return Open(sock, b"", b"")
            flight.said = True
            sock.sendall(wanted.hello)
            self._epoll.modify(sock.fileno(), select.EPOLLIN)
            return None
        data = sock.recv(_READ_BYTES)
        flight.buffer += data
        if not flight.head:
            end = flight.buffer.find(_HEAD_END)
            if not flight.buffer.startswith(wanted.accepted[: len(flight.buffer)]):
                return self._refused(flight, over=not data)
            if end < 0:
                if not data or len(flight.buffer) > _HEAD_BYTES:
                    raise LoadFailed("the server closed a connection instead of opening a session")
                return None
            flight.head = flight.buffer[: end + 4]
            flight.buffer = flight.buffer[end + 4 :]
            if wanted.first:
                sock.sendall(wanted.first)
        if flight.confirmed < wanted.confirmations:
            self._confirm(flight)
        if flight.confirmed >= wanted.confirmations:
            return Open(sock, flight.messages, flight.buffer)
        if not data:
            raise LoadFailed("the server closed a session before it was ready")
        return None

    def _confirm(self, flight: _Flight) -> None:
        wanted = flight.wanted
        bounds, taken = wanted.frames(flight.buffer)
        for begin, end in bounds:
            message = flight.buffer[begin:end]
            if wanted.refused and wanted.refused in message:
                raise Refusal(message)
            if wanted.ready in message:
                flight.confirmed += 1
                if flight.confirmed == wanted.confirmations:
                    taken = end
                    break
        flight.messages += flight.buffer[:taken]
        flight.buffer = flight.buffer[taken:]

    def _refused(self, flight: _Flight, *, over: bool) -> float | None:
        answer = flight.buffer
        head, found, body = answer.partition(_HEAD_END)
        length = _content_length(head)
        if not over and (not found or (length is not None and len(body) < length)):
            return None
        pause_s = self._again(answer)
        if pause_s is None:
            raise Refusal(answer)
        return pause_s


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LoadFailed(f"{host} is not found: {reason}") from None
    family, _kind, _protocol, _name, address = found[0]
    return family, (str(address[0]), int(address[1]))


def _content_length(head: bytes) -> int | None:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return int(value)
    return None


def _first_line(answer: bytes) -> str:
    line = answer.split(b"\r\n", 1)[0][:200].decode("utf-8", "replace")
    return f"the server refused: {line}" if line else "the server closed the connection"
