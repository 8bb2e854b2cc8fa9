"""The table of deviations from linearity."""

from collections.abc import Sequence

from experiments.common import seeds, tables
from experiments.common.figures import label
from experiments.common.records import Record
from experiments.common.tables import Column

_VALUE = tables.with_error("{:.3g}", "{:.2g}")
_COLUMNS = (
    Column("network", "network", label),
    Column("attack", "attack"),
    Column("L2 length", "length", tables.with_error("{:.2f}", "{:.2g}")),
    Column("deviation", "deviation", _VALUE),
    Column("of the change", "relative_deviation", _VALUE),
    Column("sigma(J(x + z))", "sigma", _VALUE),
    Column("units unchanged", "shared_activations", _VALUE),
)


def text(results: Record, training_epsilons: Sequence[float]) -> str:
    """Returns a line for each network and attack, and words on the errors.

    Args:
      results: the content of results.json.
      training_epsilons: L2 lengths that the networks were trained with. A line is of
        the length nearest to the first, or of the middle one where there is none.

    Returns:
      The table; an empty text where nothing was attacked.
    """
    rows = _rows(results, training_epsilons)
    if not rows:
        return ""
    return f"{tables.table(rows, _COLUMNS)}\n\n± {seeds.bands(results)}\n"


def _rows(results: Record, marks: Sequence[float]) -> list[Record]:
    """Returns each network and attack at the length nearest to that of the training."""
    rows = []
    for name, found in results["networks"].items():
        for norm in (norm for norm in found if norm != "noise"):
            curve = found[norm]["adversarial"]
            lengths = curve["length"]["mean"]
            target = marks[0] if marks else lengths[len(lengths) // 2]
            place = min(range(len(lengths)), key=lambda i: abs(lengths[i] - target))
            values = {
                quantity: {part: column[place] for part, column in found.items()}
                for quantity, found in curve.items()
                if quantity != "epsilon"
            }
            rows.append({"network": name, "attack": f"{norm} PGA", **values})
    return rows
