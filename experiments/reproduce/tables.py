"""The tables of the rows, their controls, the search for lambda and the verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common import tables
from experiments.common.records import Record
from experiments.common.tables import Column
from experiments.reproduce.claims import LIMIT
from experiments.reproduce.networks import MATCHED
from opnorm import training

_POINTS = tables.with_error("{:+.1f}", "{:.1f}", times=100)
_PERCENT = tables.with_error("{:.1f}", times=100, unit=" %", alone=True)
_LIMIT = f"{100 * LIMIT:.0f} points"


def text(results: Record) -> str:
    """Returns all tables, with a line on the errors before the first.

    Args:
      results: the content of results.json.
    """
    parts = [_errors(results), make_table(results), _notes(results)]
    if results["auto_attack_examples"]:
        parts += [
            f"Accuracy under AutoAttack, {results['auto_attack_examples']} images, in "
            "the norm of the training, at the lengths up to that of the training:",
            _strong_table(results),
        ]
    if results["verdicts"]:
        parts += [
            "Regularisation minus adversarial training in the same norm, paired by "
            "seed, at the lengths up to that of the training. The verdict says whether "
            f"all differences are at most {_LIMIT}; it ends with 'within error' where "
            "two standard errors would change it. Lengths at which both keep at most "
            "that much accuracy are left out:",
            tables.table(results["verdicts"], _VERDICTS),
        ]
    if results["controls"]:
        parts += [
            "Clean accuracy minus that of the control, the standard network trained on "
            "for as many epochs with the same recipe, paired by seed:",
            tables.table(results["controls"], _CONTROLS),
        ]
    for found in results["matching"]:
        parts += [_search(found), tables.table(found["trials"], _TRIALS)]
    return "\n\n".join(part for part in parts if part) + "\n"


def make_table(results: Record) -> str:
    """Returns the table, with the accuracies that the paper prints beside those here.

    Args:
      results: the content of results.json; the paper's networks have other sizes, and
        were trained on more data. Errors are those over networks; a single network
        stands without one. A network that is not measured yet is "-".
    """
    rows = tables.named(results["rows"], "row")
    columns = [Column("row", "row", label)]
    if "seeds" in results:
        count = len(results["seeds"])
        columns += [
            Column("networks", lambda row: f"{len(row['networks'])} of {count}"),
            Column("lambda", _weight, tables.number("{:g}")),
        ]
    columns += [
        Column("clean", _point("accuracy", "L2", 0), _PERCENT),
        Column("clean, paper", _printed),
    ]
    columns += [
        Column(f"PGA {norm} {epsilon:.3g}", _point("accuracy", norm, place), _PERCENT)
        for norm, curve in _first(rows, "accuracy").items()
        for place, epsilon in enumerate(curve["epsilon"])
        if place > 0
    ]
    return tables.table(rows, columns)


def label(name: str) -> str:
    """Returns the name of a row for readers."""
    return name.removeprefix("roth_").replace("_", " ")


def _point(kind: str, norm: str, place: int) -> Any:
    """Returns ``row -> (mean, error over networks)`` of a point of a curve."""

    def find(row: tables.Row) -> tuple[Any, Any] | None:
        curve = row[kind].get(norm)
        if curve is None:
            return None
        several = curve.get("over") == "networks"
        return curve["mean"][place], curve["standard_error"][place] if several else None

    return find


def _first(rows: Sequence[tables.Row], kind: str) -> Mapping[str, Any]:
    """Returns the curves of all norms that some row has."""
    found: dict[str, Any] = {}
    for row in rows:
        found = {**row[kind], **found}
    return found


def _weight(row: tables.Row) -> float | None:
    """Lambda of a row; networks without a penalty have none."""
    config = row["config"]
    return config["weight"] if config["method"].endswith(("_snr", "_onr")) else None


def _printed(row: tables.Row) -> str:
    preset = training.get_preset(row.get("preset", row["row"]))
    return preset.paper.get("clean accuracy", tables.MISSING)


def _errors(results: Record) -> str:
    seeds = results["seeds"]
    head = f"{results['data']}, {results['train_examples']} training images, "
    head += f"{results['test_examples']} test images"
    if len(seeds) > 1:
        listed = ", ".join(map(str, seeds))
        return (
            f"{head}. Errors are standard errors over the networks of a row, which "
            f"differ in the seed ({listed}); a single network has none."
        )
    largest = max(
        (
            max(e or 0.0 for e in curve["standard_error"])
            for row in results["rows"].values()
            for curve in row["accuracy"].values()
        ),
        default=0.0,
    )
    return (
        f"{head}, one network for each row (seed {seeds[0]}). Standard errors over the "
        f"test images are up to {100 * largest:.1f} points; errors over networks are "
        "not known."
    )


def _notes(results: Record) -> str:
    """Returns the lines that explain names of rows."""
    notes = []
    for name, row in results["rows"].items():
        config = row["config"]
        if config["method"] == "standard" and config["init_from"] is not None:
            notes.append(
                f"{label(name)}: the control, the standard network trained on with the "
                "recipe and for the epochs of the rows that start from it."
            )
    for found in results["matching"]:
        name = f"{label(found['row'])} {MATCHED}"
        if found["matched"]:
            notes.append(
                f"{name}: lambda was searched for on the validation split, so that the "
                f"clean accuracy is that of {label(found['reference'])}."
            )
        elif found["chosen"] is not None:
            notes.append(
                f"{name}: NOT matched. No lambda of the search had the clean accuracy "
                f"of {label(found['reference'])} on the validation split; the nearest "
                "one is shown."
            )
    return "\n".join(notes)


def _strong_table(results: Record) -> str:
    rows = tables.named(results["rows"], "row")
    columns = [Column("row", "row", label)]
    columns += [
        Column(
            f"{norm} {epsilon:.3g}" if place else f"clean ({norm} rows)",
            _point("auto_attack", norm, place),
            _PERCENT,
        )
        for norm, curve in _first(rows, "auto_attack").items()
        for place, epsilon in enumerate(curve["epsilon"])
    ]
    return tables.table([row for row in rows if row["auto_attack"]], columns)


def _pairs(row: tables.Row) -> str:
    if row["over"] == "networks":
        return f"{row['networks']} networks"
    return "images, 1 network"


_VERDICTS = (
    Column("row", "row", label),
    Column("against", "reference", label),
    Column("attack", "attack"),
    Column("clean (points)", "clean", _POINTS),
    Column("largest (points)", "largest", _POINTS),
    Column("at epsilon", "epsilon", tables.number()),
    Column("errors over", _pairs),
    Column(f"at most {_LIMIT}", "verdict"),
)
_CONTROLS = (
    Column("row", "row", label),
    Column("control", "control", label),
    Column("difference (points)", "difference", _POINTS),
    Column("errors over", _pairs),
)
_TRIALS = (
    Column("lambda", "weight", tables.number("{:g}")),
    Column("clean", lambda row: (row["clean"], row["clean_error"]), _PERCENT),
    Column(
        "under the attack",
        lambda row: (row["attacked"], row["attacked_error"]),
        _PERCENT,
    ),
)


def _search(found: Record) -> str:
    """Returns the lines above the networks of a search for lambda."""
    target = found["target"]
    wanted = _PERCENT((target["clean"], target["clean_error"]))
    result = "no network could be trained"
    if found["chosen"] is not None:
        result = f"chosen: {found['chosen']:g}"
    if not found["matched"]:
        result += f", NOT matched after {len(found['trials'])} networks"
    return (
        f"Lambda of {label(found['row'])}, seed {found['seed']}, on "
        f"{found['examples']} validation images ({found['attack']}, {found['norm']} "
        f"{found['epsilon']:.3g}; errors over these images). Target: the clean "
        f"accuracy of {label(found['reference'])}, {wanted}, within "
        f"{100 * found['tolerance']:.1f} points; {result}:"
    )
