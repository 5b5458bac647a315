"""What every test gets without asking: a loop, a quiet log, a local server, honest skips.

- `async def test_x(...)` just works: it runs on a loop of its own (the fixture `io_loop`), at
  most 60 s. No marker, no decorator. A task, socket or other descriptor that it leaves behind on
  that loop fails it.
- A log record at WARNING or above fails the test unless the test says that it provokes it, by
  `@pytest.mark.expect_log("server.hub", "slow session")` or by the fixture `expect_log`. An
  announced record that does not come fails the test too, unless `required=False`.
- `http_server` and `http_server_client` (of pytest-tornasync) serve the fixture `app` on a free
  port of 127.0.0.1.
- What failed is told at once, in a line, for a run that is cut short; the rest comes at the end.
- With `TEST_STRICT=1` a skip is a failure. The name does not begin with `GALECAST_`, since every
  such variable is a setting; they are removed here, so that the settings of whoever runs the
  tests reach neither the tests nor the servers they start.
"""

import asyncio
import logging
import os
import re
import selectors
import signal
import socket
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from inspect import iscoroutinefunction
from itertools import count
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, settings
from tornado.ioloop import IOLoop
from tornado.platform.asyncio import AsyncIOLoop

STRICT = os.environ.get("TEST_STRICT", "") not in ("", "0")

# How long what a test has closed may take to be gone, and how many looks at it at least: a machine
# that stands still takes the time of whom it gives no turn.
SETTLE_S = 2.0
SETTLE_LOOKS = 40


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    # Workers have no terminal; what they report comes to their parent, which has.
    if (terminal := config.pluginmanager.get_plugin("terminalreporter")) is not None:
        config.pluginmanager.register(TellFailures(terminal))
    foreign = ["GALECAST_"]
    if hasattr(config, "workerinput") or not config.getoption("tx", None):
        # This process is measured, if any: servers that tests start are not. It would take
        # minutes, and shows little that others have not covered.
        foreign.append("COVERAGE_")
    for name in [name for name in os.environ if name.startswith(tuple(foreign))]:
        del os.environ[name]
    # A shell that runs this in the background ignores SIGINT, and so would all that tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # How fast an example runs says nothing on a shared machine.
    slow = [HealthCheck.too_slow]
    settings.register_profile("galecast", deadline=None, suppress_health_check=slow)
    settings.load_profile("galecast")


def pytest_itemcollected(item: pytest.Item) -> None:
    marker = item.get_closest_marker("timeout")
    if marker is not None and marker.args:
        # Without its name pytest-tornasync would not see it.
        raise pytest.UsageError(f"{item.nodeid}: write timeout(seconds=...)")


# ---- failures and skips


