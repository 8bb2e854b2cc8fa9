"""Runs the notebooks from clean kernels and stores their outputs.

Each notebook keeps what Python computed, at full size::

    python scripts/run_notebooks.py 3_spectra      # one of them
    python scripts/run_notebooks.py                # all, some minutes each

Times and versions are left out, so that a notebook changes only where its text or its
outputs do. The same script adds badges that open the notebooks in Colab, once the
repository has a public address::

    python scripts/run_notebooks.py --repository=OWNER/NAME
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
from absl import app, flags
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
# Tags of cells: sizes that a test replaces, and assertions that hold at full size.
PARAMETERS, FULL_SIZE = "parameters", "full-size"
_COLAB = "https://colab.research.google.com"
_BADGE = re.compile(r"\n\n\[!\[Open in Colab\][^\n]*")

_REPOSITORY = flags.DEFINE_string(
    "repository",
    None,
    "OWNER/NAME on GitHub: write a Colab badge into each notebook, and run nothing.",
)


def read(path: Path) -> nbformat.NotebookNode:
    """Returns a notebook."""
    return nbformat.read(path, as_version=4)


def tags(cell: nbformat.NotebookNode) -> Sequence[str]:
    """Returns the tags of a cell."""
    return cell.metadata.get("tags", ())


def with_sizes(
    notebook: nbformat.NotebookNode, sizes: Mapping[str, object]
) -> nbformat.NotebookNode:
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


def run(notebook: nbformat.NotebookNode, folder: Path, timeout: int = 3600) -> None:
    """Runs all cells of a notebook in a clean kernel, and stores their outputs in it.

    Args:
      notebook: changed in place.
      folder: the current directory of the kernel.
      timeout: seconds for one cell.

    Raises:
      nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)


def clean(notebook: nbformat.NotebookNode) -> None:
    """Removes what differs between two runs that computed the same, in place."""
    notebook.metadata = nbformat.from_dict(
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
        cell.metadata = nbformat.from_dict(
            {"tags": list(tags(cell))} if tags(cell) else {}
        )
        # An image replaces the text "<Figure size 640x480 with 2 Axes>".
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data = {"image/png": output.data["image/png"]}
                output.metadata = nbformat.from_dict({})


def with_badge(text: str, name: str, repository: str) -> str:
    """Returns the first cell of a notebook with a badge below its title.

    Args:
      text: Markdown whose first line is the title.
      name: file name of the notebook.
      repository: OWNER/NAME on GitHub, whose branch is "main".
    """
    title, rest = _BADGE.sub("", text, count=1).split("\n", 1)
    link = f"{_COLAB}/github/{repository}/blob/main/notebooks/{name}"
    badge = f"[![Open in Colab]({_COLAB}/assets/colab-badge.svg)]({link})"
    return f"{title}\n\n{badge}\n{rest}"


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
            head = notebook.cells[0]
            head.source = with_badge(head.source, path.name, _REPOSITORY.value)
        else:
            run(notebook, NOTEBOOKS)
            clean(notebook)
        nbformat.write(notebook, path)
        print(path.relative_to(ROOT), flush=True)


if __name__ == "__main__":
    app.run(main)
