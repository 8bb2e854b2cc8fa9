"""The quickstart notebook runs, at a small size."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "quickstart.ipynb"
SMALLER = {
    "EPOCHS = 4": "EPOCHS = 1",
    "TRAIN_EXAMPLES = 3000": "TRAIN_EXAMPLES = 128",
    "seed=0)": 'seed=0, model="mlp1", width=8)',
    "test_set.images[:200]": "test_set.images[:20]",
    "test_set.labels[:200]": "test_set.labels[:20]",
    "x[:50], y[:50]": "x[:20], y[:20]",
    "range(1, 9)": "range(1, 2)",
}


def test_the_quickstart_runs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    source = "\n".join(cell.source for cell in notebook.cells)
    for large, small in SMALLER.items():
        assert large in source
        for cell in notebook.cells:
            cell.source = cell.source.replace(large, small)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()


def test_its_outputs_are_stored_without_errors():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert sum("image/png" in out.get("data", {}) for out in outputs) >= 4
    assert not any(out.output_type == "error" for out in outputs)