class TellFailures:
    """Writes a line for each failure."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = crash.message if crash else str(report.longrepr)
            line = next((each for each in why.splitlines() if each.strip()), "")
            text = f"FAILED {report.nodeid} ({report.when}): {line[:200]}"
            self._terminal.write(f"\n{text}\n", red=True)


def _skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if STRICT and report.skipped and not hasattr(report, "wasxfail"):
        report.longrepr = f"unexpected skip: {_skip_reason(report)}"
        report.outcome = "failed"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if STRICT and report.outcome == "skipped":
        report.longrepr = f"unexpected skip: {_skip_reason(report)}"
        report.outcome = "failed"
    return report


# ---- coverage


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    measuring = None
    if item.get_closest_marker("unmeasured") is not None:
        from coverage import Coverage

        measuring = Coverage.current()
    if measuring is None:
        return (yield)
    measuring.stop()
    try:
        return (yield)
    finally:
        measuring.start()


# ---- the log


@dataclass(slots=True)
class Expectation:
    """One announced kind of record: from `logger` or below it, matching `pattern`."""

    logger: str
    pattern: re.Pattern[str]
    required: bool
    seen: int = 0

    def accepts(self, record: logging.LogRecord) -> bool:
        inside = not self.logger or f"{record.name}.".startswith(f"{self.logger}.")
        return inside and self.pattern.search(record.getMessage()) is not None


@dataclass(slots=True)
class LogWatch:
    """Sorts the records of one test into announced and unexpected ones."""

    expectations: list[Expectation] = field(default_factory=list)
    records: list[logging.LogRecord] = field(default_factory=list)

    def expect(self, logger: str, pattern: str, required: bool = True) -> Expectation:
        expectation = Expectation(logger, re.compile(pattern), required)
        self.expectations.append(expectation)
        return expectation

    def complaints(self) -> list[str]:
        """Unexpected records, then announced ones that never came. To be called once."""
        found = []
        for record in self.records:
            accepting = [e for e in self.expectations if e.accepts(record)]
            for expectation in accepting:
                expectation.seen += 1
            if not accepting:
                text = logging.Formatter("%(levelname)s %(name)s: %(message)s").format(record)
                found.append(f"unexpected log record: {text}")
        found += [
            f"no log record of {e.logger!r} matches {e.pattern.pattern!r}"
            for e in self.expectations
            if e.required and not e.seen
        ]
        return found


class _Watcher(logging.Handler):
    def __init__(self, watch: LogWatch) -> None:
        super().__init__(logging.WARNING)
        self._watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        self._watch.records.append(record)


class ExpectLog(Protocol):
    """The type of the fixture `expect_log`."""

    def __call__(self, logger: str, pattern: str, required: bool = True) -> Expectation: ...


@pytest.fixture(autouse=True)
def log_watch(request: pytest.FixtureRequest) -> Iterator[LogWatch]:
    """Fails the test on an unexpected record at WARNING or above, whenever it is logged."""
    watch = LogWatch()
    for mark in request.node.iter_markers("expect_log"):
        watch.expect(*mark.args, **mark.kwargs)
    handler = _Watcher(watch)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield watch
    finally:
        root.removeHandler(handler)
    if complaints := watch.complaints():
        pytest.fail("\n".join(complaints), pytrace=False)


@pytest.fixture
def expect_log(log_watch: LogWatch) -> ExpectLog:
    """Announces a record: `expect_log("server.hub", "slow session")`."""
    return log_watch.expect


# ---- the loop


async def _settle(selector: selectors.BaseSelector, quiet: int) -> list[str]:
    """Wait until nothing of the test is left on the loop; name what stays, and cancel it."""
    loop = asyncio.get_running_loop()
    me = asyncio.current_task()
    deadline = loop.time() + SETTLE_S
    for look in count(1):
        tasks = [task for task in asyncio.all_tasks() if task is not me]
        files = list(selector.get_map().values())[quiet:]
        if not (tasks or files):
            return []
        if loop.time() >= deadline and look >= SETTLE_LOOKS:
            break
        await asyncio.sleep(0.005)
    left = [f"task left running: {task!r}" for task in tasks]
    left += [f"descriptor left on the loop: {key.fileobj!r} ({key.data!r})" for key in files]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return left


@pytest.fixture
def io_loop(log_watch: LogWatch) -> Iterator[IOLoop]:
    """A new loop for one test, the current one of its thread, closed with all it still holds.

    It replaces the fixture of pytest-tornasync, which sets the current loop in a way that
    Tornado deprecates.
    """
    selector = selectors.DefaultSelector()
    asyncio_loop = asyncio.SelectorEventLoop(selector)
    asyncio.set_event_loop(asyncio_loop)
    loop = AsyncIOLoop(asyncio_loop=asyncio_loop, make_current=False)
    quiet = len(selector.get_map())
    yield loop
    # Code under test may have called asyncio.run(), which forgets the current loop.
    asyncio.set_event_loop(asyncio_loop)
    try:
        left = asyncio_loop.run_until_complete(_settle(selector, quiet))
        asyncio_loop.run_until_complete(asyncio_loop.shutdown_asyncgens())
        asyncio_loop.run_until_complete(asyncio_loop.shutdown_default_executor())
    finally:
        loop.close(all_fds=True)
        asyncio.set_event_loop(None)
    if left:
        pytest.fail("\n".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def loop_of_async_test(request: pytest.FixtureRequest) -> None:
    """Gives every async test its own loop, also one that does not name `io_loop`."""
    if iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("io_loop")


@pytest.fixture
def http_server_port() -> tuple[socket.socket, int]:
    """Where `http_server` listens: a free port of 127.0.0.1 only."""
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    port: Any = sock.getsockname()[1]
    return sock, port
