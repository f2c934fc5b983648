"""A store as an object: ``clmoe.Store("experts")``, which learns, answers and reports on what lies in a folder."""

from __future__ import annotations

import html
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

from clmoe.calls import checked
from clmoe_cli.api.contents import Task
from clmoe_cli.api.copying import CopyOptions, CopyReport, copy
from clmoe_cli.api.detect import detect
from clmoe_cli.api.export import export
from clmoe_cli.api.export_all import export_all
from clmoe_cli.api.generations import LogReport, RenameReport, UndoReport, log, rename, undo
from clmoe_cli.api.inspect import InspectReport, inspect
from clmoe_cli.api.learn import learn
from clmoe_cli.api.opened import Opened
from clmoe_cli.api.options import LearnFlags, of_flags
from clmoe_cli.api.planning import plan
from clmoe_cli.api.predict import PredictReport, predict
from clmoe_cli.api.prune import PruneOptions, prune, would_prune
from clmoe_cli.api.reading import How, read_given
from clmoe_cli.api.reports import DetectReport, ExportAllReport, ExportReport, LearnReport, RemovalReport
from clmoe_cli.backbone.session import BackboneSession
from clmoe_cli.data.batch import Batch, LabelUse
from clmoe_cli.data.given import is_path
from clmoe_cli.data.npz import one_line
from clmoe_cli.report.notebook import in_notebook, notebook_progress
from clmoe_cli.report.progress import Progress, progress
from clmoe_cli.runtime.devices import resolved
from clmoe_cli.runtime.words import amount
from store_schema import StoreMissing, UsageProblem, check_place, is_remote

OURS = ("clmoe", "clmoe_cli", "store_schema")
"""Packages whose lines no warning names."""
SHOWN = 12
"""Classes of a task that its line in a notebook names at most."""


