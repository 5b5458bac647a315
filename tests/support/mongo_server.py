"""A real server that speaks MongoDB's protocol, for tests: in a folder and on a port of its own.

It is `mongod` where there is one, else `ferretdb` (1.24, over SQLite), on the PATH or named by
`FERRETDB`; without either the test is skipped. `MONGO_URL` names a running one instead, as
`mongodb://host/database`: every test has a database of its own there, whose name begins with that
one, and drops it.
"""

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import pymongo
import pytest
from pymongo.errors import PyMongoError

from pubsub.archive_url import parse_archive_url
from redis_server import free_port
from spawning import spawned

START_S = 20.0
MISSING = "there is neither a mongod nor a ferretdb"


@cache
def find_mongod() -> str | None:
    """Return the path of a mongod, or None."""
    return os.environ.get("MONGOD") or shutil.which("mongod")


@cache
def find_ferretdb() -> str | None:
    """Return the path of a ferretdb, or None."""
    return os.environ.get("FERRETDB") or shutil.which("ferretdb")


def mongo_is_missing() -> bool:
    """Say whether tests have no server to use."""
    return not (os.environ.get("MONGO_URL") or find_mongod() or find_ferretdb())


class MongoServer:
    """A server, started by `with` or `start`; what it has acknowledged survives `kill`."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mongo-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of a database in it."""
        return f"mongodb://127.0.0.1:{self.port}/galecast"

    def __enter__(self) -> "MongoServer":
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.folder / "output").open("ab") as output:
            self._process = spawned(
                lambda: subprocess.Popen(self._command(), stdout=output, stderr=output)
            )
        deadline = time.monotonic() + START_S
        with self.open() as client:
            while not _answers(client):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((self.folder / "output").read_text())

    def _command(self) -> list[str]:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        if mongod := find_mongod():
            place = ["--bind_ip", "127.0.0.1", "--port", str(self.port), "--dbpath", str(data)]
            return [mongod, *place, "--nounixsocket", "--quiet"]
        ferretdb = find_ferretdb()
        if ferretdb is None:
            pytest.skip(MISSING)
        return [
            ferretdb,
            "--handler=sqlite",
            f"--sqlite-url=file:{data}/",
            f"--listen-addr=127.0.0.1:{self.port}",
            f"--state-dir={self.folder}",
            "--debug-addr=-",
            "--telemetry=disable",
            "--log-level=ERROR",
        ]

    def open(self) -> "pymongo.MongoClient[dict[str, Any]]":
        """Return a client, which the caller closes."""
        return pymongo.MongoClient(self.url, serverSelectionTimeoutMS=100)

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Let it freeze; `go_on` wakes it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it and delete its folder; may be called twice."""
        if self._process is not None:
            self.go_on()
            self._end(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None


def _answers(client: "pymongo.MongoClient[dict[str, Any]]") -> bool:
    try:
        client.admin.command("ping")
    except PyMongoError:
        return False
    return True


@cache
def _shared_server() -> MongoServer:
    server = MongoServer()
    server.start()
    atexit.register(server.close)
    return server


def shared_mongo_url() -> str:
    """Return the address of one server for all tests that use a database of their own."""
    url = os.environ.get("MONGO_URL") or _shared_server().url
    assert parse_archive_url(url).kind == "mongodb"
    return url
