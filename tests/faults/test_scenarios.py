"""Each fault is done to a fleet under load; then it is healed, and nothing is lost in silence."""

import pytest

from fault_rig import open_rig
from fault_table import FAULTS, Kind


@pytest.mark.timeout(seconds=120)
@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.name.replace(" ", "-"))
async def test_nothing_is_lost_in_silence(kind: Kind) -> None:
    async with open_rig(kind.setup) as rig:
        rig.tellings, rig.loses, rig.forgets = kind.tellings, kind.loses, kind.forgets
        await rig.flow()
        with rig.fault(kind.name):
            await kind.run(rig)
        await rig.flow()
        await rig.drain()
        print(kind.name, rig.felt())
        assert set(kind.felt) <= rig.felt(), "nothing was harmed"
        broken = rig.verdict()
        if broken:
            text = "\n".join(str(each) for each in broken[:20])
            pytest.fail(f"{len(broken)} promises broken, see {rig.keep()}:\n{text}", pytrace=False)
