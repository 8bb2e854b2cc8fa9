"""The tables of eigenvalues in the parameters, and of curvatures in the input."""

from experiments.common import seeds, tables
from experiments.common.figures import label
from experiments.common.records import Record
from experiments.common.tables import Column
from experiments.curvature import figures

_WITHIN = tables.with_error("{:.4g}", "{:.1g}", names=("value", "error"))
_WITH_ERROR = tables.with_error("{:.3g}", "{:.2g}")
_PARAMETER_COLUMNS = (
    Column("network", "network", label),
    Column("matrix", "matrix", lambda name: figures.MATRICES[name]),
    Column("largest eigenvalue", "largest", _WITHIN),
    Column("smallest", "smallest", _WITHIN),
    Column("trace", "trace", _WITH_ERROR),
)
_INPUT_COLUMNS = (
    Column("network", "name", label),
    Column(
        f"{figures.QUANTITIES['largest']}: mean", ("inputs", "largest"), _WITH_ERROR
    ),
    Column("median", ("inputs", "largest", "median"), tables.number()),
    Column("maximum", ("inputs", "largest", "maximum"), tables.number()),
    *(
        Column(f"{figures.QUANTITIES[name]}: mean", ("inputs", name), _WITH_ERROR)
        for name in ("trace", "gradient_norm", "sigma")
    ),
    Column("smallest eigenvalue: mean", ("inputs", "smallest"), _WITH_ERROR),
    Column("Hessian", lambda row: _accuracy(row)),
)


def text(results: Record) -> str:
    """Returns the tables, each with words on its errors.

    Args:
      results: the content of results.json.
    """
    table = tables.table(tables.named(results["networks"]), _INPUT_COLUMNS)
    text = f"{table}\n\n± {seeds.bands(results)}\n"
    rows = _parameter_rows(results)
    if not rows:
        return text
    first = tables.table(rows, _PARAMETER_COLUMNS)
    return f"{first}\n\n± {figures.parameter_errors(results)}\n\n{text}"


def _parameter_rows(results: Record) -> list[Record]:
    return [
        {"network": name, "matrix": matrix, **found[matrix]}
        for name, found in results["networks"].items()
        for matrix in figures.MATRICES
        if matrix in found
    ]


def _accuracy(row: Record) -> str:
    """Returns text on the method and the errors of the Hessians in the input."""
    inputs = row["inputs"]
    # Files of earlier versions are of piecewise linear networks alone.
    if not inputs.get("curved"):
        return "exact: piecewise linear"
    return (
        f"not piecewise linear at {inputs['curved']:.1%}: eigenvalues within "
        f"{inputs['eigenvalue_error']['maximum']:.1g}, standard error of a trace "
        f"{inputs['trace_error']['mean']:.1g}"
    )
