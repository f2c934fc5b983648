"""Reports → tables for people, JSON, CSV, Markdown. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clmoe_cli.api import names
from clmoe_cli.api.reports import Caution, Json, LearnReport, RemovalReport, Report, fields_of, plain
from clmoe_cli.report.cells import columns, console, put
from clmoe_cli.report.progress import note
from clmoe_cli.report.tables import reasons_table, score_tables, tables
from clmoe_cli.runtime.events import OnStep, silent, whole
from clmoe_cli.runtime.words import amount
from store_schema.errors import DiskProblem, UsageProblem

if TYPE_CHECKING:
    from clmoe_cli.api.inspect import InspectReport
    from clmoe_cli.api.predict import PredictReport
    from clmoe_cli.api.predictions import Likely
    from clmoe_cli.data import Batch
    from clmoe_cli.report.thumbnails import TaskPictures

SUFFIXES = (".npz", ".csv", ".json", ".ndjson")
STDOUT = Path("-")
"""The ``--output`` that writes rows to stdout as they are decided."""
PICTURES = (".png", ".svg", ".pdf", ".html")
ROWS_SHOWN = 20


def repair_notes(report: InspectReport) -> None:
    """What ``inspect --repair`` did, in lines on stderr."""
    if report.repaired is None:
        return
    found, lost = report.repaired.found, ", ".join(report.repaired.lost) or "nothing"
    note(f"damaged: {', '.join(found)}" if found else "nothing was damaged")
    if found:
        way = "would go back to" if report.dry_run else "back at"
        note(f"{way} generation {report.repaired.generation}; lost: {lost}")


def learn_notes(reports: Sequence[LearnReport], verbose: bool) -> None:
    """What ``learn`` says on stderr: the reasons, when asked for."""
    for report in reports:
        if verbose:
            note(f"onset: {report.onset.reason}; placement: {report.reason}")


def warnings(found: Sequence[Caution]) -> None:
    """What looks wrong, a line each on stderr, however quiet a command is asked to be."""
    for caution in found:
        note(f"warning: {caution.text}")


def skip_note(skipped: Sequence[str]) -> None:
    """Which broken pictures were left out, on stderr."""
    if skipped:
        from clmoe_cli.data.npz import name_list

        note(f"skipped {amount(len(skipped), 'broken picture')}: {name_list(skipped)}")


def to_text(value: Json, ascii_only: bool = False) -> str:
    """One JSON object; NaN has no place in JSON and becomes null."""
    return json.dumps(_finite(value), ensure_ascii=ascii_only, allow_nan=False)


def _print_json(value: Json) -> None:
    # Where stdout cannot take every character, the characters are escaped: the same JSON in any locale.
    encoding = (sys.stdout.encoding or "utf-8").lower().replace("-", "")
    print(to_text(value, ascii_only=encoding != "utf8"))


def row_printer(only: str | None) -> Callable[[PredictReport], None]:
    """What prints the rows of parts of a prediction, as :func:`print_rows`; ``only``: those that are of one sort."""
    return lambda part: print_rows(part.only(only))


def print_rows(part: PredictReport) -> None:
    """The rows of a part of a prediction as NDJSON, out of the buffer before the next part is decided."""
    for row in part.rows():
        _print_json(plain(row))
    sys.stdout.flush()


def _finite(value: Json) -> Json:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value


def show(report: Report, as_json: bool) -> None:
    """Prints a report: JSON, or a table for people."""
    if as_json:
        _print_json(report.to_json())
    else:
        screen = console()
        for part in tables(report):
            put(screen, part)


def confirmation(yes: bool, quiet: bool, as_json: bool) -> Callable[[RemovalReport], bool]:
    """Asks before something is removed: on a terminal only; elsewhere ``--yes`` is needed."""

    def confirm(plan: RemovalReport) -> bool:
        asked = sys.stdin.isatty() and sys.stderr.isatty()
        # Where nobody can be asked the table is the plan, and says it.
        if not quiet and (yes or asked or as_json):
            goes = [*(f"task {t}" for t in plan.removed), *(f"expert {e}" for e in plan.removed_experts)]
            what = ", ".join((*goes, *(f"what the unfinished learn of {t} had reached" for t in plan.unfinished)))
            old = " and all older generations" if plan.gc else ""
            note(f"plan: remove {what or 'nothing'}{old}; frees {plan.freed_parameters} weights")
        if yes:
            return True
        if not asked:
            note("nothing was changed: add --yes to act")  # a script must not believe otherwise
            return False
        import typer

        return typer.confirm("Go on?", err=True)

    return confirm


def check_format(table_format: str) -> None:
    """UsageProblem for a format that :func:`frozen_table` does not have."""
    if table_format not in ("csv", "md"):
        raise UsageProblem("unknown format", found=repr(table_format), expected="csv or md")


def frozen_table(report: InspectReport, table_format: str) -> str:
    """The history of frozen percentages (the paper's Fig. 3a), a row per commit, expert and layer."""
    header = ("generation", "action", "task", "expert", "layer", "parameters", "frozen", "frozen_percent")
    rows = [
        (
            commit.generation,
            commit.action,
            commit.task or "",
            expert,
            layer.name,
            layer.parameters,
            layer.frozen,
            layer.frozen_percent,
        )
        for commit in report.history
        for expert, state in commit.experts.items()
        for layer in state.layers
    ]
    if table_format == "md":
        lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
        lines += ["| " + " | ".join(str(v).replace("|", "\\|") for v in row) + " |" for row in rows]
        return "\n".join(lines) + "\n"
    import csv

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    return text.getvalue()


def check_output(path: Path, as_json: bool = False, suffixes: Sequence[str] = SUFFIXES) -> None:
    """UsageProblem for a suffix that means nothing; found out before any work is done."""
    if path == STDOUT:
        if as_json:
            hint = "leave out one of them; CLMOE_JSON and clmoe.toml count as well"
            raise UsageProblem("--json and --output - would both write to stdout", hint=hint)
        return
    names.check_output(path, suffixes)


def check_pictures(plot: Path | None, page: Path | None) -> None:
    """What :func:`draw_pictures` would refuse, before any work is done; DiskProblem for a folder that is read-only."""
    for path, suffixes in ((plot, PICTURES), (page, PICTURES[-1:])):
        if path is None:
            continue
        from clmoe_cli.report.plots import check_plotting

        check_output(path, suffixes=suffixes)
        check_plotting()
        _check_writable(path)


def _check_writable(path: Path) -> None:
    if not os.access(path.parent, os.W_OK):
        hint = "check the permissions of the folder and the file"
        raise DiskProblem("cannot write the file", where=str(path), found="a folder without permission", hint=hint)


def check_thumbnails(folder: Path | None, page: Path | None) -> None:
    """UsageProblem for ``folder`` without a page to show its pictures on, BadInput where there is no such folder."""
    if folder is None:
        return
    if page is None:
        hint = "--report page.html --with-pictures DIR"
        raise UsageProblem("--with-pictures needs --report", key="--with-pictures", found="no page", hint=hint)
    from clmoe_cli.report.thumbnails import check_folder

    check_folder(folder)


def read_thumbnails(
    report: InspectReport, folder: Path | None, on_step: OnStep = silent
) -> tuple[TaskPictures, ...] | None:
    """The small pictures of a page, from ``folder``; None without one."""
    if folder is None:
        return None
    from clmoe_cli.report.thumbnails import thumbnails

    return thumbnails(report, folder, on_step)


def draw_pictures(
    report: InspectReport, plot: Path | None, page: Path | None, thumbnails: Sequence[TaskPictures] | None = None
) -> Iterator[Path]:
    """Writes the picture and the page, with ``thumbnails``, that were asked for; tells each when it is written."""
    if plot is not None:
        from clmoe_cli.report.html import draw

        draw(report, plot)
        yield plot
    if page is not None:
        from clmoe_cli.data.npz import replacing
        from clmoe_cli.report.html import report_page

        with replacing(page) as file:
            file.write(report_page(report, thumbnails))
        yield page


def show_predictions(
    report: PredictReport, output: Path | None, as_json: bool, quiet: bool, on_step: OnStep = silent
) -> None:
    """Writes predictions to a file by its suffix, or to stdout; with labels the accuracy as well.

    Where :func:`print_rows` has written them, what is left is said on stderr.
    """
    if output == STDOUT:
        pass
    elif output is not None:
        with whole(on_step, "writing the predictions"):
            _write(report, output)
        if as_json:
            _print_json(report.written(str(output)).to_json())
        elif not quiet:
            note(f"wrote {amount(report.count, 'prediction')} to {output}")
    elif as_json:
        _print_json(report.to_json())
    else:
        screen = console()
        first = "image" if report.file is None else "file"
        judged = () if report.reject is None else ("known",)
        rows = report.rows(candidates=False)[:ROWS_SHOWN]
        truth = ("is",) if any(row.truth is not None for row in rows) else ()
        next_best = () if report.top_label is None else ("then",)
        table = columns(first, *truth, "label", "task", "expert", "confidence", *judged, "p-value", *next_best)
        for row in rows:
            p = "–" if row.p_value is None else f"{row.p_value:.3f}"
            is_so = (str(row.truth),) if truth else ()
            about = row.file or str(row.index), *is_so, str(row.label), row.task, row.expert
            known = ("yes" if row.known else "no",) if judged else ()
            then = (_tops((row.top or ())[1:]),) if next_best else ()
            table.add_row(*about, f"{row.confidence:.3f}", *known, p, *then)
        words = report.in_words([row.index - report.first for row in rows])
        following = [_tops((row.top or ())[1:]) for row in rows] if next_best else None
        if rows:
            put(screen, table if words is None else reasons_table(first, rows, words, following))
        if report.count > ROWS_SHOWN:
            screen.print(f"… {report.count - ROWS_SHOWN} more: --json, or --output FILE for all")
    if report.scores is not None and not as_json:
        text = f"accuracy {100 * report.scores.accuracy:.2f} % of {amount(len(report.labels), 'image')}"
        if output is None:
            print(text)
            screen = console()
            for part in score_tables(report.scores):
                put(screen, part)
        elif not quiet:
            note(text)


def _tops(found: Sequence[Likely]) -> str:
    """Labels and confidences as one cell."""
    return ", ".join(f"{one.label} {one.confidence:.3f}" for one in found)


def check_page(page: Path | None) -> None:
    """What :func:`write_answers` would refuse, before any work is done; DiskProblem for a folder that is read-only."""
    if page is not None:
        check_output(page, suffixes=PICTURES[-1:])
        _check_writable(page)


def write_answers(report: PredictReport, batch: Batch, page: Path) -> None:
    """Writes the page that shows the inputs that were answered wrong, that are unsure, and that are unknown."""
    from clmoe_cli.data.npz import replacing
    from clmoe_cli.report.answers import answers_page

    with replacing(page) as file:
        file.write(answers_page(report, batch))


def _write(report: PredictReport, path: Path) -> None:
    import numpy as np

    from clmoe_cli.data.npz import replacing, write_npz

    if path.suffix == ".npz":
        rate = np.array(math.nan if report.reject is None else report.reject)
        write_npz(str(path), report.arrays() | {"reject": rate})
        return
    if path.suffix == ".json":
        text = to_text(report.to_json()) + "\n"
    elif path.suffix == ".ndjson":
        text = "".join(to_text(plain(row)) + "\n" for row in report.rows())
    else:
        import csv

        out = io.StringIO()
        names = [name for name in report.arrays() if name not in ("index", "top_label", "top_confidence")]
        likely = 0 if report.top_label is None else report.top_label.shape[1]
        top = [f"top{place}_{name}" for place in range(1, likely + 1) for name in ("label", "confidence")]
        rows = report.rows(candidates=False)
        truth = ("truth",) if any(row.truth is not None for row in rows) else ()
        writer = csv.DictWriter(out, ["index", *names, *top, *truth])
        writer.writeheader()
        for row in rows:
            cells = [cell for one in row.top or () for cell in (one.label, one.confidence)]
            writer.writerow(
                {k: v for k, v in fields_of(row).items() if k != "top"} | dict(zip(top, cells, strict=False))
            )
        text = out.getvalue()
    with replacing(path) as file:
        file.write(text.encode())
