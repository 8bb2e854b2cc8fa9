"""The figures of every command, drawn from the files that it wrote.

A command that has measured, ``redraw`` and ``report`` draw the same figures from the
same files.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from experiments.benchmark import figures as benchmark
from experiments.common import figures, kinds, run_figures
from experiments.common.figures import Drawing
from experiments.common.records import Record
from experiments.curvature import figures as curvature
from experiments.evaluate import figures as evaluate
from experiments.gradient_regularization import figures as gradient_regularization
from experiments.interpolation import figures as interpolation
from experiments.linearity import figures as linearity
from experiments.regularization_view import figures as regularization_view
from experiments.reproduce import figures as reproduce
from experiments.spectral_normalization import figures as spectral_normalization
from experiments.spectrum import figures as spectrum
from opnorm import models, runs

_BY_KIND: Mapping[str, Callable[[Record], Iterator[Drawing]]] = {
    "benchmark": benchmark.draw,
    "curvature": curvature.draw,
    "equivalence": run_figures.draw_equivalence,
    "evaluate": evaluate.draw,
    "gradient_regularization": gradient_regularization.draw,
    "interpolation": interpolation.draw,
    "linearity": linearity.draw,
    "regularization_view": regularization_view.draw,
    "reproduce": reproduce.draw,
    "reproduce_iterations": reproduce.draw_iterations,
    "spectral_normalization": spectral_normalization.draw,
    "spectrum": spectrum.draw,
    "universal": lambda results: run_figures.draw_universal(results, {}),
}
_METRICS = "metrics.jsonl"


def draw(results: Record) -> Iterator[Drawing]:
    """Draws the figures of results.

    Args:
      results: the content of a file of results.

    Yields:
      The name and the figure of each; none for results without figures, and for files
      that no command wrote.
    """
    kind = kinds.kind(results)
    if kind is not None and kind in _BY_KIND:
        yield from _BY_KIND[kind](results)


def of_file(path: Path, names: Mapping[str, str] | None = None) -> Iterator[Drawing]:
    """Draws the figures of a file of results, or of the metrics of a run.

    Args:
      path: a JSON file of results, or the metrics.jsonl of a run.
      names: the right names of data sets that files name otherwise, such as one that
        was read from a folder.

    Yields:
      As :func:`draw`; for universal perturbations their images, too.

    Raises:
      ValueError: if the file is not JSON.
    """
    if path.name == _METRICS:
        yield from _of_run(path.parent)
        return
    try:
        results = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    if not isinstance(results, dict):
        return
    if names and results.get("data") in names:
        results["data"] = names[results["data"]]
    arrays = path.parent / "perturbations.npz"
    if kinds.kind(results) == "universal" and arrays.exists():
        yield from run_figures.draw_universal(results, models.read_arrays(arrays))
        return
    yield from draw(results)


def write(
    out: runs.RunDirectory, results: Record, suffix: str = figures.FORMATS[0]
) -> list[Path]:
    """Draws the figures of results and writes them; returns the files."""
    return figures.save(out, draw(results), suffix)


def _of_run(path: Path) -> Iterator[Drawing]:
    """Draws the training of a run."""
    run = runs.RunDirectory(path)
    yield from run_figures.draw_training(
        run.read_metrics(), run.flags(), read_best(path)
    )


def read_best(run: Path) -> Record:
    """Returns how the best checkpoint was chosen, and its "step"; {} if none is there.

    There is none where an earlier call ended the training without --keep_best.
    """
    if not (run / "best").is_dir():
        return {}
    _, metadata = runs.restore_parts(run / "best", ())
    return {**metadata["best"], "step": metadata["step"]}
