"""How far a learn has come, as named tensors: the phases that are done, and the last epoch of the one under way.

A learn that starts again goes through the same steps; phases that the journal knows are not trained again but taken
from it, and the one that was cut off continues after its last epoch. Since the state of the generator is kept
with each, what follows is what would have followed without the interruption, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clmoe_cli.method.subnetwork.time_limit import TimeLimit

State = dict[str, Tensor]
Save = Callable[[State, str], None]
GENERATOR = "generator"


@dataclass
class Journal:
    """``kept``: what an earlier run left, empty for a new one; ``save`` gets all of it and a line for people.

    ``limit``: the time that this run and the ones that it continues may take together.

    What is handed to ``save`` must be written or copied at once: training goes on in the same memory.
    """

    kept: State = field(default_factory=dict)
    save: Save = lambda state, reached: None
    limit: TimeLimit = field(default_factory=TimeLimit)
    begun: int = 0

    def __post_init__(self) -> None:
        self.limit.resume(self.kept)

    def phase(self, name: str, generator: torch.Generator) -> Phase:
        """The next phase, in the order in which a learn asks for them."""
        self.begun += 1
        return Phase(self, f"{self.begun}/", name, generator)


@dataclass(frozen=True)
class Phase:
    """One phase of training: ``done`` when it has a result, or somewhere within."""

    journal: Journal
    prefix: str
    name: str
    generator: torch.Generator

    def result(self) -> State | None:
        """What the phase had ended with, if it had; the generator then stands where it stood."""
        return self._found("result")

    def reached(self) -> State | None:
        """What the phase had reached, if it was under way; the generator then stands where it stood."""
        return self._found("reached")

    def keep(self, epoch: int, state: Mapping[str, Tensor]) -> None:
        """Notes what the phase has reached."""
        self._put("reached", state, f"epoch {epoch} of phase {self.name}")

    def finish(self, state: Mapping[str, Tensor]) -> None:
        """Notes what the phase has ended with; nothing else of it is needed any more."""
        self._put("result", state, f"phase {self.name}")

    def _found(self, part: str) -> State | None:
        head = f"{self.prefix}{part}/"
        found = {key.removeprefix(head): value for key, value in self.journal.kept.items() if key.startswith(head)}
        if not found:
            return None
        self.generator.set_state(found.pop(GENERATOR))
        return found

    def _put(self, part: str, state: Mapping[str, Tensor], reached: str) -> None:
        kept = {key: value for key, value in self.journal.kept.items() if not key.startswith(self.prefix)}
        own = {**state, GENERATOR: self.generator.get_state()}
        noted = {f"{self.prefix}{part}/{key}": value for key, value in own.items()}
        self.journal.kept = kept | noted | self.journal.limit.noted()
        self.journal.save(self.journal.kept, reached)


def under(name: str, tensors: Mapping[str, Tensor]) -> State:
    """The tensors, each below that name."""
    return {f"{name}/{key}": value.detach() for key, value in tensors.items()}


def below(name: str, state: Mapping[str, Tensor]) -> State:
    """The tensors that :func:`under` put below that name, as copies."""
    return {k.removeprefix(f"{name}/"): v.clone() for k, v in state.items() if k.startswith(f"{name}/")}


def optimizer_state(optimizer: torch.optim.Optimizer) -> State:
    """The tensors of an optimizer: ``index/name``."""
    found = optimizer.state_dict()["state"]
    return {f"{i}/{key}": value for i, own in found.items() for key, value in own.items() if isinstance(value, Tensor)}


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Puts them back into a new optimizer of the same kind; its options are its own."""
    own: dict[int, State] = {}
    for key, value in state.items():
        index, _, name = key.partition("/")
        own.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": own, "param_groups": optimizer.state_dict()["param_groups"]})
