"""Runs the notebooks from clean kernels and stores their outputs.

Each notebook keeps what Python computed, at full size::

    python scripts/run_notebooks.py 3_spectra      # one of them
    python scripts/run_notebooks.py                # all, some minutes each

Times and versions are left out, so that a notebook changes only where its text or its
outputs do. Once the repository has a public address, the same script writes badges that
open the notebooks in Colab, and the address that their first cells install from::

    python scripts/run_notebooks.py --repository=OWNER/NAME
"""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from absl import app, flags
from nbclient import NotebookClient

# A notebook, a cell or an output. nbformat gives its functions no types.
Notebook = Any
_node: Callable[..., Notebook] = nbformat.from_dict
_read: Callable[..., Notebook] = nbformat.read
_write: Callable[..., None] = nbformat.write

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
# Tags of cells: sizes that a test replaces, and assertions that hold at full size.
PARAMETERS, FULL_SIZE = "parameters", "full-size"
_COLAB = "https://colab.research.google.com"
_BADGE = re.compile(r"\n\n\[!\[Open in Colab\][^\n]*")
_SOURCE = re.compile(r"^REPOSITORY = .*$", re.MULTILINE)

_REPOSITORY = flags.DEFINE_string(
    "repository",
    None,
    "OWNER/NAME on GitHub: write it into each notebook, with a badge, and run nothing.",
)


def read(path: Path) -> Notebook:
    """Returns a notebook."""
    return _read(path, as_version=4)


def tags(cell: Notebook) -> Sequence[str]:
    """Returns the tags of a cell."""
    found: Sequence[str] = cell.metadata.get("tags", ())
    return found


def with_sizes(notebook: Notebook, sizes: Mapping[str, object]) -> Notebook:
    """Returns a notebook with other values of its parameters.

    Args:
      notebook: it has one cell with the tag "parameters".
      sizes: values by name. Cells that hold at full size alone are left out.

    Raises:
      ValueError: for a notebook without such a cell, or a name that it does not set.
    """
    cells = [cell for cell in notebook.cells if FULL_SIZE not in tags(cell)]
    found = [cell for cell in cells if PARAMETERS in tags(cell)]
    if len(found) != 1:
        raise ValueError(f"notebook has {len(found)} cells of parameters; it needs 1.")
    (cell,) = found
    assigned = {
        name.strip()
        for names in re.findall(r"^([A-Z][A-Z0-9_, ]*) =", cell.source, re.MULTILINE)
        for name in names.split(",")
    }
    unknown = sorted(set(sizes) - assigned)
    if unknown:
        raise ValueError(
            f"sizes has {', '.join(unknown)}; the notebook sets "
            f"{', '.join(sorted(assigned))}."
        )
    lines = [f"{name} = {value!r}" for name, value in sizes.items()]
    replaced = cell.copy()
    replaced.source = "\n".join([cell.source, *lines])
    changed = notebook.copy()
    changed.cells = [replaced if each is cell else each for each in cells]
    return changed


def run(notebook: Notebook, folder: Path, timeout: int = 3600) -> None:
    """Runs all cells of a notebook in a clean kernel, and stores their outputs in it.

    Args:
      notebook: changed in place.
      folder: the current directory of the kernel.
      timeout: seconds for one cell.

    Raises:
      nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        # XLA's compiler logs to the output of a cell where the machine is busy.
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    client = NotebookClient(
        notebook,
        timeout=timeout,
        startup_timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)


def clean(notebook: Notebook) -> None:
    """Removes what differs between two runs that computed the same, in place."""
    notebook.metadata = _node(
        {
            "kernelspec": {
                "display_name": "Python 3",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        cell.metadata = _node({"tags": list(tags(cell))} if tags(cell) else {})
        if cell.cell_type == "code":
            cell.outputs = _join_streams(cell.outputs)
        # An image replaces the text "<Figure size 640x480 with 2 Axes>".
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data = {"image/png": output.data["image/png"]}
                output.metadata = _node({})


def _join_streams(
    outputs: Sequence[Notebook],
) -> list[Notebook]:
    """Joins pieces of one stream, which the kernel cuts by the clock."""
    joined: list[Notebook] = []
    for output in outputs:
        name = output.get("name")
        if name is not None and joined and joined[-1].get("name") == name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def name_repository(notebook: Notebook, name: str, repository: str) -> None:
    """Writes a Colab badge below the title, and the address to install from, in place.

    Args:
      notebook: its first cell begins with the title, and the second one installs.
      name: file name of the notebook.
      repository: OWNER/NAME on GitHub, whose branch is "main".

    Raises:
      ValueError: for a repository of another form.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"repository is {repository!r}; it must be OWNER/NAME.")
    head, install = notebook.cells[:2]
    title, rest = _BADGE.sub("", head.source, count=1).split("\n", 1)
    link = f"{_COLAB}/github/{repository}/blob/main/notebooks/{name}"
    badge = f"[![Open in Colab]({_COLAB}/assets/colab-badge.svg)]({link})"
    head.source = f"{title}\n\n{badge}\n{rest}"
    install.source = _SOURCE.sub(f'REPOSITORY = "{repository}"', install.source)


def main(argv: Sequence[str]) -> None:
    """Runs the notebooks whose names are given, or all."""
    names = argv[1:] or [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    for name in names:
        path = NOTEBOOKS / f"{name}.ipynb"
        if not path.is_file():
            known = ", ".join(each.stem for each in sorted(NOTEBOOKS.glob("*.ipynb")))
            sys.exit(f"run_notebooks: {name!r} is unknown; the notebooks are {known}.")
        notebook = read(path)
        if _REPOSITORY.value:
            name_repository(notebook, path.name, _REPOSITORY.value)
        else:
            run(notebook, NOTEBOOKS)
            clean(notebook)
        _write(notebook, path)
        print(path.relative_to(ROOT), flush=True)


if __name__ == "__main__":
    app.run(main)
