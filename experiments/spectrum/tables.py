"""The table of singular values and alignments."""

from collections.abc import Callable
from typing import Any

from experiments.common import seeds, tables
from experiments.common.figures import label
from experiments.common.records import Record
from experiments.common.tables import Column

_FEATURES = ("singular_values", "features")
_COSINE = ("alignment_by_rank", "cosine")


def _first(*path: str) -> Callable[[tables.Row], tuple[Any, Any]]:
    """Returns a function of a row: mean and error of the first rank at a path."""

    def find(row: tables.Row) -> tuple[Any, Any]:
        found = tables.find(row, path)
        mean, error = (found[part][:1] for part in ("mean", "standard_error"))
        return (mean[0], error[0]) if mean else (None, None)

    return find


_VALUE = tables.with_error("{:.3g}", "{:.2g}")
_ALIGNMENT = tables.with_error("{:.3f}")
_COLUMNS = (
    Column("network", "name", label),
    Column("sigma_1 of features, clean", _first(*_FEATURES, "clean"), _VALUE),
    Column("adversarial", _first(*_FEATURES, "adversarial"), _VALUE),
    Column("alignment with v_1", _first(*_COSINE, "adversarial"), _ALIGNMENT),
    Column("random perturbation", _first(*_COSINE, "random"), _ALIGNMENT),
)


def text(results: Record) -> str:
    """Returns a line for each network, and words on the errors.

    Args:
      results: the content of results.json.
    """
    table = tables.table(tables.named(results["networks"]), _COLUMNS)
    return f"{table}\n\n± {seeds.bands(results)}\n"
