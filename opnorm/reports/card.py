"""A card of a robustness evaluation: the numbers, and everything they stand on.

The evaluation is the one that public leaderboards of robust networks use: AutoAttack in
its standard version, in Linf at 8/255 or in L2 at 0.5 (Croce et al. 2021, "RobustBench:
a standardized adversarial robustness benchmark"). A card names every point in which an
evaluation differs from it.
"""

import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import analysis, attacks, linalg, runs
from opnorm.runs import JsonObject

# Budgets of the standard evaluation by norm, as they are written.
BUDGETS = {"Linf": "8/255", "L2": "0.5"}
_EXPONENTS = {"Linf": math.inf, "L2": 2.0}
_EXAMPLES = 10_000
_STEPS, _QUERIES = 100, 5000
_FORMAT = 1


def standard_threat(norm: str) -> tuple[float, float]:
    """Returns exponent and budget of the standard evaluation in "Linf" or "L2".

    Raises:
      ValueError: for another norm.
    """
    if norm not in BUDGETS:
        raise ValueError(f"norm is {norm!r}; it may be {', '.join(BUDGETS)}.")
    above, _, below = BUDGETS[norm].partition("/")
    return _EXPONENTS[norm], float(above) / float(below or 1)


def standard_card(
    f: linalg.Network,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    norm: str = "Linf",
    epsilon: float | None = None,
    num_steps: int = _STEPS,
    num_queries: int = _QUERIES,
    channels: str = "last",
    network: str = "",
    data: str = "",
    batch_size: int = 100,
    seed: int = 0,
) -> JsonObject:
    """Evaluates a network as public leaderboards do, and returns the card.

    Args:
      f: ``(B, ...) -> (B, K)``, in inference mode; best a callable pytree, see
        :mod:`opnorm.analysis`.
      images: ``(N, ...)``, uint8 or float in [0, 1].
      labels: ``(N,)`` int.
      norm: "Linf" or "L2".
      epsilon: budget in [0, 1] pixel units; None for 8/255 in Linf, 0.5 in L2.
      num_steps: steps of APGD and FAB; the standard has 100.
      num_queries: queries of Square; the standard has 5000.
      channels: as for :func:`opnorm.attacks.auto_attack`.
      network: name of the network on the card.
      data: name of the data on the card.
      batch_size: rows per compiled call.
      seed: seed of the attack.

    Returns:
      The content of a JSON file, see :func:`make_card`.

    Raises:
      ValueError: for another norm, and for the reasons of
        :func:`opnorm.analysis.attack_examples`.

    Source: Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an
    ensemble of diverse parameter-free attacks"; Croce et al. 2021, RobustBench.
    """
    p, budget = standard_threat(norm)
    budget = budget if epsilon is None else float(epsilon)
    began = time.monotonic()
    clean = analysis.evaluate_accuracy(f, images, labels, batch_size=batch_size)
    attack = _factory(p, num_steps, num_queries, channels)
    found = analysis.attack_examples(
        f,
        images,
        labels,
        attack=attack,
        epsilons=[budget],
        batch_size=batch_size,
        key=jax.random.key(seed),
    )
    robust = analysis.average(~found.success[0])
    stages = attack(jnp.ones(1)).stages
    after = {
        stage.name: float(
            np.mean(clean.correct & ~((found.stage[0] >= 0) & (found.stage[0] <= i)))
        )
        for i, stage in enumerate(stages)
    }
    return make_card(
        network=network,
        data=data,
        examples=len(images),
        norm=norm,
        epsilon=budget,
        num_steps=num_steps,
        num_queries=num_queries,
        clean=(clean.mean, clean.standard_error),
        robust=(float(robust.mean), float(robust.standard_error)),
        after=after,
        seed=seed,
        seconds=time.monotonic() - began,
    )


@functools.cache
def _factory(
    p: float, num_steps: int, num_queries: int, channels: str
) -> analysis.AttackFactory:
    """The attack as one object, so that it is compiled once."""

    def make(epsilon: Any) -> attacks.Attack:
        return attacks.auto_attack(
            p=p,
            epsilon=epsilon,
            num_steps=num_steps,
            num_queries=num_queries,
            channels=channels,
        )

    return make


