"""How long training may take: phases share the time, and end early so that what follows has its part.

A task that runs out of time is trained for fewer steps and is a whole task all the same: every phase has at least
``LEAST`` steps, and the phases whose learning rate falls plan their steps beforehand, so that it falls to the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clmoe_cli.runtime.distributed import collectives

UNTIL = {"train": 0.4, "prune": 0.65}
"""Share of the time from the first step on that is over when a phase ends."""
REST = 0.85
"""The same of the phases that come last; scores, statistics and the commit have the rest."""
LEAST = 10
"""Steps of a phase, however late it is."""
SPENT, CUT = "spent", "cut/"


@dataclass
class TimeLimit:
    """The time of one ``learn``: ``seconds`` from now on, less those of earlier runs that it continues.

    ``cut``: the phases that time has ended, in their order. ``reserve``: seconds that what follows training takes at
    least, once somebody knows. Of several processes the first has the clock.
    """

    seconds: float = math.inf
    clock: Callable[[], float] = time.monotonic
    cut: list[str] = field(default_factory=list)
    earlier: float = 0.0
    opened: float = 0.0
    reserve: float = 0.0

    def __post_init__(self) -> None:
        self.began = self.clock()

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return math.isfinite(self.seconds)

    def spent(self) -> float:
        """Seconds so far, those of earlier runs included."""
        return self.earlier + self.clock() - self.began

    def open(self) -> None:
        """Says that training begins: what is left now is what the phases share."""
        self.opened = self.spent()

    def left(self, phase: str) -> float:
        """Seconds until a phase of that name has to end, the same in all processes; not below zero."""
        if not self.limited:
            return math.inf
        end = self.opened + UNTIL.get(phase, REST) * max(0.0, self.seconds - self.opened)
        end = min(end, self.seconds - self.reserve)
        mine = torch.tensor(max(0.0, end - self.spent()), dtype=torch.float64)
        return float(collectives.agreed(mine))

    def over(self, phase: str) -> bool:
        """Whether a phase of that name has to end."""
        return self.left(phase) <= 0.0

    def end(self, phase: str) -> None:
        """Notes that time has ended a phase."""
        if phase not in self.cut:
            self.cut.append(phase)

    def noted(self) -> dict[str, Tensor]:
        """What a run that continues this one has to know."""
        cut = {f"{CUT}{phase}": torch.tensor(place) for place, phase in enumerate(self.cut)}
        return {SPENT: torch.tensor(self.spent(), dtype=torch.float64), **cut}

    def resume(self, kept: Mapping[str, Tensor]) -> None:
        """Goes on from what an earlier run has noted, if it has."""
        if SPENT in kept:
            self.earlier = float(kept[SPENT])
            found = {key.removeprefix(CUT): int(place) for key, place in kept.items() if key.startswith(CUT)}
            self.cut = sorted(found, key=lambda phase: found[phase])
