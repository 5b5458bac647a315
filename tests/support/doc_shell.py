"""Runs the commands of a document against a server of its own, as a reader would."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.request import Request, urlopen

import msgpack  # type: ignore[import-untyped]
import websocket

from doc_text import ROOT, Block, console, file_name, pattern

PORT: Final = "8901"
# Where the application of the documents serves its own pages.
APP_PORT: Final = "5000"
SERVE: Final = f"galecast serve --dev --port {PORT}"
WAIT_S: Final = 20.0
_LISTENING: Final = re.compile(r"listening on http://127\.0\.0\.1:(\d+)")
_ASSIGNED: Final = re.compile(r"^([A-Z_]+)=", re.MULTILINE)
# They go on until they are stopped.
_ENDLESS: Final = ("curl -N ", "galecast tail ", "python follow.py")
# What differs from run to run; the same value in the document is the same value in the run.
_VARYING: Final = frozenset({"session", "node", "position", "cursor", "since", "before", "time"})


def wait_for(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    """Wait until a condition holds; fail with `what` when it takes too long."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)


class Codec(Protocol):
    """How messages travel."""

    def pack(self, message: object) -> tuple[bytes, int]: ...
    def unpack(self, payload: Any) -> Any: ...


class Json:
    subprotocol = "galecast.v1.json"

    def pack(self, message: object) -> tuple[bytes, int]:
        return json.dumps(message).encode(), websocket.ABNF.OPCODE_TEXT

    def unpack(self, payload: Any) -> Any:
        return json.loads(payload)


class Msgpack:
    subprotocol = "galecast.v1.msgpack"

    def pack(self, message: object) -> tuple[bytes, int]:
        return msgpack.packb(message), websocket.ABNF.OPCODE_BINARY

    def unpack(self, payload: Any) -> Any:
        return msgpack.unpackb(payload)


