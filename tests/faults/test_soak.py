"""Faults that are mixed at random: a short run of what `make soak` does for longer."""

import random

import pytest

from fault_rig import Setup
from fault_table import FAULTS
from soak import draw, mixed, soak


@pytest.mark.timeout(seconds=150)
async def test_a_short_soak_breaks_no_promise() -> None:
    told: list[str] = []
    broken = await soak(20, 7, told.append)
    assert broken == [], "\n".join(told)


def test_a_seed_draws_the_same_faults_and_two_at_once_harm_different_things() -> None:
    kinds = mixed(Setup(archive=True))

    def drawn(seed: int) -> list[list[str]]:
        rng = random.Random(seed)
        return [[kind.name for kind in draw(rng, kinds)] for _ in range(200)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert {name for names in drawn(1) + drawn(2) for name in names} == {k.name for k in kinds}
    harms = {kind.name: kind.harms for kind in kinds}
    pairs = [names for names in drawn(1) if len(names) == 2]
    assert pairs
    assert all(harms[one] != harms[other] for one, other in pairs)


def test_a_rig_draws_only_what_it_has() -> None:
    names = {kind.name for kind in mixed(Setup())}
    assert "archive frozen" not in names
    assert {"tail lost", "redis disk full", "node clock ahead", "alone killed"}.isdisjoint(names)
    assert len({kind.name for kind in FAULTS}) == len(FAULTS)
