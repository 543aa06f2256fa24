"""Every notebook of scripts/notebooks runs from its first cell to its last."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.integration.conftest import ROOT

NOTEBOOKS = ROOT / "scripts" / "notebooks"

pytestmark = pytest.mark.slow


def read(name: str) -> Any:
    """A notebook, held against the format's schema."""
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    nbformat.validate(notebook)
    return notebook


def outputs_of(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each code cell shows: its text, and its HTML where it has any."""
    # Jupyter keeps its own files there, and the notebooks their results below the temporary folder.
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(home / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(home / "ipython"))
    monkeypatch.setenv("TMPDIR", str(home))
    notebook = read(name)
    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    NotebookClient(notebook, timeout=250, kernel_name="python3", resources=resources).execute()
    shown: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            parts = [out.get("text", "") for out in cell.outputs]
            parts += ["".join(out.get("data", {}).values()) if _is_text(out) else ""
                      for out in cell.outputs]  # fmt: skip
            shown.append("\n".join(parts))
    return shown


def _is_text(out: Any) -> bool:
    return all(isinstance(value, str) for value in out.get("data", {}).values())


def test_the_readme_lists_every_notebook() -> None:
    listed = re.findall(r"^- \[(\w+\.ipynb)\]", (NOTEBOOKS / "README.md").read_text(), re.M)
    assert sorted(listed) == sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("name", ["law.ipynb", "sizing.ipynb"])
def test_what_cells_printed_is_not_kept(name: str) -> None:
    code = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert code and all(not c.outputs and c.execution_count is None for c in code)


def test_a_law_is_fitted_asked_and_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = "\n".join(outputs_of("law.ipynb", tmp_path, monkeypatch))
    assert "324 runs" in shown and "law of 324 points, CONVERGED" in shown
    assert "far beyond the points" in shown and "nats per token; LawPrediction(" in shown
    assert "of 160</td>" in shown and "exact_recall" in shown


@pytest.mark.ray
def test_a_sizing_answers_with_a_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = "\n".join(outputs_of("sizing.ipynb", tmp_path, monkeypatch))
    assert "SizingPlan(8 records" in shown and "chosen by SizedBy(lora_rank=" in shown
    assert re.search(r"^\d of 8$", shown, re.MULTILINE)
    (card,) = tmp_path.rglob("rooms/adapter/card.json")
    assert card.is_file()
