"""The parts of an evaluation: attacks in pieces, result card, table."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.common import attack_specs, cli
from experiments.common.pieces import Parts
from opnorm import analysis, data, linalg, runs

_FIELDS = ("success", "distance", "steps", "stage")


def attack_in_parts(
    f: linalg.Network,
    test_set: data.Dataset,
    spec: attack_specs.AttackSpec,
    *,
    p: float,
    epsilons: Sequence[float],
    batch_size: int,
    part_size: int,
    seed: int,
    parts: Parts,
    identity: str,
) -> dict[str, Any]:
    """Runs one attack on the test set, piece by piece, and saves each piece.

    Returns:
      "success", "distance", "steps", "stage", each ``(E, N)``, "seconds", of this
      process and of those before it, and "pieces" and "reused", how many there are and
      how many were measured by an earlier process. Distances of an attack with a budget
      are at most that: rounding of the difference between two images may have put them
      above.
    """
    budgets = [float(e) for e in epsilons] if attack_specs.has_budget(spec) else [0.0]
    pieces: list[dict[str, np.ndarray]] = []
    count = len(test_set)
    before = parts.reused
    with runs.Progress(count, description=str(spec), unit="example") as progress:
        for start in range(0, count, part_size):
            stop = min(start + part_size, count)
            key = {
                "identity": identity,
                "attack": str(spec),
                "p": p,
                "epsilons": budgets,
                "seed": seed,
                "range": [start, stop],
            }
            piece = parts.get(key)
            if piece is None:

                def tell(part: float, start: int = start, stop: int = stop) -> None:
                    progress.update(min(start + int(part * (stop - start)), stop - 1))

                began = time.monotonic()
                attacked = analysis.attack_examples(
                    f,
                    test_set.images[start:stop],
                    test_set.labels[start:stop],
                    attack=attack_specs.factory(spec, p),
                    epsilons=budgets if attack_specs.has_budget(spec) else None,
                    batch_size=batch_size,
                    key=jax.random.key(seed),
                    index=np.arange(start, stop),
                    on_progress=tell,
                )
                piece = {name: getattr(attacked, name) for name in _FIELDS}
                piece["seconds"] = np.array(time.monotonic() - began)
                parts.put(key, piece)
            pieces.append(piece)
            progress.update(stop)
    whole: dict[str, Any] = {
        name: np.concatenate([piece[name] for piece in pieces], axis=1)
        for name in _FIELDS
    }
    if attack_specs.has_budget(spec):
        nearest = np.minimum(whole["distance"], np.array(budgets)[:, None])
        whole["distance"] = np.where(whole["success"], nearest, whole["distance"])
    whole["seconds"] = float(sum(piece["seconds"] for piece in pieces))
    whole |= {"pieces": len(pieces), "reused": parts.reused - before}
    return whole


def budget_card(
    found: Mapping[str, Any],
    spec: attack_specs.AttackSpec,
    p: float,
    epsilons: Sequence[float],
    correct: np.ndarray,
) -> dict[str, Any]:
    """Sums up an attack with a budget: accuracy against epsilon, from epsilon 0 on.

    An example that falls to a smaller budget counts as fallen for larger ones.
    """
    attacked = analysis.Attacked(
        **{name: found[name] for name in _FIELDS}, x_adv=None, row_steps=0
    )
    standing = ~analysis.worst_over_budgets(attacked, epsilons)
    curve = np.concatenate([correct[None], standing])
    mean, error = mean_and_error(curve)
    card: dict[str, Any] = {
        "epsilon": [0.0, *map(float, epsilons)],
        "mean": mean,
        "standard_error": error,
        # Of the examples that are right at x, as "PGD accuracy" is sometimes reported.
        "conditional": [m / mean[0] if mean[0] else None for m in mean],
        "mean_steps": found["steps"].mean(axis=1).tolist(),
        "seconds": found["seconds"],
    }
    stages = attack_specs.factory(spec, p)(np.zeros(1)).stages
    if len(stages) > 1:
        # What stands after each attack of the ensemble, budgets taken one by one.
        card["after"] = {
            stage.name: [
                float(np.mean(correct & ~((row >= 0) & (row <= number))))
                for row in found["stage"]
            ]
            for number, stage in enumerate(stages)
        }
    return card


def within(distance: np.ndarray, epsilon: Any) -> np.ndarray:
    """Which distances in float32 are at most epsilon, whose digits they may lack."""
    return distance <= np.asarray(epsilon) * (1 + 1e-6)


def distance_card(
    distance: np.ndarray, epsilons: Sequence[float], seconds: float
) -> dict[str, Any]:
    """Sums up distances ``(N,)``: 0 where the network errs at x, inf if not found."""
    found = np.isfinite(distance)
    right = found & (distance > 0)
    mean, error = mean_and_error(distance[found]) if found.any() else (None, None)
    return {
        "found": float(found.mean()),
        "mean": mean,
        "standard_error": error,
        "median": finite(float(np.median(distance))),
        "mean_of_correct": float(distance[right].mean()) if right.any() else None,
        "error_within": {
            f"{epsilon:g}": float(np.mean(within(distance, epsilon)))
            for epsilon in epsilons
        },
        "seconds": seconds,
    }


def best_known(
    parts: Parts,
    norm: str,
    identity: str,
    distance: np.ndarray,
    names: Sequence[str],
) -> tuple[np.ndarray, list[str], list[str]]:
    """Merges distances with those of earlier evaluations, which only come down.

    Args:
      parts: where the distances are kept.
      norm: such as "L2".
      identity: of network and examples; results of others are kept apart.
      distance: ``(N,)``, of this evaluation.
      names: attacks that it is from.

    Returns:
      The smallest distances known, the attacks they come from, and those among them
      that an earlier evaluation ran.
    """
    key = {"identity": identity, "norm": norm}
    earlier = parts.get(key)
    before: list[str] = []
    if earlier is not None and earlier["distance"].shape == distance.shape:
        distance = np.minimum(distance, earlier["distance"])
        before = [str(name) for name in earlier["attacks"]]
    known = sorted({*names, *before}) if before else list(names)
    parts.put(key, {"distance": distance, "attacks": np.array(known)})
    return distance, known, before


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


def table(card: Mapping[str, Any]) -> str:
    """The result card as Markdown."""
    norm = card["norm"]
    lines = [
        f"# Evaluation of {card['run']}",
        "",
        f"{card['data']}, {card['split']}, {card['examples']} examples; {norm} norm, "
        f"pixels in [0, 1]; seed {card['seed']}; revision {card['git_revision']}; "
        f"clean accuracy {card['clean_accuracy']:.1%}.",
        "",
    ]
    rows = []
    curves = {**card["attacks"], "best known": card["best_known"][norm]}
    for name, curve in curves.items():
        if "epsilon" in curve:
            rows.append(
                {"accuracy at epsilon": name}
                | {
                    f"{epsilon:g}": f"{mean:.1%} ± {cli.number(error, '{:.1%}')}"
                    for epsilon, mean, error in zip(
                        curve["epsilon"],
                        curve["mean"],
                        curve["standard_error"],
                        strict=True,
                    )
                }
            )
    lines += [cli.table(rows), ""]
    rows = [
        {
            "nearest point": name,
            "found": f"{found['found']:.1%}",
            "mean distance": cli.number(found["mean"]),
            "median": cli.number(found["median"]),
            "mean of correct": cli.number(found["mean_of_correct"]),
            "seconds": f"{found['seconds']:.0f}",
        }
        for name, found in card["attacks"].items()
        if "found" in found
    ]
    if rows:
        lines += [cli.table(rows), ""]
    rows = [
        {"after": name}
        | {f"{e:g}": f"{m:.1%}" for e, m in zip(epsilons, means, strict=True)}
        for attack in card["attacks"].values()
        for name, means in attack.get("after", {}).items()
        for epsilons in [attack["epsilon"][1:]]
    ]
    if rows:
        lines += [cli.table(rows), ""]
    if card.get("improvement"):
        ratio = card["improvement"]
        lines += [
            f"Improvement over {ratio['baseline']}: distance "
            f"{cli.number(ratio['distance_gain'])}, error "
            f"{cli.number(ratio['error_rise'])}, ratio {cli.number(ratio['ratio'])}.",
            "",
        ]
    lines += [f"- {text}" for text in checks_as_text(card["checks"])]
    lines += [f"- {text}" for text in reuse_as_text(card)]
    return "\n".join(lines).rstrip() + "\n"


def checks_as_text(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each sanity check."""
    return [
        f"{'ok' if check['passed'] else 'WARNING'}: {check['name']}: {check['detail']}"
        for check in checks
    ]


def reuse_as_text(card: Mapping[str, Any]) -> list[str]:
    """One line for each part of a card that an earlier evaluation measured."""
    lines = [
        f"reused: {attack['reused']} of {attack['pieces']} pieces of {name} were "
        "measured by an earlier evaluation"
        for name, attack in card["attacks"].items()
        if attack.get("reused")
    ]
    for found in card["best_known"].values():
        if earlier := found.get("earlier_attacks"):
            lines.append(
                "reused: best known includes distances of an earlier evaluation by "
                + ", ".join(earlier)
            )
    return lines


def mean_and_error(values: np.ndarray) -> tuple[Any, Any]:
    """Mean and standard error over the last axis; NaN for that of one example."""
    found = analysis.average(np.moveaxis(np.asarray(values), -1, 0))
    return found.mean.tolist(), found.standard_error.tolist()


def finite(value: float) -> float | None:
    """The value, or None for one that JSON cannot hold."""
    return value if np.isfinite(value) else None