class Server:
    """The server that `SERVE` starts, on a free port."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._log = folder / "server.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "server.cli", *SERVE.split()[1:-1], "0"],
                cwd=ROOT,
                env={**os.environ, **environ},
                stdout=log,
                stderr=log,
            )
        wait_for(self._started, self.log)
        found = _LISTENING.search(self.log())
        assert found is not None, self.log()
        self.port = found[1]

    def _started(self) -> bool:
        return bool(_LISTENING.search(self.log())) or self._process.poll() is not None

    def log(self) -> str:
        return self._log.read_text()

    def request(self, method: str, path: str, body: object = None) -> str:
        """Send a request with the API key; gives the answer."""
        request = Request(
            f"http://127.0.0.1:{self.port}{path}",
            None if body is None else json.dumps(body).encode(),
            {"Authorization": "Bearer dev.galecast", "Content-Type": "application/json"},
            method=method,
        )
        with urlopen(request, timeout=WAIT_S) as response:
            answer: bytes = response.read()
        return answer.decode()

    def subscriptions(self) -> int:
        """How many subscriptions there are."""
        text = self.request("GET", "/metrics")
        found = re.search(r"^galecast_subscriptions (\d+)", text, re.MULTILINE)
        assert found is not None
        return int(found[1])

    def stop(self) -> None:
        """End it in good order."""
        self._process.terminate()
        assert self._process.wait(WAIT_S) == 0, self.log()


class _Endless:
    """A command that goes on; what it writes is looked at when the document is over."""

    def __init__(self, block: Block, process: "subprocess.Popen[bytes]", path: Path, text: str):
        self.block = block
        self.process = process
        self._path = path
        # Without any output the document says in words that events show.
        self._wanted = pattern(text or '...\ndata: {"type":"event",...}')

    def seen(self) -> str:
        return self._path.read_text()

    def shown(self) -> bool:
        return self._wanted.match(self.seen()) is not None

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(WAIT_S)


class Shell:
    """A reader's terminals: one folder, one server, variables kept from block to block."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder = folder
        self.server = server
        self.known: dict[str, Any] = {}
        self._endless: list[_Endless] = []
        self._state = folder / ".variables"
        self._state.touch()
        programs = folder / ".bin"
        programs.mkdir()
        for name, command in (("galecast", " -m server.cli"), ("python", "")):
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}"{command} "$@"\n')
            program.chmod(0o755)
        self._environ = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }

    def _script(self, command: str) -> str:
        keep = [f'declare -p {name} >> "{self._state}"' for name in _ASSIGNED.findall(command)]
        lines = ["set -euo pipefail", f'. "{self._state}"']
        return "\n".join([*lines, command.replace(PORT, self.server.port), *keep])

    def run(self, block: Block, command: str, output: str | None = None) -> None:
        """Run a command; with `output` compare what it writes to standard output."""
        if command.startswith(_ENDLESS) and " --count " not in command:
            self._follow(block, command, output or "")
            return
        try:
            done = subprocess.run(
                ["bash", "-c", self._script(command)],
                cwd=self.folder,
                env=self._environ,
                capture_output=True,
                text=True,
                timeout=WAIT_S * 2,
            )
        except subprocess.TimeoutExpired as late:
            raise AssertionError(
                f"{block.place}: {command}: no end\n{late.stdout!r}\n{self.server.log()}"
            ) from None
        story = f"{block.place}: {command}\n{done.stdout}{done.stderr}\n{self.server.log()}"
        assert done.returncode == 0, story
        if output is not None:
            assert pattern(output.strip()).fullmatch(done.stdout.strip()), story

    def _follow(self, block: Block, command: str, output: str) -> None:
        before = self.server.subscriptions()
        path = self.folder / f"endless-{len(self._endless)}"
        with path.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-c", self._script(command)],
                cwd=self.folder,
                env=self._environ,
                stdout=file,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        endless = _Endless(block, process, path, output)
        self._endless.append(endless)
        wait_for(
            lambda: self.server.subscriptions() > before,
            lambda: f"{block.place}: {command}: no subscription\n{endless.seen()}",
        )

    def run_block(self, block: Block, codec: Json | Msgpack | None = None) -> None:
        """Run a block by its language."""
        if block.language == "sh":
            self.run(block, block.text)
        elif block.language == "console":
            for command in console(block):
                self.run(block, command.text, command.output)
        elif block.language == "session":
            self.replay(block, codec or Json())
        elif block.language == "toml":
            (self.folder / "galecast.toml").write_text(block.text)
        elif name := file_name(block):
            self.write(name, block)
        else:
            raise AssertionError(f"{block.place}: blocks of {block.language} are not run")

    def write(self, name: str, block: Block) -> Path:
        """Write a file that a block is, for the commands that come after it."""
        path = self.folder / name
        path.write_text(block.text.replace(PORT, self.server.port))
        return path

    def finish(self) -> None:
        """Wait until every command that goes on has shown what it should."""
        for each in self._endless:
            wait_for(each.shown, lambda each=each: f"{each.block.place}:\n{each.seen()}")  # type: ignore[misc]

    def close(self) -> None:
        for each in self._endless:
            each.stop()

    # ---- sessions

    def replay(self, block: Block, codec: Json | Msgpack) -> None:
        """Say what the document says that a client says, and compare what comes."""
        link = websocket.create_connection(
            f"ws://127.0.0.1:{self.server.port}/v1/ws",
            timeout=WAIT_S,
            subprotocols=[codec.subprotocol],
            suppress_origin=True,
        )
        try:
            for line in block.text.splitlines():
                arrow, message = line[:3], json.loads(line[3:])
                if arrow == "-> ":
                    payload, opcode = codec.pack(self._real(message))
                    link.send(payload, opcode)
                else:
                    assert arrow == "<- ", f"{block.place}: {line}"
                    heard = codec.unpack(link.recv())
                    self._compare(message, heard, f"{block.place}: {line}\nbut came\n{heard}")
        finally:
            link.close()

    def _real(self, said: Any) -> Any:
        if isinstance(said, dict):
            return {key: self._real(value) for key, value in said.items()}
        return self.known.get(said, said) if isinstance(said, str) else said

    def _compare(self, said: Any, heard: Any, story: str, key: str = "") -> None:
        if key in _VARYING and type(said) in (str, int):
            assert type(heard) is type(said), story
            assert self.known.setdefault(str(said), heard) == heard, story
        elif isinstance(said, dict) and isinstance(heard, dict):
            assert [*said] == [*heard], story
            for name, value in said.items():
                self._compare(value, heard[name], story, name)
        elif isinstance(said, list) and isinstance(heard, list):
            assert len(said) == len(heard), story
            for one, other in zip(said, heard, strict=True):
                self._compare(one, other, story)
        else:
            assert said == heard, story


@contextmanager
def reader(folder: Path, environ: Mapping[str, str] | None = None) -> Iterator[Shell]:
    """A reader with a server; both are gone afterwards."""
    server = Server(folder, environ or {})
    shell = None
    try:
        shell = Shell(folder, server)
        yield shell
    finally:
        if shell is not None:
            shell.close()
        server.stop()
