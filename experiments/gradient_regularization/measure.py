"""Measures the nearest misclassified points, slope and curvature of one network.

Errors, distances and bounds are of the attacked images, which are the first of the test
images. Only the largest slope and curvature, which the bounds use, are taken over all
test images.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from experiments.common import attack_specs, cache
from opnorm import analysis, data, linalg

Loss = Callable[[jax.Array, jax.Array], jax.Array]

# Smooth losses in place of the margin, whose curvature is measured, by their name in
# results: that of the paper, which may lie below the margin, and one that does not.
# The margin of the top k is used as it is, like in the paper.
SMOOTH_LOSSES: dict[str, Loss] = {
    "soft": analysis.soft_margin,
    "log_sum_exp": analysis.log_sum_exp_margin,
}


class Settings(NamedTuple):
    """How networks are measured; lengths in [0, 1] pixel units.

    Attributes:
      p: exponent of the norm, 2 or inf.
      attacks: the attacks that search the nearest points, in order.
      epsilons: rising; errors are reported within these distances.
      largest: the largest budget, at least the last of ``epsilons``.
      halvings: halvings of the interval between a budget that failed and a point found.
      top_k: an image is correct if its label is among as many of the largest logits.
      lanczos_steps: products with each Hessian.
      batch_size: images per compiled call.
      part_size: attacked images after which results are saved.
      seed: seed of the attacks.
    """

    p: float
    attacks: tuple[attack_specs.AttackSpec, ...]
    epsilons: tuple[float, ...]
    largest: float
    halvings: int
    top_k: int
    lanczos_steps: int
    batch_size: int
    part_size: int
    seed: int


class Measured(NamedTuple):
    """The measurements of a network on N images, the first A of them attacked.

    Attributes:
      correct: ``(N,)`` bool.
      distance: ``(A,)``, distance of the nearest point that any attack found; 0 where
        the network is wrong, inf where none was found.
      by_attack: ``(attacks, A)``, the distances by attack.
      seconds: ``(attacks,)``.
      slope: slope of the margin, without its curvature.
      curved: slope and curvature by loss, if the network is smooth and p = 2.
    """

    correct: np.ndarray
    distance: np.ndarray
    by_attack: np.ndarray
    seconds: np.ndarray
    slope: analysis.Regularity
    curved: dict[str, analysis.Regularity]


def check(settings: Settings) -> None:
    """Raises ValueError for budgets that do not rise or attacks of another norm."""
    epsilons, largest = list(settings.epsilons), settings.largest
    if not epsilons or epsilons != sorted(set(epsilons)) or not epsilons[0] > 0:
        raise ValueError(
            f"epsilons is {epsilons}; it must be positive numbers that rise."
        )
    if not epsilons[-1] <= largest < math.inf:
        raise ValueError(
            f"largest_budget is {largest}; it must be finite, and at least the "
            f"largest of the epsilons, {epsilons[-1]}."
        )
    for spec in settings.attacks:
        attack_specs.factory(spec, settings.p)(np.ones(1, np.float32))


def measure(
    f: linalg.Network,
    test_set: data.Dataset,
    attacked: int,
    settings: Settings,
    *,
    smooth: bool,
    identity: str,
    parts: cache.Parts,
    description: str,
) -> Measured:
    """Measures a network; parts that an interrupted process measured are read again.

    Args:
      f: ``(B, H, W, C) -> (B, K)`` in inference mode, a callable pytree.
      test_set: the test images.
      attacked: number of them that are attacked, the first ones.
      settings: how they are measured.
      smooth: whether the network has a curvature.
      identity: of network and images; see :func:`experiments.common.cache.fingerprint`.
      parts: where parts of the results are kept.
      description: what the progress is called.
    """
    correct = analysis.evaluate_accuracy(
        f,
        test_set.images,
        test_set.labels,
        top_k=settings.top_k,
        batch_size=settings.batch_size,
    ).correct
    regularity = functools.partial(_regularity, f, test_set, settings, parts, identity)
    margin = _margin(settings.top_k)
    curved = {}
    if smooth and settings.p == 2:
        losses = SMOOTH_LOSSES if settings.top_k == 1 else {"margin": margin}
        curved = {
            name: regularity(name, loss, settings.lanczos_steps)
            for name, loss in losses.items()
        }
    by_attack, seconds = _find_nearest(
        f, test_set.slice(0, attacked), settings, parts, identity, description
    )
    distance = np.where(correct[:attacked], by_attack.min(axis=0), 0.0)
    slope = regularity("margin", margin, 0)
    return Measured(correct, distance, by_attack, seconds, slope, curved)


def _find_nearest(
    f: linalg.Network,
    images: data.Dataset,
    settings: Settings,
    parts: cache.Parts,
    identity: str,
    description: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Attacks A images part by part: returns distances (attacks, A), and seconds."""
    key = {
        "identity": identity,
        "attacks": [str(spec) for spec in settings.attacks],
        **{
            name: getattr(settings, name)
            for name in ("p", "epsilons", "largest", "halvings", "top_k")
        },
        "seed": settings.seed,
    }

    def attack(first: int, last: int, _: object) -> cache.Arrays:
        part = images.slice(first, last)
        found = analysis.nearest_points(
            f,
            part.images,
            part.labels,
            attacks=[
                attack_specs.factory(spec, settings.p) for spec in settings.attacks
            ],
            epsilons=settings.epsilons,
            largest=settings.largest,
            halvings=settings.halvings,
            top_k=settings.top_k,
            batch_size=settings.batch_size,
            key=jax.random.key(settings.seed),
            index=np.arange(first, last),
        )
        return {"distance": found.by_attack, "seconds": found.seconds}

    found = cache.in_parts(
        parts,
        key,
        attack,
        count=len(images),
        part_size=settings.part_size,
        description=description,
        unit="image",
    )
    distance = np.concatenate([part["distance"] for part in found], axis=1)
    return distance, np.sum([part["seconds"] for part in found], axis=0)


def _regularity(
    f: linalg.Network,
    test_set: data.Dataset,
    settings: Settings,
    parts: cache.Parts,
    identity: str,
    name: str,
    loss: Loss,
    num_steps: int,
) -> analysis.Regularity:
    key = {
        "identity": identity,
        "loss": name,
        "p": settings.p,
        "top_k": settings.top_k,
        "num_steps": num_steps,
        "seed": settings.seed,
    }

    def compute() -> cache.Arrays:
        found = analysis.loss_regularity(
            f,
            test_set.images,
            test_set.labels,
            loss=loss,
            p=settings.p,
            num_steps=num_steps,
            batch_size=settings.batch_size,
            key=jax.random.key(settings.seed),
        )
        return found._asdict()

    return analysis.Regularity(**parts.cached(key, compute))


@functools.cache
def _margin(top_k: int) -> Loss:
    if top_k == 1:
        return analysis.probability_margin
    return functools.partial(analysis.top_k_margin, k=top_k)
