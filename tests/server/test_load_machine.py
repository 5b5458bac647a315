import os
import resource
import socket
import time

import pytest

from server.load_cores import choose, parse_cores, show
from server.load_machine import (
    Shares,
    Usage,
    bottleneck,
    listeners,
    need_files,
    shares,
    usage,
)


@pytest.mark.parametrize(
    ("cpu", "waited", "says"),
    [
        (0.50, 0.00, ""),
        (0.84, 0.00, ""),
        (0.86, 0.00, "it used 86% of a core)"),
        (0.50, 0.40, "it used 50% of a core, and waited for it 40% of the time)"),
    ],
)
def test_the_load_says_when_it_was_the_bottleneck(cpu: float, waited: float, says: str) -> None:
    text = bottleneck(Shares(cpu, waited, 0))
    assert bool(text) == bool(says)
    assert says in text
    if text:
        assert text.startswith("the load generator was the bottleneck; figures are lower bounds")


def test_of_what_is_not_known_nothing_is_said() -> None:
    assert bottleneck(None) == ""
    assert shares(None, Usage(1.0, 0.0, 0.0, 0)) is None


def test_shares_are_of_the_time_between() -> None:
    found = shares(Usage(10.0, 1.0, 0.5, 7), Usage(12.0, 2.0, 0.7, 9))
    assert found is not None
    assert (found.cpu, found.waited, found.rss_bytes) == pytest.approx((0.5, 0.1, 9))


def test_the_cpu_of_this_process_is_read() -> None:
    before = usage()
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    found = shares(before, usage())
    assert found is not None
    assert found.cpu > 0
    assert found.rss_bytes > 1_000_000


def test_a_process_that_is_gone_has_no_usage() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert usage(pid) is None


def test_who_listens_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        assert listeners(port) == [os.getpid()]
    assert listeners(port) == []


def test_more_files_than_the_hard_limit_are_not_to_be_had() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = limits
    if hard == resource.RLIM_INFINITY:
        pytest.skip("there is no hard limit")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
        assert need_files(300)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
        assert not need_files(hard + 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert soft


@pytest.mark.parametrize(
    ("text", "cores"), [("1", {1}), ("0,2-4", {0, 2, 3, 4}), ("3-3", {3}), ("0,0", {0})]
)
def test_lists_of_cores(text: str, cores: set[int]) -> None:
    assert parse_cores(text) == cores
    assert parse_cores(show(cores)) == cores


@pytest.mark.parametrize("text", ["", "x", "2-1", "1-", "-1", "1,,2", "\u0661", "1234567"])
def test_what_is_no_list_of_cores(text: str) -> None:
    with pytest.raises(ValueError, match="write auto, none"):
        parse_cores(text)


def test_a_core_that_this_process_may_not_use_is_refused() -> None:
    beyond = max(os.sched_getaffinity(0)) + 1
    with pytest.raises(ValueError, match="may use"):
        choose(str(beyond), [])


def test_the_load_goes_where_the_server_is_not() -> None:
    usable = os.sched_getaffinity(0)
    if len(usable) < 2:
        pytest.skip("there is one core only")
    pid = os.fork()
    if pid == 0:
        time.sleep(30)
        os._exit(0)
    try:
        os.sched_setaffinity(pid, {max(usable)})
        found = choose("auto", [pid])
        assert found.own and max(usable) not in found.own
        assert f"the server on {max(usable)}" in found.note
        os.sched_setaffinity(pid, usable)
        assert len(choose("auto", [pid]).own) == 1
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_without_a_server_to_keep_away_from_it_runs_anywhere() -> None:
    assert choose("auto", []).own == choose("none", [1]).own == frozenset()
