"""The nearest misclassified points that several attacks find together.

An attack that can start anywhere starts at the nearest point that earlier attacks have
found. An attack with a budget, such as PGA, runs at each given budget, then at doubled
ones until it succeeds, and then at budgets between the largest one that failed and the
nearest point that it found.
"""

import functools
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import attacks as attacks_lib
from opnorm import linalg
from opnorm.analysis import accuracy, inputs, margins
from opnorm.analysis.batches import Placement, batch_sizes, fill, in_batches
from opnorm.analysis.inputs import AttackFactory
from opnorm.attacks import parts


class NearestPoints(NamedTuple):
    """The nearest adversarial points that A attacks found for N examples.

    Attributes:
      distance: ``(N,)`` float32, Lp distance of the nearest point that any attack
        found; 0 where the network is wrong at x, inf where every attack failed.
      points: ``(N, ...)`` float, these points; x where there is none, or the network
        is wrong at x.
      by_attack: ``(A, N)`` float32, the distances by attack. Attacks that start at the
        points of earlier ones depend on the order of the attacks.
      seconds: ``(A,)`` float64, time that each attack took, with its compilation.
    """

    distance: np.ndarray
    points: np.ndarray
    by_attack: np.ndarray
    seconds: np.ndarray


def nearest_points(
    f: linalg.Network,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    attacks: Sequence[AttackFactory],
    epsilons: Sequence[float] = (),
    largest: float | None = None,
    halvings: int = 7,
    top_k: int = 1,
    batch_size: int = 100,
    key: jax.Array,
    index: np.ndarray | None = None,
) -> NearestPoints:
    """Finds the nearest misclassified point of each example, by several attacks.

    Args:
      f: ``(B, ...) -> (B, K)``, in inference mode; best a callable pytree, see
        :mod:`opnorm.analysis`.
      images: ``(N, ...)``, uint8 or float, in the bounds of the attacks. uint8 images
        are divided by 255, float images are taken as they are.
      labels: ``(N,)`` int, or ``(N, ...)`` for attacks with a criterion.
      attacks: factories ``epsilon -> attack`` of one norm, in the order in which they
        run; each should be one object, since compiled code is kept by it. A factory of
        an attack without a budget ignores its argument.
      epsilons: rising budgets in [0, 1] pixel units at which an attack with a budget
        runs first; needed where there is such an attack.
      largest: the largest budget, at least the last of ``epsilons``; None for that one.
      halvings: how often the interval between the largest budget that failed and the
        nearest point is halved, at least 0.
      top_k: an example is correct where its label is among as many of the largest
        logits.
      batch_size: examples per compiled call, over all devices.
      key: typed key of the attacks.
      index: ``(N,)`` int, number of each example in the data set, which its random
        numbers depend on; None for 0, ..., N - 1.

    Raises:
      ValueError: for no examples, labels, index, top_k or a batch size that do not fit,
        images that are neither uint8 nor float or outside the bounds, a key that is not
        typed, no attack, attacks of several norms, scales or criteria, a targeted
        attack, budgets that do not rise or are missing, or a negative number of
        halvings.

    Example:
      The boundary is at 0.5 for images of one pixel; the third image is misclassified.

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import analysis, attacks
      >>> def f(x):
      ...     return jnp.concatenate([x - 0.5, 0.5 - x], axis=1)
      >>> def fgm(epsilon):
      ...     return attacks.fgm(p=2, epsilon=epsilon)
      >>> images, labels = np.float32([[0.6], [0.9], [0.4]]), np.zeros(3, int)
      >>> found = analysis.nearest_points(
      ...     f, images, labels, attacks=[fgm], epsilons=[0.2], largest=0.8,
      ...     halvings=12, key=jax.random.key(0),
      ... )
      >>> [round(float(d), 2) for d in found.distance]
      [0.1, 0.4, 0.0]
    """
    inputs.check_examples(images, labels, batch_size)
    index = inputs.check_index(index, len(images))
    halvings = linalg.check_count("halvings", halvings, 0)
    patterns = make_patterns(attacks)
    budgets = _budgets(epsilons, largest, patterns)
    for pattern in patterns:
        images = inputs.check_attack(pattern, images, labels, key)
    f = linalg.prepare_network(f)
    correct = _correct(f, images, labels, top_k, batch_size, patterns[0])
    place, sizes = Placement(), batch_sizes(batch_size, len(images))
    f = linalg.place_network(f, place.replicate)
    # Divided by JAX, since NumPy rounds differently: attacks start at these points.
    points = np.array(inputs.to_pixels(jnp.asarray(images)))
    nearest = np.where(correct, np.inf, 0.0).astype(np.float32)
    by_attack, seconds = [], []
    for attack, pattern in zip(attacks, patterns, strict=True):
        began = time.monotonic()
        own = np.where(correct, np.inf, 0.0).astype(np.float32)
        rounds = _bisect(own, budgets, halvings) if pattern.budget else _once(own)
        for rows, epsilon in rounds:
            for batch, filled in fill(rows, sizes):
                given = place.shard(
                    (
                        images[filled],
                        labels[filled],
                        index[filled],
                        points[filled],
                        epsilon[filled],
                    )
                )
                found = _search(f, *given, key, attack=attack, top_k=top_k)
                moved, reached = (np.asarray(part)[: len(batch)] for part in found)
                own[batch] = np.minimum(own[batch], reached)
                wins = reached < nearest[batch]
                points[batch[wins]], nearest[batch[wins]] = moved[wins], reached[wins]
        by_attack.append(own)
        seconds.append(time.monotonic() - began)
    return NearestPoints(nearest, points, np.stack(by_attack), np.array(seconds))


