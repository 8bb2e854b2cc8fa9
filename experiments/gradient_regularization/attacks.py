"""The nearest misclassified points that several attacks find together.

Attacks that can begin somewhere begin at the best point known so far. One with a budget
(PGA) is run at each budget that errors are reported at, then at doubled ones until it
succeeds, and then between the largest that failed and the nearest point it found. A
picture that the network gets wrong already is at distance 0.
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

from experiments.common import attack_specs, cache
from opnorm import analysis, data, linalg, training
from opnorm.analysis import batches, inputs


class Settings(NamedTuple):
    """How networks are measured; lengths in [0, 1] pixel units.

    Attributes:
      p: exponent of the norm, 2 or inf.
      attacks: that look for the nearest points, in order.
      epsilons: rising; errors are reported within these distances.
      largest: the largest budget, at least the last of ``epsilons``.
      halvings: of the interval between a budget that failed and a point found.
      top_k: a picture is right if its label is among as many of the largest logits.
      lanczos_steps: products with each Hessian.
      batch_size: pictures per compiled call.
      part_size: attacked pictures after which results are saved.
      seed: of the attacks.
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


def check(settings: Settings) -> None:
    """Raises ValueError at the first setting that cannot be used."""
    if settings.p not in (2.0, math.inf):
        raise ValueError(f"p is {settings.p:g}; it may be 2 or inf here.")
    _check_epsilons(settings.epsilons, settings.largest)
    for name in ("lanczos_steps", "batch_size", "part_size", "top_k"):
        if getattr(settings, name) < 1:
            raise ValueError(
                f"{name} is {getattr(settings, name)}; it must be at least 1."
            )
    if settings.halvings < 0:
        raise ValueError(f"halvings is {settings.halvings}; it must be at least 0.")
    if not settings.attacks:
        raise ValueError("attack is not given; at least one is needed.")
    for spec in settings.attacks:
        attack_specs.factory(spec, settings.p)(np.ones(1, np.float32))


def _check_epsilons(epsilons: Sequence[float], largest: float) -> None:
    rising = all(a < b for a, b in itertools.pairwise(epsilons))
    if not epsilons or not rising or not 0 < epsilons[0]:
        raise ValueError(
            f"epsilons is {list(epsilons)}; it must be positive numbers that rise."
        )
    if not epsilons[-1] <= largest < math.inf:
        raise ValueError(
            f"largest_budget is {largest}; it must be finite, and at least the "
            f"largest of the epsilons, {epsilons[-1]}."
        )


def find_nearest(
    f: linalg.Network,
    pictures: data.Dataset,
    right: np.ndarray,
    settings: Settings,
    parts: cache.Parts,
    identity: str,
    description: str,
) -> cache.Arrays:
    """Attacks the pictures, part by part, and saves each part.

    Args:
      f: ``(B, H, W, C) -> (B, K)`` in inference mode, a callable pytree.
      pictures: A of them.
      right: ``(A,)`` bool, which of them are worth attacking.
      settings: how.
      parts: where finished parts are kept.
      identity: of network and pictures.
      description: of the progress.

    Returns:
      "distance" ``(attacks, A)``, 0 where the network is wrong and inf where an attack
      failed, and "seconds" ``(attacks,)``.
    """
    key = {
        "identity": identity,
        "attacks": [str(spec) for spec in settings.attacks],
        **{
            name: getattr(settings, name)
            for name in ("p", "epsilons", "largest", "halvings", "top_k")
        },
        "seed": settings.seed,
    }

    def measure(first: int, last: int, _: object) -> cache.Arrays:
        part = pictures.slice(first, last)
        return _nearest(f, part, right[first:last], first, settings)

    found = cache.in_parts(
        parts,
        key,
        measure,
        count=len(pictures),
        part_size=settings.part_size,
        description=description,
        unit="image",
    )
    return {
        "distance": np.concatenate([part["distance"] for part in found], axis=1),
        "seconds": np.sum([part["seconds"] for part in found], axis=0),
    }


