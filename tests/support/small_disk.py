"""A small disk that can be full: a tmpfs in a mount namespace of its own, so that only those see it
who are started in there. It takes root, or a kernel that lets everybody have namespaces.
"""

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from processes import ROOT
from spawning import spawned

# Whoever is not root is, in a namespace of users of its own.
_ROOT: Final = os.geteuid() == 0
_UNSHARE: Final = ("unshare", "--mount") if _ROOT else ("unshare", "--mount", "--map-root-user")
_MOUNT: Final = 'mount -t tmpfs -o size="$1" tmpfs "$2" && echo mounted && exec sleep infinity'


@cache
def may_mount() -> bool:
    """Say whether this process may mount a file system in a namespace of its own."""
    try:
        command = [*_UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


class SmallDisk:
    """A disk of `size_bytes` at `path`, for processes that are started behind `before`.

    `outside` is the same place for this process. Skips where nobody may mount.
    """

    def __init__(self, size_bytes: int) -> None:
        if not may_mount():
            pytest.skip("nobody may mount a small disk here: it takes root, or namespaces of users")
        self._size_bytes = size_bytes
        self.path = Path(tempfile.mkdtemp(prefix="disk-"))
        arguments = ["sh", str(size_bytes), str(self.path)]
        self._holder = spawned(
            lambda: subprocess.Popen(
                [*_UNSHARE, "sh", "-c", _MOUNT, *arguments], stdout=subprocess.PIPE
            )
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"mounted\n"
        self.outside = Path(f"/proc/{self._holder.pid}/root{self.path}")
        spaces = f"/proc/{self._holder.pid}/ns"
        users = () if _ROOT else (f"--user={spaces}/user", "--preserve-credentials")
        self.before = ("nsenter", *users, f"--mount={spaces}/mnt", f"--wd={ROOT}")

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.outside / "filler").open("ab", buffering=0) as file:
            for size in (65_536, 4_096, 1):
                try:
                    while file.write(b"x" * size):
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        """Give back what `fill` took."""
        (self.outside / "filler").unlink(missing_ok=True)

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.outside)
        return found.f_bavail * found.f_frsize

    def close(self) -> None:
        """Let go of it; whoever is in there keeps it until it ends."""
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()
        shutil.rmtree(self.path, ignore_errors=True)
