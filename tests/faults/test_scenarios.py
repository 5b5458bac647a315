"""Each fault is done to a fleet under load; then it is healed, and nothing is lost in silence."""

import asyncio
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

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
