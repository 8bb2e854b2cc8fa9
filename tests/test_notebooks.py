"""The notebooks run from clean kernels, and are stored with the outputs of such runs.

The runs are small and are not in the default set: ``pytest -m notebooks``.
"""

import re
from pathlib import Path

import nbformat
import pytest

from experiments.common import figures
from scripts import run_notebooks

ROOT = Path(__file__).parent.parent
TINY = {"MODEL": "mlp1", "WIDTH": 8, "TRAIN_EXAMPLES": 128, "TEST_EXAMPLES": 20}
SMALL = {
    "1_linear_map": {**TINY, "EPOCHS": 1},
    "2_train_and_attack": {**TINY, "EPOCHS": 1, "FMN_STEPS": 5},
    "3_spectra": {
        **TINY,
        "EPOCHS": 1,
        "HESSIAN_EXAMPLES": 20,
        "NUM_STEPS": 5,
        "NUM_PROBES": 2,
    },
    "4_your_own_network": {
        "WIDTH": 4,
        "TRAIN_EXAMPLES": 100,
        "TEST_EXAMPLES": 20,
        "EPOCHS": 1,
    },
    "5_scaling_up": {**TINY, "TRAIN_EXAMPLES": 64, "BATCH_SIZE": 32, "DEVICES": 2},
}
# Bytes of a notebook with its outputs.
MOST = 400_000


def stored(name):
    return run_notebooks.read(ROOT / "notebooks" / f"{name}.ipynb")


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_is_tested():
    names = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert names == set(SMALL)


@pytest.mark.notebooks
@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs_from_a_clean_kernel(name, tmp_path):
    notebook = run_notebooks.with_sizes(stored(name), SMALL[name])
    run_notebooks.run(notebook, tmp_path, timeout=300)
    assert [cell.execution_count for cell in code(notebook)] == list(
        range(1, 1 + len(code(notebook)))
    )


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_is_stored_as_a_clean_run_leaves_it(name):
    notebook = stored(name)
    cells = code(notebook)
    counts = [cell.execution_count for cell in cells]
    assert counts == list(range(1, 1 + len(cells)))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [out for out in outputs if out.output_type == "error"]
    assert not [out.text for out in outputs if out.get("name") == "stderr"]
    figures_drawn = [out for out in outputs if "image/png" in out.get("data", {})]
    assert figures_drawn
    assert any(out.get("name") == "stdout" for out in outputs)

    path = ROOT / "notebooks" / f"{name}.ipynb"
    assert path.stat().st_size < MOST
    before = nbformat.writes(notebook)
    run_notebooks.clean(notebook)
    assert nbformat.writes(notebook) == before


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_begins_alike_and_its_links_lead_somewhere(name):
    notebook = stored(name)
    head, install, *_ = notebook.cells
    assert re.match(rf"# {name[0]} · ", head.source)
    assert install.source == stored("1_linear_map").cells[1].source
    text = "\n".join(
        cell.source for cell in notebook.cells if cell.cell_type == "markdown"
    )
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    assert "## Exercise" in text
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / "notebooks" / target).exists(), target


@pytest.mark.parametrize("name", SMALL)
def test_methods_have_the_colours_of_all_figures(name):
    methods = {
        "standard": "standard",
        "adversarial training": "adversarial",
        "SNR": "data_dependent_snr",
    }
    source = "\n".join(cell.source for cell in code(stored(name)))
    pattern = rf'"({"|".join(methods)})": (?:{{"color": )?"(#\w+)"'
    found = re.findall(pattern, source)
    for method, color in found:
        assert color == figures.STYLES[methods[method]][0]
    assert bool(found) == (name[0] in "123")


def test_sizes_are_replaced_by_name():
    notebook = stored("1_linear_map")
    small = run_notebooks.with_sizes(notebook, {"EPOCHS": 1, "WIDTH": 8})
    assert any(cell.source.endswith("EPOCHS = 1\nWIDTH = 8") for cell in small.cells)
    assert all("full-size" not in run_notebooks.tags(cell) for cell in small.cells)
    assert any("full-size" in run_notebooks.tags(cell) for cell in notebook.cells)
    with pytest.raises(ValueError, match="sizes has EPOCH; the notebook sets"):
        run_notebooks.with_sizes(notebook, {"EPOCH": 1})


def test_a_repository_is_named_once():
    notebook, other = stored("1_linear_map"), stored("1_linear_map")
    run_notebooks.name_repository(notebook, "1_linear_map.ipynb", "me/mine")
    head, install, *_ = notebook.cells
    link = "/github/me/mine/blob/main/notebooks/1_linear_map.ipynb)"
    assert head.source.split("\n")[2].endswith(link)
    assert head.source.replace(head.source.split("\n")[2], "").split() == (
        other.cells[0].source.split()
    )
    assert install.source.count('REPOSITORY = "me/mine"') == 1
    run_notebooks.name_repository(other, "1_linear_map.ipynb", "me/other")
    run_notebooks.name_repository(other, "1_linear_map.ipynb", "me/mine")
    assert other == notebook
    with pytest.raises(ValueError, match="repository is 'mine'; it must be OWNER/NAME"):
        run_notebooks.name_repository(notebook, "1_linear_map.ipynb", "mine")