def make_card(
    *,
    network: str,
    data: str,
    examples: int,
    norm: str,
    epsilon: float,
    num_steps: int = _STEPS,
    num_queries: int = _QUERIES,
    clean: tuple[float, float],
    robust: tuple[float, float],
    after: Mapping[str, float],
    seed: int,
    seconds: float,
    checks: Sequence[Mapping[str, Any]] = (),
) -> JsonObject:
    """Returns the card of an evaluation by AutoAttack that has been run.

    Args:
      network: name of the network.
      data: name of the data.
      examples: number of examples.
      norm: "Linf" or "L2".
      epsilon: budget in [0, 1] pixel units.
      num_steps: steps of APGD and FAB.
      num_queries: queries of Square.
      clean: accuracy on clean examples and its standard error, in [0, 1].
      robust: accuracy under the attack, likewise.
      after: accuracy after each attack of the ensemble, in order.
      seed: seed of the attack.
      seconds: time that the evaluation took.
      checks: sanity checks, as ``opnorm.analysis.Check`` by field.

    Returns:
      The content of a JSON file. "deviations" lists the points in which the evaluation
      differs from the standard one.

    Raises:
      ValueError: for another norm.
    """
    _, standard = standard_threat(norm)
    deviations = [
        text
        for differs, text in (
            (
                not math.isclose(epsilon, standard, rel_tol=1e-6),
                f"epsilon is {epsilon:g}; the standard is {BUDGETS[norm]}",
            ),
            (
                examples != _EXAMPLES,
                f"{examples} examples; the standard is the {_EXAMPLES} test images of "
                "CIFAR-10",
            ),
            (
                num_steps != _STEPS,
                f"{num_steps} steps of APGD and FAB; the standard is {_STEPS}",
            ),
            (
                num_queries != _QUERIES,
                f"{num_queries} queries of Square; the standard is {_QUERIES}",
            ),
        )
        if differs
    ]
    card: JsonObject = {
        "format": _FORMAT,
        "network": network,
        "data": data,
        "examples": examples,
        "norm": norm,
        "epsilon": epsilon,
        "attack": "AutoAttack, standard",
        "num_steps": num_steps,
        "num_queries": num_queries,
        "seed": seed,
        "clean_accuracy": clean[0],
        "clean_standard_error": clean[1],
        "robust_accuracy": robust[0],
        "robust_standard_error": robust[1],
        "after": dict(after),
        "deviations": deviations,
        "checks": [dict(check) for check in checks],
        "seconds": seconds,
        "environment": {**runs.environment(), "onednn": linalg.uses_onednn()},
        "git_revision": runs.git_revision(),
    }
    found: JsonObject = runs.as_json(card)
    return found


def card_text(card: Mapping[str, Any]) -> str:
    """Returns a card as Markdown.

    Args:
      card: as :func:`make_card` returns it, or as it was read from a JSON file.

    Example:
      >>> from opnorm import reports
      >>> card = reports.make_card(
      ...     network="mine", data="CIFAR-10", examples=10_000, norm="L2", epsilon=0.5,
      ...     clean=(0.9, 0.003), robust=(0.6, 0.005), after={"apgd": 0.61}, seed=0,
      ...     seconds=9.0
      ... )
      >>> print("\\n".join(reports.card_text(card).splitlines()[:7]))
      # Robustness of mine
      <BLANKLINE>
      | measure | accuracy |
      |---|---|
      | clean | 90.00 ± 0.30 % |
      | after apgd | 61.00 % |
      | **AutoAttack, L2, epsilon = 0.5** | **60.00 ± 0.50 %** |
    """
    epsilon = _epsilon(card)
    rows = [
        ("clean", _percent(card["clean_accuracy"], card["clean_standard_error"])),
        *((f"after {name}", _percent(mean)) for name, mean in card["after"].items()),
    ]
    robust = _percent(card["robust_accuracy"], card["robust_standard_error"])
    lines = [
        f"# Robustness of {card['network'] or 'a network'}",
        "",
        "| measure | accuracy |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        f"| **AutoAttack, {card['norm']}, epsilon = {epsilon}** | **{robust}** |",
        "",
        f"Data: {card['data'] or 'not named'}, {card['examples']} examples; ± standard "
        "error over the examples. Lengths are in [0, 1] pixel units.",
        "",
        f"Attack: {card['attack']} (APGD on the cross-entropy, APGD on the targeted "
        f"DLR loss, FAB-T, Square), {card['num_steps']} steps, {card['num_queries']} "
        f"queries, seed {card['seed']}, {card['seconds']:.0f} s.",
        "",
        "Differences from the standard evaluation: "
        + ("; ".join(card["deviations"]) or "none")
        + ".",
        "",
        *_check_lines(card["checks"]),
        *_origin(card),
    ]
    return "\n".join(lines) + "\n"


def _epsilon(card: Mapping[str, Any]) -> str:
    """The budget as it is written: 8/255 in Linf."""
    _, standard = standard_threat(card["norm"])
    if math.isclose(card["epsilon"], standard, rel_tol=1e-6):
        return BUDGETS[card["norm"]]
    return f"{card['epsilon']:g}"


def _percent(mean: float, error: float | None = None) -> str:
    if error is None:
        return f"{100 * mean:.2f} %"
    return f"{100 * mean:.2f} ± {100 * error:.2f} %"


def _check_lines(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        f"- {'ok' if check['passed'] else 'WARNING'}: {check['name']}: "
        f"{check['detail']}"
        for check in checks
    ]
    return ["Sanity checks:", "", *lines, ""] if lines else []


def _origin(card: Mapping[str, Any]) -> list[str]:
    found = card["environment"]
    versions = ", ".join(
        f"{name} {found[name]}"
        for name in ("opnorm", "jax", "jaxlib", "flax", "numpy", "python")
    )
    return [
        f"Hardware: {found['device_count']} x {found['device']} ({found['platform']}, "
        f"{found['processor']}, {found['cpu_count']} CPUs).",
        "",
        f"Versions: {versions}; revision {card['git_revision'] or 'unknown'}.",
    ]
