"""notebooks/evaluate.ipynb: from top to bottom on a tiny model, and what is committed of a run."""

from __future__ import annotations

import pathlib
import re
import warnings

import nbformat
import pytest

from tests.pretrained import GOLDEN_WHISPER

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "evaluate.ipynb"


def outputs(notebook: nbformat.NotebookNode) -> str:
    """All that its cells printed and displayed as text, HTML or Markdown."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            found += [output.get("text", ""), *(data.get(f"text/{k}", "") for k in _TEXTS)]
    return "\n".join(found)


_TEXTS = ("plain", "html", "markdown")


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """What runs the notebook, or its cells before the one of that id, under an environment."""

    def run(until: str = "", **environment: str) -> nbformat.NotebookNode:
        small = {"MTP_JAX_SMALL": "1", "MTP_JAX_WORKDIR": str(tmp_path / "run")}
        for name, value in (small | {"PYTHONPATH": str(ROOT)} | environment).items():
            monkeypatch.setenv(name, value)
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        ids = [cell.id for cell in notebook.cells]
        notebook.cells = notebook.cells[: ids.index(until) if until else None]
        for cell in notebook.cells:
            cell.outputs = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Jupyter itself
            from nbclient import NotebookClient

            NotebookClient(
                notebook, timeout=600, resources={"metadata": {"path": tmp_path}}
            ).execute()
        return notebook

    return run


def test_it_runs_from_top_to_bottom(executed, tmp_path):
    notebook = executed(MTP_JAX_MODEL=str(GOLDEN_WHISPER))
    said = outputs(notebook)
    for strategy in ("ctc", "greedy (width 1)", "threshold (tau ", "verify", "prefix_beam"):
        assert f"| {strategy}" in said
    assert (tmp_path / "run" / "results.json").exists()
    pictures = [o for c in notebook.cells for o in c.get("outputs", ()) if "image/png" in str(o)]
    assert len(pictures) == 2
    rows = re.findall(r"<td[^>]*>(\d+) calls</td>(.*?)</tr>", said)
    assert len(rows) == 6  # of the Whisper, and of the model that was trained
    for calls, row in rows:  # attempts that were given up count as calls, and leave no block
        assert row.count("<span title=") <= int(calls)


def test_where_no_whisper_is_to_be_had_it_says_so(executed):
    notebook = executed(until="cell-05", MTP_PRETRAINED="nowhere")
    assert "Whisper is left out: nowhere is no folder of a model" in outputs(notebook)


def test_what_is_committed_has_no_errors_and_names_no_machine():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 600_000
    kinds = {o["output_type"] for c in notebook.cells for o in c.get("outputs", ())}
    assert "error" not in kinds
    assert not re.search(r"/(tmp|root|home|work)/", outputs(notebook))
