"""Recomputes each task's outputs on the probe inputs and compares them with what was stored at its commit."""

from __future__ import annotations

import numpy as np

from clmoe_cli.api import common
from clmoe_cli.method.learn_task import probe
from clmoe_cli.runtime.events import OnStep, counted, silent
from clmoe_cli.store_tensors import Loader, environment
from store_schema import Store, StoreDamaged

TOLERANCE = 1e-4
"""Largest difference of a logit elsewhere than in the environment of the commit (kernels differ)."""


def certify_outputs(store: Store, on_step: OnStep = silent) -> None:
    """Raises StoreDamaged naming every task that answers otherwise than when it was learned."""
    here = " ".join(f"{k}={v}" for k, v in sorted(environment().items()))
    loader = Loader(store)
    changed, largest, exactly = [], 0.0, False
    for record in counted(store.manifest.tasks, on_step, "checking outputs", "tasks"):
        stored = loader.record(record.name).probe_outputs
        task = loader.task(record.name)
        now = probe(task.net, task.params).numpy()
        same = record.probe is not None and record.probe.environment == here
        exact = same and record.probe is not None and common.digest(now) == record.probe.sha256
        if not exact and (same or not np.allclose(stored, now, rtol=TOLERANCE, atol=TOLERANCE)):
            changed.append(record.name)
            largest, exactly = max(largest, float(np.abs(stored - now).max())), exactly or same
    if changed:
        raise StoreDamaged(
            "a task's outputs changed" if len(changed) == 1 else f"the outputs of {len(changed)} tasks changed",
            key=", ".join(changed),
            found=f"largest difference {largest:.3g}",
            expected="bit-identical outputs" if exactly else f"within {TOLERANCE}",
            hint="restore the store from a copy",
        )
