"""What a seed makes of a simulated world, beside the order of things."""

import random
from dataclasses import dataclass, field

from sim_backplane import Faults

# How often calls go wrong at most, in half of the runs not at all.
RATES = (0.0, 0.0, 0.05, 0.2)


@dataclass(slots=True)
class NodeCourse:
    """How nodes fare that share a Redis; `crashes` and the like say whether there are any."""

    steps: int = 15
    nodes: int = 2
    hurry: float = 0.02
    stalls: bool = False
    crashes: bool = False
    departures: bool = False
    outages: bool = False
    faults: Faults = field(default_factory=Faults)


@dataclass(slots=True)
class PresenceCourse(NodeCourse):
    """How nodes fare whose sessions are present."""

    nodes: int = 3
    wipes: bool = False

    @property
    def harmless(self) -> bool:
        """Whether nothing happens by which a session that is here may seem gone."""
        return not (self.stalls or self.outages or self.wipes or self.faults.any())


def draw_faults(rng: random.Random, rate: float, *, loss: bool = False) -> Faults:
    """Draw what goes wrong between nodes and their Redis; with `loss`, of what is published too."""
    return Faults(
        loss=rate * rng.random() if loss else 0.0,
        refuse=rate * rng.random() / 2,
        forget=rate * rng.random() / 2,
        silence=rate * rng.random() / 4,
    )
