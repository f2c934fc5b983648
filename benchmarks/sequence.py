"""Tasks learned one after another through the command line, each by a process of its own, and what they answer then."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from p6 import clmoe

Json = dict[str, Any]
ROUTERS = ("fused", "gate")


def answers(store: Path, source: str, *flags: str) -> tuple[Json, dict[str, Any]]:
    """What ``predict`` reports on a file or folder with labels, and its columns for each image."""
    output = store.parent / f"{store.name}-answers.npz"
    report = clmoe("predict", "--batch", source, "--output", str(output), *flags, store=store)
    with np.load(output) as found:
        columns = {key: found[key] for key in found.files}
    output.unlink()
    return report, columns


def digest(columns: dict[str, Any]) -> str:
    """sha256 of labels, confidences (float64, as computed) and p-values of all images."""
    parts = (np.ascontiguousarray(columns[key]).tobytes() for key in ("label", "confidence", "p_value"))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def learn_all(store: Path, trains: Sequence[str], tests: Sequence[str], flags: Sequence[str]) -> Json:
    """Learns ``task1``, ``task2``, …; after each of them every earlier task answers its own test images, task given.

    A task that counts as known is an error: each must be learned. At the end ``inspect --verify`` recomputes the
    stored bytes and probe outputs of every task, and fails where a bit differs.
    """
    if store.exists():
        raise SystemExit(f"{store} exists: remove it first")
    store.parent.mkdir(parents=True, exist_ok=True)
    first: dict[int, str] = {}
    identical, given, reports = True, [], []
    for i, train in enumerate(trains, 1):
        started = time.monotonic()
        report = clmoe("learn", "--data", train, "--name", f"task{i}", *flags, store=store)
        reports.append({**report, "process_seconds": time.monotonic() - started})
        if report["status"] != "learned":
            raise SystemExit(f"{train}: {report['status']}, not learned: {report['reason']}")
        rows = [answers(store, tests[j - 1], "--task", f"task{j}") for j in range(1, i + 1)]
        for j, (_, columns) in enumerate(rows, 1):
            identical &= first.setdefault(j, digest(columns)) == digest(columns)
        given.append([row["accuracy"] for row, _ in rows])
        print(f"task {i} in {report['expert']}: {report['seconds']:.1f} s, {given[-1]}", file=sys.stderr, flush=True)
    shown = clmoe("inspect", "--verify", store=store)
    return {
        "accuracy_task_given": given[-1],
        "accuracy_task_given_mean": float(np.mean(given[-1])),
        "accuracy_after_every_task": given,
        "answers_bit_identical_after_every_task": identical,
        "verified": shown["verified"],
        "experts": [report["expert"] for report in reports],
        "held_out": [report["accuracy"] for report in reports],
        "frozen_percent_after_every_task": [
            {home: [layer["frozen_percent"] for layer in found["layers"]] for home, found in entry["experts"].items()}
            for entry in shown["history"]
        ],
        "layers": {e["id"]: [layer["name"] for layer in e["layers"]] for e in shown["experts"]},
        "learn_seconds": [report["seconds"] for report in reports],
        "process_seconds": [report["process_seconds"] for report in reports],
        "bytes": shown["bytes"],
    }


def without_id(store: Path, mixed: str) -> dict[str, Json]:
    """Every image by itself, for each router: accuracy, by task, confusion of tasks, calibration error, seconds."""
    found = {}
    for router in ROUTERS:
        started = time.monotonic()
        report, _ = answers(store, mixed, "--router", router)
        kept = {k: report[k] for k in ("accuracy", "accuracy_by_task", "confusion", "calibration_error")}
        found[router] = {**kept, "seconds": time.monotonic() - started}
    return found


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def percent(share: float) -> str:
    return f"{100 * share:.2f}"


def write(out: Path, name: str, result: Json, text: str) -> None:
    """``NAME.json`` and ``NAME.md``; the JSON is printed as well."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(result, indent=1))
    (out / f"{name}.md").write_text(text)
    print(json.dumps(result, indent=1))


def _joint_rows(reference: Json | None) -> list[list[str]]:
    if reference is None:
        return []
    return [
        ["joint, all classes", percent(reference["accuracy"]), *map(percent, reference["by_task"])],
        ["joint, the task's classes", percent(np.mean(reference["given"])), *map(percent, reference["given"])],
    ]


def report(title: str, result: Json, reference: Json | None) -> str:
    """The summary as markdown: ``result`` of :func:`learn_all` with ``routers``, ``reference`` of joint training."""
    given, routers = result["accuracy_task_given"], result["routers"]
    rows = [
        ["task given", percent(result["accuracy_task_given_mean"]), *map(percent, given)],
        *(
            [f"no id, `{name}`", percent(r["accuracy"]), *map(percent, r["accuracy_by_task"].values())]
            for name, r in routers.items()
        ),
        *_joint_rows(reference),
        ["`learn`, s", f"{sum(result['learn_seconds']):.0f}", *(f"{s:.0f}" for s in result["learn_seconds"])],
    ]
    tasks = [f"task{i}" for i in range(1, len(given) + 1)]
    frozen = [
        [after, home, *(f"{share:.2f}" for share in shares)]
        for after, entry in enumerate(result["frozen_percent_after_every_task"], 1)
        for home, shares in entry.items()
    ]
    layers = next(iter(result["layers"].values()))
    confusion = [
        ["/".join(row["tasks"]), row["images"], *(row["answered"].get(task, 0) for task in tasks)]
        for row in routers[ROUTERS[0]]["confusion"]
    ]
    exact = "bit-identical" if result["answers_bit_identical_after_every_task"] else "CHANGED"
    return "\n".join(
        [
            f"# {title}\n",
            table(["accuracy, %", "mean", *tasks], rows),
            f"Every task's answers after every later task: {exact}; `inspect --verify`: {result['verified']}. "
            f"Experts: {', '.join(result['experts'])}.\n",
            f"Which task answered (`{ROUTERS[0]}`):\n",
            table(["images of", "images", *tasks], confusion),
            "Frozen, %:\n",
            table(["after task", "expert", *layers], frozen),
        ]
    )
