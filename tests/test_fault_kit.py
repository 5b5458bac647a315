"""What tests do to disks and clocks is what it says, and heals."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from fake_clock import FakeClock
from ports import steady_ports
from small_disk import SmallDisk
from spawning import spawned

_NOW = "import time; print(time.time(), time.monotonic())"


def test_a_full_disk_takes_nothing_until_it_is_freed() -> None:
    disk = SmallDisk(1_000_000)
    try:
        inside, outside = disk.path / "a", disk.outside / "a"
        write = [*disk.before, "sh", "-c", 'echo text >"$0"', str(inside)]
        subprocess.run(write, check=True)
        assert outside.read_text() == "text\n"
        # Nobody else sees it.
        assert not inside.exists()
        disk.fill()
        assert disk.free_bytes == 0
        more = [*disk.before, "sh", "-c", 'echo more >"$0"', str(disk.path / "b")]
        failed = subprocess.run(more, check=False, capture_output=True)
        assert failed.returncode != 0
        with pytest.raises(OSError, match="No space left") as caught:
            (disk.outside / "c").write_bytes(bytes(100_000))
        assert caught.value.errno == errno.ENOSPC
        disk.free()
        subprocess.run(more, check=True)
        assert (disk.outside / "b").read_text() == "more\n"
    finally:
        disk.close()
    assert not disk.path.exists()


def test_a_clock_jumps_both_ways_and_the_monotonic_one_does_not(tmp_path: Path) -> None:
    clock = FakeClock(tmp_path)

    def read() -> tuple[float, float]:
        output = subprocess.check_output([sys.executable, "-c", _NOW], env=clock.environ, text=True)
        wall, monotonic = output.split()
        return float(wall), float(monotonic)

    wall, monotonic = read()
    clock.jump(1_000)
    ahead, later = read()
    assert 1_000 <= ahead - wall < 1_100
    assert 0 <= later - monotonic < 100
    clock.jump(-1_000)
    behind, _later = read()
    assert -1_000 <= behind - wall < -900


def test_a_program_that_could_not_be_read_is_started_again() -> None:
    failures = [OSError(errno.EFAULT, "Bad address")] * 2

    def start() -> str:
        if failures:
            raise failures.pop()
        return "started"

    assert spawned(start) == "started"


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EFAULT])
def test_a_program_that_cannot_be_started_is_told_of(code: int) -> None:
    tried = 0

    def start() -> None:
        nonlocal tried
        tried += 1
        raise OSError(code, "no")

    with pytest.raises(OSError, match="no") as caught:
        spawned(start)
    assert caught.value.errno == code
    assert tried == (1 if code == errno.ENOENT else 5)


def test_no_two_processes_of_tests_get_the_same_ports() -> None:
    own = steady_ports(150)
    program = "from ports import steady_ports; print(*steady_ports(150)); input()"
    others = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parent / "support",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    ports = list(own)
    for each in others:
        assert each.stdout is not None
        ports += map(int, each.stdout.readline().split())
    for each in others:
        each.communicate("\n")
    assert len(ports) == 450
    assert len(set(ports)) == 450
