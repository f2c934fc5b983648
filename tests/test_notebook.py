"""The notebook of the documentation runs, and shows what it shows there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


def shown(book: Any) -> list[str]:
    """What the cells print, without figures, which hang on the machine's last bits."""
    found = []
    for cell in book.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "display_data":
                continue  # bars
            text = output.get("text") or output["data"].get("text/plain", "")
            found.append(re.sub(r"\d*\.\d+", "#", text))
    return found


@pytest.mark.filterwarnings("ignore")
def test_the_notebook_runs_and_shows_what_it_shows(tmp_path: Path) -> None:
    kept = nbformat.read(NOTEBOOK, as_version=4)
    assert all(cell.get("outputs") for cell in kept.cells[2::2] if cell.cell_type == "code")
    again = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(again, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert shown(again) == shown(kept)
    assert (tmp_path / "experts").is_dir()
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert "Error" not in text
    assert "/tmp" not in text
