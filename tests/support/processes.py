"""A server in a process of its own, as an operator runs it."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from spawning import spawned

ROOT = Path(__file__).resolve().parent.parent.parent
_LISTENING = re.compile(r"listening on (http://\S+?:(\d+))")
# To start takes a second or two, and very busy machines twenty times as long.
_PATIENCE_S = 50.0


class ServerProcess:
    """`galecast serve --dev --port 0`, or with other arguments; killed when the block ends.

    `before` stands before the command, such as `nsenter` and its arguments; it has to become it.
    """

    def __init__(
        self,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        before: Sequence[str] = (),
    ) -> None:
        command = [*before, sys.executable, "-m", "server.cli", "serve", "--port", "0"]
        self._process = spawned(
            lambda: subprocess.Popen(
                [*command, *(arguments or ("--dev",))],
                cwd=ROOT,
                env={**os.environ, "GALECAST_LOG_FORMAT": "json", **(environ or {})},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            match = _LISTENING.search(self.await_log("listening on "))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        assert match is not None
        self.url = match[1]
        self.port = int(match[2])

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def log(self) -> str:
        """All that the server has written so far."""
        return "".join(self._lines)

    def await_log(self, text: str) -> str:
        """Return the first line that holds `text`, once it is there."""
        deadline = time.monotonic() + _PATIENCE_S
        with self._changed:
            while True:
                for line in self._lines:
                    if text in line:
                        return line
                left = deadline - time.monotonic()
                if left <= 0 or not self._reader.is_alive():
                    raise AssertionError(f"{text!r} is not in the log:\n{''.join(self._lines)}")
                self._changed.wait(min(left, 0.2))

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def cpu_s(self) -> float:
        """Return the CPU time used so far, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def ended(self, within_s: float) -> bool:
        """Say whether it ends within that time."""
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        return self._process.wait(_PATIENCE_S)

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            # Not SIGKILL: what tests cover in this process is written down at its end.
            self._process.terminate()
            try:
                self._process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()
