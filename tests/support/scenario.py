"""A fault under load, then healed, drained and checked; several can run at the same time."""

import asyncio

from checker.records import Delivery
from fault_rig import open_rig
from fault_table import Kind

# No scenario takes nearly so long on a machine that is not busy.
_PATIENCE_S = 150.0
_SHOWN = 20


async def play(kind: Kind) -> str:
    """Do a fault to a fleet under load; return which promises it broke, empty if none."""
    async with asyncio.timeout(_PATIENCE_S), open_rig(kind.setup) as rig:
        rig.tellings, rig.loses, rig.forgets = kind.tellings, kind.loses, kind.forgets
        await rig.flow()
        with rig.fault(kind.name):
            await kind.run(rig)
        await rig.flow()
        await rig.drain()
        broken = [str(each) for each in rig.verdict()]
        if unfelt := set(kind.felt) - rig.felt():
            broken.append(f"nothing was harmed: {', '.join(sorted(unfelt))} felt nothing")
        if not any(isinstance(each, Delivery) and each.skipped for each in rig.recorder.records):
            broken.append("nothing was conflated: no event was skipped")
        if not broken:
            return ""
        shown = "\n".join(broken[:_SHOWN])
        return f"{len(broken)} promises broken, see {rig.keep()}:\n{shown}"
