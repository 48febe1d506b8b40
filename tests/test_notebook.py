"""notebooks/evaluate.ipynb: from top to bottom on a tiny model, and what is committed of a run."""

from __future__ import annotations

import pathlib
import re
import warnings

import nbformat

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


def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Jupyter itself
        from nbclient import NotebookClient

        monkeypatch.setenv("MTP_JAX_SMALL", "1")
        monkeypatch.setenv("MTP_JAX_WORKDIR", str(tmp_path / "run"))
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    said = outputs(notebook)
    for strategy in ("ctc", "greedy (width 1)", "threshold (tau ", "verify", "prefix_beam"):
        assert f"| {strategy}" in said
    assert (tmp_path / "run" / "results.json").exists()
    pictures = [o for c in notebook.cells for o in c.get("outputs", ()) if "image/png" in str(o)]
    assert len(pictures) == 2
    rows = re.findall(r"<td[^>]*>(\d+) calls</td><td[^>]*>(.*?)</td>", said)
    assert len(rows) == 3
    for calls, row in rows:  # attempts that were given up count as calls, and leave no block
        assert row.count("<span title=") <= int(calls)


def test_what_is_committed_has_no_errors_and_names_no_machine():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 600_000
    kinds = {o["output_type"] for c in notebook.cells for o in c.get("outputs", ())}
    assert "error" not in kinds
    assert not re.search(r"/(tmp|root|home|work)/", outputs(notebook))
