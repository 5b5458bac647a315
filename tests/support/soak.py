"""Faults of the table, mixed at random under load: `make soak SECONDS=600 SEED=7`.

The seed says which faults come, in which order, where, and which two at the same time; what the
machine makes of it is its own. It prints what it does; at the end all is drained and checked. Where
a promise is broken, or something takes for ever, the history is kept, and it ends with 1.
"""

import argparse
import asyncio
import random
import sys
import traceback
from collections.abc import Callable
from typing import Final

from checker import Violation
from checker.records import Delivery, Reset, Subscribed
from fault_rig import FaultRig, Setup, open_rig
from fault_table import FAULTS, Kind

NODES: Final = 3
CLIENTS: Final = 6
# One round in so many has two faults at once.
_TWO_ONE_IN: Final = 3
_SHOWN: Final = 20


def mixed(setup: Setup) -> list[Kind]:
    """Return the faults that such a rig can have."""
    return [
        kind
        for kind in FAULTS
        if (kind.setup.redis, kind.setup.disk, kind.setup.clock) == ("one", "", "")
        and (setup.archive or not kind.setup.archive)
        and not kind.setup.database
        and not kind.setup.conflates
    ]


def draw(rng: random.Random, kinds: list[Kind]) -> list[Kind]:
    """Return what comes next: one fault, or two that harm different things."""
    first = rng.choice(kinds)
    others = [kind for kind in kinds if kind.harms != first.harms]
    if others and not rng.randrange(_TWO_ONE_IN):
        return [first, rng.choice(others)]
    return [first]


async def soak(seconds: float, seed: int, tell: Callable[[str], None] = print) -> list[Violation]:
    """Mix faults for so long, then drain and check; where something is broken, keep the history."""
    setup = Setup(nodes=NODES, clients=CLIENTS, archive=True, seed=seed)
    rng, kinds = random.Random(seed), mixed(setup)
    tell(f"seed {seed}, {seconds:.0f} s, {len(kinds)} kinds of faults, {NODES} nodes")
    async with open_rig(setup) as rig:
        try:
            while rig.recorder.now < seconds:
                await _round(rig, draw(rng, kinds), tell)
            tell(f"{rig.recorder.now:6.1f} s  draining")
            await rig.drain()
            broken = rig.verdict()
        except BaseException:
            tell(f"seed {seed}: it did not go on; the history is kept in {rig.keep()}")
            raise
        if broken:
            tell(f"seed {seed}: the history is kept in {rig.keep()}")
        tell(f"{_so_far(rig)}, {len(broken)} promises broken")
    return broken


async def _round(rig: FaultRig, kinds: list[Kind], tell: Callable[[str], None]) -> None:
    names = " and ".join(kind.name for kind in kinds)
    tell(f"{_so_far(rig)}, now {names}")
    for kind in kinds:
        # A second fault may be why the first is told twice.
        rig.tellings += kind.tellings * len(kinds)
        rig.loses = rig.loses or kind.loses
        rig.forgets = rig.forgets or kind.forgets
    with rig.fault(names):
        await asyncio.gather(*(kind.run(rig) for kind in kinds))
    await rig.all_ready()
    await rig.flow(2)


def _so_far(rig: FaultRig) -> str:
    records = rig.recorder.records
    told = sum(
        isinstance(each, Reset) or (isinstance(each, Subscribed) and each.recovered is False)
        for each in records
    )
    delivered = sum(isinstance(each, Delivery) for each in records)
    return (
        f"{rig.recorder.now:6.1f} s  {rig.recorder.acknowledged} acknowledged,"
        f" {delivered} delivered, {told} told"
    )


def main() -> int:
    """Read the arguments, and return what the process ends with."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults come")
    parser.add_argument("--seed", type=int, help="of what is drawn; a new one unless told")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if arguments.seed is None else arguments.seed
    try:
        broken = asyncio.run(soak(arguments.seconds, seed, lambda text: print(text, flush=True)))
    except AssertionError:
        traceback.print_exc()
        return 1
    for violation in broken[:_SHOWN]:
        print(violation)
    if len(broken) > _SHOWN:
        print(f"... and {len(broken) - _SHOWN} more")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