class Store:
    """A store of experts in the folder ``path``; it is made by the first :meth:`learn`.

    Inputs ``X`` are an array or a tensor ``[N, D]``, ``[N, H, W]``, ``[N, C, H, W]`` or ``[N, H, W, C]`` (uint8 from 0
    to 255, or numbers as they are), a DataFrame whose columns are the features, a data set of torch, or paths: a
    picture, a folder of class folders, an npz, npy or CSV file, or a list of such. Labels ``y``
    ``[N]`` are integers or text, or of a DataFrame the name of a column; those of files need not be given, nor those
    of a DataFrame that are in a column called as in a CSV file (``label``, ``target``, ``class``, ``y``, …). Columns
    are read in their order: the columns of a task in another order are refused, and other names are not looked at.
    A picture of Pillow, or a list of such, is read as a file of it is.

    ``progress``: whether to show how far things are; None: in a notebook and on a terminal. What looks wrong with the
    data is a Python warning. Every error is a :class:`clmoe.ClmoeError` of one line, and nothing is changed then.
    Nothing is kept in memory between calls, so that other processes may use the same folder.
    """

    @checked("Store")
    def __init__(self, path: str | os.PathLike[str], *, progress: bool | None = None) -> None:
        self.path, self.progress = _path(path), progress
        if not is_remote(self.path):
            check_place(Path(self.path))

    @checked("learn", LearnFlags)
    def learn(
        self,
        X: Any,
        y: Any = None,
        *,
        image_size: int | None = None,
        skip_broken: bool = False,
        label_column: str | int | None = None,
        features: str | None = None,
        features_weights: str | None = None,
        feature_cache: bool = True,
        dry_run: bool = False,
        **options: Unpack[LearnFlags],
    ) -> LearnReport:
        """Learns labelled inputs as a new task, or says that they are known; options are named like the flags.

        Returns what was learned, how sparsely, and how often it is right. ``dry_run``: says what would be done, and
        only reads the store. Raises BadInput for data that cannot be
        learned, UsageProblem for options that mean nothing, and the errors of the store. What an interrupted call had
        reached is kept: the same call goes on from there.
        """
        chosen = of_flags(**options)
        backbone = BackboneSession(features, features_weights, chosen.arch, chosen.method.device, keep=feature_cache)
        with self._shown() as shown:
            opened = Opened.at(self.path)
            how = How(image_size, skip_broken, _column(label_column), backbone, on_step=shown.step)
            batch = _warned(read_given(X, y, "required", opened.expected, how))
            if dry_run:
                return plan(opened, batch, chosen, on_warning=_warn)
            callbacks = shown.callbacks()
            callbacks["on_warning"] = _warn
            return learn(opened, batch, chosen, **callbacks)

    @checked("predict")
    def predict(
        self,
        X: Any,
        y: Any = None,
        *,
        task: str | None = None,
        reject: float | None = None,
        explain: bool = False,
        top: int | None = None,
        route: str = "image",
        router: str = "fused",
        batch_size: int | None = None,
        device: str = "auto",
        image_size: int | None = None,
        skip_broken: bool = False,
        label_column: str | int | None = None,
        feature_cache: bool = True,
    ) -> PredictReport:
        """Answers each input without a task id; options are named like the flags of ``clmoe predict``.

        ``report.label``, ``.task``, ``.confidence``, ``.p_value`` and ``.known`` have a value for each input, [N].
        ``explain``: ``report.explained`` says of each why. ``top``: the likeliest labels are ``report.top_label``
        and ``.top_confidence``, [N, top]. ``y``: labels that answers are judged by (``report.accuracy``); those of a
        file are taken where it has some.
        Raises BadInput, UsageProblem and the errors of the store.
        """
        with self._shown() as shown:
            opened = Opened.existing(self.path)
            where = resolved(device)
            backbone = BackboneSession(None, None, device=where, keep=feature_cache)
            how = How(image_size, skip_broken, _column(label_column), backbone, on_step=shown.step)
            batch = self._asked(X, y, "optional", opened, how, task)
            report = predict(
                opened,
                batch,
                router=router,
                route=route,
                batch_size=batch_size,
                task=task,
                reject=reject,
                device=where,
                on_step=shown.step,
                explain=explain,
                top=top,
            )
        for caution in report.warnings:
            _warn(caution)
        return report

    @checked("detect")
    def detect(
        self,
        X: Any,
        y: Any = None,
        *,
        alpha: float = 0.01,
        evidence: str = "gate",
        device: str = "auto",
        image_size: int | None = None,
        skip_broken: bool = False,
        label_column: str | int | None = None,
        feature_cache: bool = True,
    ) -> DetectReport:
        """Says whether inputs are of a known task: ``report.verdict`` is known, new or undecided.

        ``y``: labels that count as well, of a DataFrame also the name of a column. Raises BadInput, UsageProblem and
        the errors of the store.
        """
        with self._shown() as shown:
            opened = Opened.existing(self.path)
            where = resolved(device)
            backbone = BackboneSession(None, None, device=where, keep=feature_cache)
            how = How(image_size, skip_broken, _column(label_column), backbone, on_step=shown.step)
            batch = self._asked(X, y, "ignored", opened, how)
            report = detect(
                opened, batch, use_labels=y is not None, alpha=alpha, evidence=evidence, device=where,
                on_step=shown.step,
            )  # fmt: skip
        for caution in report.warnings:
            _warn(caution)
        return report

    @checked("prune")
    def prune(
        self,
        task: str | Sequence[str] | None = None,
        *,
        expert: str | None = None,
        to_frozen: float | None = None,
        unfinished: str | None = None,
        gc: bool = False,
        dry_run: bool = False,
        lock_timeout: float | None = None,
    ) -> RemovalReport:
        """Takes one task or a list of them out again; answers of all others stay the same, bit for bit.

        In place of ``task``: one ``expert`` with its tasks, whole tasks until at most ``to_frozen`` percent of an
        expert are frozen, or what an ``unfinished`` learn had reached. ``gc``: what was removed cannot be got back.
        ``dry_run``: says what would go, and only reads. ``lock_timeout``: seconds to wait for other processes.
        Raises UsageProblem for an unknown name, and the errors of the store.
        """
        options = PruneOptions(_names(task), expert, to_frozen, gc, lock_timeout, unfinished)
        if dry_run:
            return would_prune(self.path, options)
        with self._shown() as shown:
            return prune(self.path, options, lambda plan: True, on_wait=shown.waiting, on_step=shown.step)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What the store knows, in the order of learning: name, classes, accuracy, images and bytes of each task."""
        try:
            return inspect(self.path).tasks
        except StoreMissing:
            return ()

    @checked("report")
    def report(self) -> InspectReport:
        """Experts, tasks, what is frozen, overlaps and history. Raises StoreMissing and the errors of the store."""
        return inspect(self.path)

    @checked("verify")
    def verify(self) -> InspectReport:
        """The same report, once every file's hash and the outputs of every task are found to be as they were committed.

        Raises StoreDamaged that names every damaged file, StoreMissing and the other errors of the store.
        """
        with self._shown() as shown:
            return inspect(self.path, check=True, on_step=shown.step)

    @checked("log")
    def log(self) -> LogReport:
        """What was done to the store: ``report.commits``, in their order, and which of them it can go back to.

        Raises StoreMissing and the errors of the store.
        """
        return log(self.path)

    @checked("undo")
    def undo(self, *, dry_run: bool = False, lock_timeout: float | None = None) -> UndoReport:
        """Takes the last change back; a second undo brings it again. As :meth:`checkout` of the generation before."""
        return self._back_to(None, dry_run, lock_timeout)

    @checked("checkout")
    def checkout(self, generation: int, *, dry_run: bool = False, lock_timeout: float | None = None) -> UndoReport:
        """Goes back to a generation that is still there (:meth:`log`), as a new one: ``report.removed``, ``.returned``.

        ``dry_run``: says what would be done, and only reads. ``lock_timeout``: seconds to wait for other processes.
        Raises UsageProblem for a generation that is gone, and the errors of the store.
        """
        return self._back_to(generation, dry_run, lock_timeout)

    @checked("rename")
    def rename(self, old: str, new: str, *, lock_timeout: float | None = None) -> RenameReport:
        """Gives the task ``old`` another name; answers stay the same, bit for bit.

        Raises UsageProblem for an unknown task and a name that is taken or none, and the errors of the store.
        """
        with self._shown() as shown:
            return rename(self.path, old, new, lock_timeout=lock_timeout, on_wait=shown.waiting)

    @checked("copy")
    def copy(
        self,
        target: str | os.PathLike[str] | Store,
        task: str | Sequence[str] | None = None,
        *,
        rename: Mapping[str, str] | None = None,
        dry_run: bool = False,
        lock_timeout: float | None = None,
    ) -> CopyReport:
        """Copies one task, a list of them or (None) all into another store, which is made where there is none.

        ``rename``: old names of tasks → new ones. ``report.tasks`` says what they are called there. Raises UsageProblem
        for names that are unknown or clash, StoreIncompatible for stores that read the same inputs in different ways,
        and the errors of both stores; nothing is changed then.
        """
        options = CopyOptions(_names(task), rename, dry_run, lock_timeout)
        there = target.path if isinstance(target, Store) else _path(target)
        with self._shown() as shown:
            return copy(self.path, there, options, on_wait=shown.waiting, on_step=shown.step)

    @checked("export")
    def export(self, out: str | os.PathLike[str], task: str, *, sparse: bool = False) -> ExportReport:
        """Writes a task to a ``.safetensors`` or ``.onnx`` file that needs no clmoe, and checks its answers.

        ``sparse``: in a ``.safetensors`` file only the weights that are used. Raises UsageProblem for an unknown task,
        a file that cannot be written and missing packages, and the errors of the store.
        """
        report = export(self.path, task, _path(out), sparse=sparse)
        for caution in report.warnings:
            _warn(caution)
        return report

    @checked("export_all")
    def export_all(
        self, out: str | os.PathLike[str], *, task: str | None = None, features_weights: str | None = None
    ) -> ExportAllReport:
        """Writes the whole store to an ``.onnx`` or ``.pt2`` file that answers as :meth:`predict`, and checks it.

        ``task``: of a store with several kinds of input, a task of the kind that is wanted. ``features_weights``: the
        weights of its backbone. Raises as :meth:`export`, and StoreIncompatible for what cannot be one model.
        """
        return export_all(self.path, _path(out), task=task, features_weights=features_weights)

    def _back_to(self, generation: int | None, dry_run: bool, lock_timeout: float | None) -> UndoReport:
        with self._shown() as shown:
            return undo(self.path, generation, dry_run=dry_run, lock_timeout=lock_timeout, on_wait=shown.waiting)

    def _asked(self, x: Any, y: Any, labels: LabelUse, opened: Opened, how: How, task: str | None = None) -> Batch:
        return _warned(read_given(x, y, "required" if y is not None else labels, opened.expected_by(task), how))

    @contextmanager
    def _shown(self) -> Iterator[Progress]:
        wanted = in_notebook() or self.progress is not False
        if wanted and self.progress is None and not in_notebook():
            wanted = sys.stderr.isatty()
        with notebook_progress() if wanted and in_notebook() else progress(not wanted) as shown:
            yield shown

    def __repr__(self) -> str:
        found = self.tasks
        classes = len({label for task in found for label in task.classes})
        return f"Store({self.path!r}: {amount(len(found), 'task')}, {amount(classes, 'class', 'classes')})"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("task", "classes", "inputs", "accuracy", "expert"))
        rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in _cells(t))}</tr>" for t in self.tasks)
        return f"<b>{html.escape(repr(self))}</b><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _path(value: Any) -> str:
    """A path as text. UsageProblem for what is none."""
    if not is_path(value):
        raise UsageProblem("not a path", found=one_line(repr(value))[:60], expected="text, or a pathlib.Path")
    return str(os.fspath(value))


def _column(label_column: str | int | None) -> str | None:
    """A column as the option of the commands names it, by name or position."""
    return None if label_column is None else str(label_column)


def _names(tasks: Any) -> tuple[str, ...]:
    """The names of tasks that are given: none, one, or several. UsageProblem for what is no name."""
    names = () if tasks is None else (tasks,) if isinstance(tasks, str) else tasks
    wrong = [names] if not isinstance(names, (list, tuple)) else [each for each in names if not isinstance(each, str)]
    if wrong:
        raise UsageProblem(
            "not the name of a task", found=type(wrong[0]).__name__, expected="text, or a list of such",
            hint="store.tasks[0].name is one",
        )  # fmt: skip
    return tuple(names)


def _cells(task: Task) -> tuple[str, ...]:
    shown = ", ".join(map(str, task.classes[:SHOWN])) + (", …" if len(task.classes) > SHOWN else "")
    accuracy = task.accuracy.shown
    right = "not measured" if accuracy is None else f"{100 * accuracy:.1f} %"
    return task.name, shown, str(task.images), right, task.expert


def _warned(batch: Batch) -> Batch:
    for text in batch.warnings:
        _say(text)
    return batch


def _warn(caution: Any) -> None:
    _say(caution.text)


def _say(text: str) -> None:
    """A warning of Python that names the line of the caller, however deep in here it is said."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in OURS:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)
