"""The claims of the paper, judged by the networks that were measured."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common.records import Record
from experiments.regularization_view.networks import FGSM, PGD, STANDARD
from opnorm import analysis, operators

Row = Mapping[str, Any]

SHOWN, NOT_SHOWN, MISSING = "shown", "not shown", "missing"
_RISES, _FALLS = 1, -1


def series(
    rows: Sequence[Row], recipe: str, attack: str, clip: str | None = None
) -> list[Row]:
    """Returns the rows of one recipe, attack and clip by their level.

    The row without an attack is the level 0 of every attack.
    """
    found = [
        row
        for row in rows
        if row["recipe"] == recipe
        and row["attack"] in (attack, STANDARD)
        and row["clip"] == clip
    ]
    return sorted(found, key=lambda row: float(row["level"]))


def clips(rows: Sequence[Row], recipe: str) -> list[str]:
    """Returns the clips of the networks of a recipe, the tightest first.

    Networks that are clipped repeatedly come before those that are clipped once.
    """
    found = {
        row["clip"]: (row["clipping"], row["bound"])
        for row in rows
        if row["recipe"] == recipe and row["clip"] is not None
    }
    return sorted(found, key=lambda clip: found[clip])


def changes(rows: Sequence[Row], recipe: str, attack: str) -> list[Record]:
    """Compares the standard deviations of singular values of two levels by layer.

    Args:
      rows: the rows of all networks.
      recipe: theirs.
      attack: theirs.

    Returns:
      For the weakest attack and the strongest, and for no attack and the strongest, as
      far as they are there, a record for each form of the layers: "from" and "to",
      levels; "form"; and the fields of :class:`opnorm.operators.LayerChange`, of the
      means over networks.
    """
    found = series(rows, recipe, attack)
    attacked = [row for row in found if row["level"] > 0]
    pairs = []
    if len(attacked) > 1:
        pairs.append((attacked[0], attacked[-1]))
    if attacked and len(attacked) < len(found):
        pairs.append((found[0], attacked[-1]))
    return [
        {
            "recipe": recipe,
            "attack": attack,
            "from": weak["level"],
            "to": strong["level"],
            "form": form,
            "networks": len(weak["networks"]) + len(strong["networks"]),
            **operators.layer_change(
                weak["layers"][form]["mean"], strong["layers"][form]["mean"]
            )._asdict(),
        }
        for weak, strong in pairs
        for form in weak["layers"]
        if form != "names"
    ]


def judge(rows: Sequence[Row], recipe: str, lengths: Sequence[float]) -> list[Record]:
    """Judges every claim by the networks of a recipe.

    A quantity falls or rises where :func:`opnorm.analysis.trend` says so.

    Args:
      rows: the rows of all networks.
      recipe: the recipe.
      lengths: levels of the attacks on the loss.

    Returns:
      Records with "recipe", "claim", a key of ``tables.CLAIMS``, "verdict", one of
      ``SHOWN``, ``NOT_SHOWN`` and ``MISSING``, "networks", their number, and "parts",
      the quantities that decide. The verdict is missing unless every part is there.
    """
    pgd, fgsm = (series(rows, recipe, attack) for attack in (PGD, FGSM))
    if all(row["attack"] == STANDARD for row in fgsm):
        fgsm = []
    tightest = clips(rows, recipe)[:1]
    clipped = series(rows, recipe, PGD, *tightest) if tightest else []
    common = {row["level"] for row in pgd} & {row["level"] for row in clipped}
    judged = {
        "loss_gap": [_trend(pgd, "loss_gap", _FALLS)],
        "test_error": [_trend(pgd, "test_error", _RISES)],
        "robustness": [_trend(pgd, "conditional", _RISES)],
        "margins": [
            _trend(pgd, quantity, _FALLS)
            for quantity in ("margin_std", "margin_modulus")
        ],
        "layers": [_layers(rows, recipe, PGD)],
        "variation": [
            _trend(pgd, f"variation_{length:g}", _FALLS) for length in lengths
        ],
        "fgsm": [
            _trend(fgsm, "loss_gap", _FALLS),
            _trend(fgsm, "test_error", _RISES),
            _trend(fgsm, "margin_std", _FALLS),
            _layers(rows, recipe, FGSM),
        ],
        "clipping": [
            _trend([row for row in part if row["level"] in common], "error_gap", sign)
            for part, sign in ((pgd, _RISES), (clipped, _FALLS))
        ],
    }
    return [_claim(recipe, name, parts) for name, parts in judged.items()]


def _claim(recipe: str, name: str, parts: Sequence[Record | None]) -> Record:
    known = [part for part in parts if part is not None]
    verdict = SHOWN if all(part["holds"] for part in known) else NOT_SHOWN
    return {
        "recipe": recipe,
        "claim": name,
        "verdict": verdict if len(known) == len(parts) else MISSING,
        "networks": len({run for part in known for run in part["runs"]}),
        "parts": [
            {key: value for key, value in part.items() if key != "runs"}
            for part in known
        ],
    }


def _trend(rows: Sequence[Row], quantity: str, expected: int) -> Record | None:
    """The course of a quantity over the levels.

    None with fewer than two levels, or where a network has no finite value.
    """
    groups = [[network[quantity] for network in row["networks"]] for row in rows]
    # The accuracy among correct images is not defined where there are none.
    known = all(
        value is not None and math.isfinite(value)
        for group in groups
        for value in group
    )
    if len(groups) < 2 or not known:
        return None
    found = analysis.trend(groups)
    return {
        "quantity": quantity,
        "attack": rows[-1]["attack"],
        "clip": rows[-1]["clip"],
        "levels": [row["level"] for row in rows],
        "mean": found.mean.tolist(),
        "standard_error": found.standard_error.tolist(),
        "change": found.change,
        "change_error": found.change_error,
        "direction": found.direction,
        "holds": found.direction == expected,
        "runs": [network["run"] for row in rows for network in row["networks"]],
    }


def _layers(rows: Sequence[Row], recipe: str, attack: str) -> Record | None:
    """The change from the weakest attack to the strongest, in the operator form."""
    attacked = [row for row in series(rows, recipe, attack) if row["level"] > 0]
    if len(attacked) < 2:
        return None
    first, *_ = (
        change
        for change in changes(rows, recipe, attack)
        if change["form"] == "operator"
    )
    ends = attacked[0], attacked[-1]
    return {
        **first,
        "quantity": "layers",
        "holds": first["num_fallen"] > first["num_risen"]
        and first["fall"] > first["rise"],
        "runs": [network["run"] for row in ends for network in row["networks"]],
    }
