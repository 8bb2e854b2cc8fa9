"""The improvement ratio of two results of evaluations."""

from collections.abc import Mapping
from typing import Any


def improvement(
    card: Mapping[str, Any], baseline: Mapping[str, Any], norm: str
) -> dict[str, float | None]:
    """Computes the improvement ratio of Finlay & Oberman 2019, section 4.

    ``R_mu / R_e``: the relative gain in mean distance over the relative rise of the
    clean error, both against the baseline; None where the errors are equal.
    """
    distance, before = (
        c["best_known"][norm]["mean_distance"] for c in (card, baseline)
    )
    error, error_before = (1 - c["clean_accuracy"] for c in (card, baseline))
    gain = distance / before - 1 if before and distance is not None else None
    cost = error / error_before - 1 if error_before else None
    ratio = gain / cost if gain is not None and cost else None
    return {"distance_gain": gain, "error_rise": cost, "ratio": ratio}
