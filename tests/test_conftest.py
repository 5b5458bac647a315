"""The fixtures that guard every test do fail a test that deserves it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

CASES = """
import asyncio
import logging
import socket

import pytest
import tornado.web


@pytest.fixture
def app():
    class Hello(tornado.web.RequestHandler):
        def get(self):
            self.write("hello")

    return tornado.web.Application([("/", Hello)])


async def test_pass_runs_on_the_loop_of_the_fixture(io_loop):
    assert asyncio.get_running_loop() is io_loop.asyncio_loop


async def test_pass_without_naming_the_loop():
    await asyncio.sleep(0)
    asyncio.get_running_loop()


async def test_pass_server_is_local(http_server, http_server_client):
    (sock,) = http_server._sockets.values()
    assert sock.getsockname()[0] == "127.0.0.1"
    reply = await http_server_client.fetch("/")
    assert reply.body == b"hello"


@pytest.mark.expect_log("a.b", "^so be it$")
def test_pass_announced_by_mark():
    logging.getLogger("a.b.c").warning("so be %s", "it")


def test_pass_announced_by_fixture(expect_log):
    expect_log("a", "so be it")
    expect_log("a", "or not", required=False)
    logging.getLogger("a").error("so be it")


def test_pass_information_is_no_warning():
    logging.getLogger("a").info("fine")


def test_fail_unexpected_record():
    logging.getLogger("a").warning("oh no")


@pytest.mark.expect_log("a", "so be it")
def test_fail_record_of_another_logger():
    logging.getLogger("ab").warning("so be it")


@pytest.mark.expect_log("a", "never logged")
def test_fail_announced_record_missing():
    pass


kept = []


async def test_fail_task_left():
    kept.append(asyncio.ensure_future(asyncio.Event().wait()))


async def test_fail_reader_left():
    pair = socket.socketpair()
    kept.append(pair)
    asyncio.get_running_loop().add_reader(pair[0], print)


async def test_fail_exception_nobody_read():
    async def wrong():
        raise ValueError("lost")

    asyncio.ensure_future(wrong())
    await asyncio.sleep(0)
    await asyncio.sleep(0)


@pytest.mark.timeout(seconds=0.5)
async def test_fail_too_slow():
    await asyncio.sleep(30)


def test_skip_without_reason_to_fail():
    pytest.skip("no such program")
"""


FILES = {
    "test_cases.py": CASES,
    "test_module.py": "import pytest\npytest.importorskip('no_such_module')\n",
    "test_setting.py": "import os\n\n\ndef test_pass_settings_of_the_host_are_gone():\n"
    "    assert not [name for name in os.environ if name.startswith('GALECAST_')]\n\n\n"
    "def test_pass_what_tests_start_is_not_measured():\n"
    "    assert not [name for name in os.environ if name.startswith('COVERAGE_')]\n",
}


@pytest.fixture(scope="module", params=["", "1"], ids=["lenient", "strict"])
def inner_run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, str], str]:
    """Run the cases under this project's own settings; (strict, outcome by test, output)."""
    folder = tmp_path_factory.mktemp("inner")
    (folder / "pyproject.toml").write_text((TESTS.parent / "pyproject.toml").read_text())
    guards = (TESTS / "conftest.py").read_text()
    (folder / "conftest.py").write_text(guards.replace("SETTLE_S = 2.0", "SETTLE_S = 0.1"))
    for name, text in FILES.items():
        (folder / name).write_text(text)
    options = ["-v", "--continue-on-collection-errors"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", *FILES],
        cwd=folder,
        env={
            "TEST_STRICT": request.param,
            "GALECAST_PORT": "1",
            "COVERAGE_OF_ANOTHER": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    outcomes: dict[str, str] = {}
    for test, outcome in re.findall(r"^\S+::(\w+) (\w+)", result.stdout, re.MULTILINE):
        outcomes[test] = "FAILED" if outcome == "ERROR" else outcomes.get(test, outcome)
    return request.param, outcomes, result.stdout + result.stderr


def test_each_case_ends_as_its_name_says(inner_run: tuple[str, dict[str, str], str]) -> None:
    strict, outcomes, output = inner_run
    expected = {"pass": "PASSED", "fail": "FAILED", "skip": "FAILED" if strict else "SKIPPED"}
    assert {test: outcome for test, outcome in outcomes.items()} == {
        test: expected[test.split("_")[1]]
        for text in FILES.values()
        for test in re.findall(r"def (test_\w+)", text)
    }, output


def test_failures_name_their_cause(inner_run: tuple[str, dict[str, str], str]) -> None:
    strict, _, output = inner_run
    for words in (
        "unexpected log record: WARNING a: oh no",
        "unexpected log record: WARNING ab: so be it",
        "no log record of 'a' matches 'never logged'",
        "task left running: <Task pending",
        "descriptor left on the loop: ",
        "ValueError: lost",
    ):
        assert words in output
    for words in (
        "unexpected skip: Skipped: no such program",
        "unexpected skip: Skipped: could not import 'no_such_module'",
    ):
        assert (words in output) == bool(strict), output


def test_failures_are_told_at_once(inner_run: tuple[str, dict[str, str], str]) -> None:
    _, outcomes, output = inner_run
    progress, _, _ = output.partition("= ERRORS =")
    told = set(re.findall(r"^FAILED \S+::(\w+) \(\w+\): \S", progress, re.MULTILINE))
    assert told == {test for test, outcome in outcomes.items() if outcome == "FAILED"}
