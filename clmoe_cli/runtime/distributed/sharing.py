"""Reading in shares: each process reads a part, and all of them then have all of it, in its order.

Every process must come to the same reads in the same order, as those within
:func:`~clmoe_cli.runtime.distributed.processes.together` do. Pictures and features travel as bytes, what is said of
them as JSON: nothing is unpickled.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from clmoe_cli.runtime.distributed import collectives
from clmoe_cli.runtime.distributed.collectives import Share
from store_schema import errors
from store_schema.errors import ClmoeError

E = TypeVar("E", bound=ClmoeError)


def own(n: int) -> slice:
    """Which of n rows this process reads."""
    return Share.of(n).rows


def everyones(rows: NDArray[Any], n: int, said: Any) -> tuple[NDArray[Any], list[Any]]:
    """The n rows [n, …] of which this process has read its own, and what each process says, in their order.

    ``said``: anything that JSON has.
    """
    world = collectives.world()
    text = np.frombuffer(json.dumps(said).encode(), np.uint8)
    lengths = collectives.gathered(torch.tensor([len(text)]), [1] * world).tolist()
    texts = collectives.gathered(torch.tensor(text), lengths).numpy().tobytes()
    ends = np.cumsum(lengths).tolist()
    told = [json.loads(texts[end - length : end]) for end, length in zip(ends, lengths, strict=True)]
    sizes = [n * (i + 1) // world - n * i // world for i in range(world)]
    return collectives.gathered(torch.from_numpy(np.ascontiguousarray(rows)), sizes).numpy(), told


def fields(error: ClmoeError) -> dict[str, Any]:
    """An error as it travels."""
    return error.as_dict()


def error_of(kind: type[E], found: dict[str, Any]) -> E:
    """The error that travelled, one of the ``kind``."""
    made = getattr(errors, found["kind"])(**{name: value for name, value in found.items() if name != "kind"})
    assert isinstance(made, kind)
    return made