def make_patterns(attacks: Sequence[AttackFactory]) -> list[attacks_lib.Attack]:
    """Returns attacks of the factories, for properties that no budget changes.

    Raises:
      ValueError: for no attack, a targeted one, or attacks of several norms.
    """
    if not attacks:
        raise ValueError("attacks is empty; at least one is needed.")
    patterns = [inputs.make_pattern(attack) for attack in attacks]
    for pattern in patterns:
        if pattern.targeted:
            raise ValueError(
                f"attacks has {pattern.name}, which is targeted; its labels would be "
                "classes to reach."
            )
    norms = sorted({pattern.p for pattern in patterns})
    if len(norms) > 1:
        raise ValueError(
            f"attacks has attacks of the norms p = {', '.join(f'{p:g}' for p in norms)}"
            "; all must have the same."
        )
    for pattern in patterns:
        unlike = pattern.difference(patterns[0])
        if unlike is not None:
            raise ValueError(
                f"attacks has {patterns[0].name} and {pattern.name}, which differ in "
                f"{unlike}; all must have the same."
            )
    return patterns


def _budgets(
    epsilons: Sequence[float],
    largest: float | None,
    patterns: Sequence[attacks_lib.Attack],
) -> list[float]:
    """The budgets before the bisection: those given, then doubled ones."""
    budgets = [float(epsilon) for epsilon in epsilons]
    if not budgets:
        for pattern in patterns:
            if pattern.budget:
                raise ValueError(
                    f"epsilons is empty; {pattern.name} has a budget, which must be "
                    "given."
                )
        return []
    if not (budgets[0] > 0 and all(a < b for a, b in itertools.pairwise(budgets))):
        raise ValueError(
            f"epsilons is {budgets}; it must be positive numbers that rise."
        )
    largest = budgets[-1] if largest is None else largest
    if not budgets[-1] <= largest < math.inf:
        raise ValueError(
            f"largest is {largest}; it must be finite, and at least the last of the "
            f"epsilons, {budgets[-1]}."
        )
    while budgets[-1] < largest:
        budgets.append(min(2 * budgets[-1], largest))
    return budgets


def _correct(
    f: linalg.Network,
    images: np.ndarray,
    labels: np.ndarray,
    top_k: int,
    batch_size: int,
    pattern: attacks_lib.Attack,
) -> np.ndarray:
    """Returns whether the network is right at each image, ``(N,)`` bool."""
    if pattern.criterion is None:
        return accuracy.evaluate_accuracy(
            f, images, labels, top_k=top_k, batch_size=batch_size, bounds=None
        ).correct
    if top_k != 1:
        raise ValueError(f"top_k is {top_k}; attacks with a criterion take 1 only.")
    goal = pattern.stages[0].goal
    measure = functools.partial(
        inputs.decided_at, goal=goal, criterion=pattern.criterion
    )
    wrong: np.ndarray = in_batches(measure, f, (images, np.asarray(labels)), batch_size)
    return ~wrong


class _Round(NamedTuple):
    """Numbers of the rows to attack, and a budget for each example of the pool."""

    rows: np.ndarray
    epsilon: np.ndarray


def _once(own: np.ndarray) -> Iterator[_Round]:
    yield _Round(np.flatnonzero(own > 0), np.zeros(len(own), np.float32))


def _bisect(
    own: np.ndarray, budgets: Sequence[float], halvings: int
) -> Iterator[_Round]:
    """Yields rounds of attacks, which must lower ``own`` before the next round."""
    correct, failed = own > 0, np.zeros(len(own), np.float32)
    for budget in budgets:
        rows = np.flatnonzero(correct & np.isinf(own))
        yield _Round(rows, np.full(len(own), budget, np.float32))
        failed = np.where(np.isinf(own), np.float32(budget), failed)
    rows = np.flatnonzero(correct & np.isfinite(own))
    for _ in range(halvings):
        before = own.copy()
        # A larger budget may find a nearer point than a smaller one that failed.
        low = np.where(failed < own, failed, 0)
        middle = np.where(np.isfinite(own), (low + own) / 2, 0)
        yield _Round(rows, middle)
        failed = np.where(own == before, middle, low)


@linalg.network_program
def _search(
    f: linalg.Network,
    images: jax.Array,
    labels: jax.Array,
    number: jax.Array,
    start: jax.Array,
    epsilon: jax.Array,
    key: jax.Array,
    *,
    attack: AttackFactory,
    top_k: int,
) -> tuple[jax.Array, jax.Array]:
    """The points that an attack finds, and their distances, inf where it failed."""
    bound = attack(epsilon)
    if bound.criterion is None:
        f, labels = margins.decide_top_k(f, labels, top_k)
    # An attack with a budget starts at x or at random.
    starts = not bound.budget and any(stage.takes_start for stage in bound.stages)
    found = bound.run(
        f,
        inputs.to_pixels(images),
        labels,
        parts.fold_in(key, number),
        start=start if starts else None,
    )
    return found.x_adv, jnp.where(found.success, found.distance, jnp.inf)
