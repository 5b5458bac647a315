"""Each fault is done to a fleet under load; then it is healed, and nothing is lost in silence."""

import asyncio
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from checker import check
from checker.records import read_history
from fault_rig import FaultRig, Setup
from fault_table import FAULTS
from scenario import play

# They wait most of the time.
AT_ONCE = 3
BY_NAME = {kind.name: kind for kind in FAULTS}


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest) -> Iterator[Mapping[str, "Future[str]"]]:
    """All scenarios that were asked for, some of them at a time, each on a loop of its own."""
    names = [
        str(item.callspec.params["name"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == "test_nothing_is_lost"
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {name: pool.submit(asyncio.run, play(BY_NAME[name])) for name in names}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", BY_NAME, ids=lambda name: name.replace(" ", "-"))
def test_nothing_is_lost(name: str, played: Mapping[str, "Future[str]"]) -> None:
    if broken := played[name].result():
        pytest.fail(broken, pytrace=False)


@pytest.mark.timeout(seconds=120)
async def test_a_server_that_forgets_ids_is_found() -> None:
    """Lest the scenarios cannot fail: without ids, what is sent again is published again."""
    kind = BY_NAME["answers of nodes lost"]
    forgetful = Setup(environ={"GALECAST_BROKER_IDEMPOTENCY_WINDOW_S": "0"})
    broken = await play(replace(kind, setup=forgetful))
    assert "twice: " in broken
    kept = re.search(r"see (\S+):", broken)
    assert kept is not None
    try:
        history = list(read_history(Path(kept[1]) / "history.jsonl"))
        assert any(violation.rule == "twice" for violation in check(history))
        assert (Path(kept[1]) / "node-1.log").exists()
    finally:
        shutil.rmtree(kept[1])


@pytest.mark.timeout(seconds=120)
async def test_a_fault_that_harms_nothing_is_found() -> None:
    async def nothing(rig: FaultRig) -> None:
        await rig.tried(1)

    broken = await play(replace(BY_NAME["node killed"], run=nothing))
    assert "clients felt nothing" in broken
    kept = re.search(r"see (\S+):", broken)
    assert kept is not None
    shutil.rmtree(kept[1])