def _nearest(
    f: linalg.Network,
    pictures: data.Dataset,
    right: np.ndarray,
    first: int,
    settings: Settings,
) -> cache.Arrays:
    """Runs all attacks on the pictures that are right."""
    best = np.array(data.to_float(pictures.images))
    nearest = np.where(right, np.inf, 0.0).astype(np.float32)
    distances, seconds = [], []
    # Where batches lie: over all devices.
    mesh = training.data_mesh()
    split = training.sharded(mesh)
    f = jax.device_put(f, training.replicated(mesh))
    key = jax.random.key(settings.seed)
    sizes = batches.batch_sizes(settings.batch_size)
    for spec in settings.attacks:
        began = time.monotonic()
        own = np.where(right, np.inf, 0.0).astype(np.float32)
        budget = attack_specs.has_budget(spec)
        for rows, epsilon in _bisection(own, settings) if budget else _once(own):
            for batch, filled in batches.fill(rows, sizes):
                given = (
                    pictures.images[filled],
                    pictures.labels[filled],
                    filled + first,
                    best[filled],
                    epsilon[filled],
                )
                found = _attack(
                    f,
                    *jax.device_put(given, split),
                    key,
                    spec=spec,
                    p=settings.p,
                    top_k=settings.top_k,
                )
                points, reached = (np.asarray(part)[: len(batch)] for part in found)
                own[batch] = np.minimum(own[batch], reached)
                wins = reached < nearest[batch]
                best[batch[wins]], nearest[batch[wins]] = points[wins], reached[wins]
        distances.append(own)
        seconds.append(time.monotonic() - began)
    return {"distance": np.stack(distances), "seconds": np.array(seconds)}


def _once(own: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield np.flatnonzero(own > 0), np.zeros(len(own), np.float32)


def _bisection(
    own: np.ndarray, settings: Settings
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to attack next, and budgets, while whoever runs them lowers ``own``."""
    budgets = list(settings.epsilons)
    while budgets[-1] < settings.largest:
        budgets.append(min(2 * budgets[-1], settings.largest))
    right, failed = own > 0, np.zeros(len(own), np.float32)
    for budget in budgets:
        rows = np.flatnonzero(right & np.isinf(own))
        yield rows, np.full(len(own), budget, np.float32)
        failed = np.where(np.isinf(own), np.float32(budget), failed)
    rows = np.flatnonzero(right & np.isfinite(own))
    for _ in range(settings.halvings):
        before = own.copy()
        # A larger budget may find a nearer point than a smaller one that failed.
        low = np.where(failed < own, failed, 0)
        middle = np.where(np.isfinite(own), (low + own) / 2, 0)
        yield rows, middle
        failed = np.where(own == before, middle, low)


@functools.partial(jax.jit, static_argnames=("spec", "p", "top_k"))
def _attack(
    f: linalg.Network,
    images: jax.Array,
    labels: jax.Array,
    number: jax.Array,
    start: jax.Array,
    epsilon: jax.Array,
    key: jax.Array,
    *,
    spec: attack_specs.AttackSpec,
    p: float,
    top_k: int,
) -> tuple[jax.Array, jax.Array]:
    """One attack of a batch: its points, and how far they are, inf where it failed."""
    attack = attack_specs.factory(spec, p)(epsilon)
    f, wanted = _decision(f, labels, top_k)
    keys = fold_in(key, number)
    options = {}
    # An attack with a budget looks for points of its own.
    if not attack_specs.has_budget(spec) and any(s.takes_start for s in attack.stages):
        options["start"] = start
    found = attack.run(f, inputs.to_pixels(images), wanted, keys, **options)
    return found.x_adv, jnp.where(found.success, found.distance, jnp.inf)


@functools.partial(jax.jit, static_argnames="top_k")
def decide(
    f: linalg.Network, images: jax.Array, labels: jax.Array, *, top_k: int
) -> jax.Array:
    """Whether labels are among the top k, ``(B,)`` bool."""
    f, wanted = _decision(f, labels, top_k)
    return jnp.argmax(f(inputs.to_pixels(images)), axis=1) == wanted


def _decision(
    f: linalg.Network, labels: jax.Array, top_k: int
) -> tuple[linalg.Network, jax.Array]:
    """A batch function whose decision is right where the label is among the top k."""
    if top_k == 1:
        return f, labels
    return (
        lambda x: analysis.label_and_rival(f(x), labels, k=top_k),
        jnp.zeros_like(labels),
    )
