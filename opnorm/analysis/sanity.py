"""Signs that an evaluation of robustness may be too good to be true."""

import functools
import math
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import attacks, linalg
from opnorm.analysis import inputs
from opnorm.analysis.averages import average
from opnorm.analysis.inputs import (
    check_bounds,
    check_examples,
    check_labels,
    evaluate,
    pixel_range,
)
from opnorm.analysis.robustness import attack_examples
from opnorm.attacks import checks
from opnorm.attacks.checks import Bounds
from opnorm.attacks.square import check_layout

# Differences of paired examples up to this many standard errors count as chance.
_ERRORS = 2.0
# Largest relative difference of logits between two evaluations of the same images.
_SAME = 1e-4
# Fraction of the box that images must fill. Bytes divided by 255 twice fill 1 / 255.
_FILLED = 1 / 64
# Without a box, larger values than this are bytes, not standardised images.
_LARGEST = 16.0
# AutoAttack's allowance for the gain of Square over attacks with gradients.
_GAIN = 0.002

# A remedy for networks that draw random numbers.
_RANDOMISED = (
    "; if it draws random numbers, write it as f(x, keys) with a key for each example "
    "and attack it with attacks.randomized, or with attacks.auto_attack of the version "
    "'rand'"
)


class Check(NamedTuple):
    """One sanity check.

    Attributes:
      name: the property that should hold.
      passed: whether it holds.
      detail: the numbers.
    """

    name: str
    passed: bool
    detail: str


def sanity_checks(
    f: linalg.Network,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    p: float,
    epsilon: float,
    num_steps: int = 20,
    num_queries: int = 200,
    channels: str = "last",
    batch_size: int = 100,
    key: jax.Array,
    index: np.ndarray | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> list[Check]:
    """Checks a network and a budget for signs that attacks fail for a wrong reason.

    The checks are:

    - images fill the box, and the budget is smaller than the one that turns every image
      grey;
    - gradients are finite and not zero;
    - two evaluations give the same logits, whichever rows share the batch, and they are
      logits and not probabilities;
    - PGA (APGD for p = 1) is better than one step, than random points of the ball and,
      for p = 1, 2 and inf, than the Square Attack;
    - twice the steps do no worse;
    - no example stands with the budget that turns every image grey.

    Comparisons are paired by example, and fail beyond two standard errors.

    Args:
      f: ``(B, ...) -> (B, K)``, in inference mode; best a callable pytree, see
        :mod:`opnorm.analysis`.
      images: ``(N, ...)``, uint8 or float, in the bounds; a hundred examples are
        enough. uint8 images are divided by 255.
      labels: ``(N,)`` int.
      p: exponent of the norm, in [1, inf].
      epsilon: budget in the units of the bounds.
      num_steps: steps of the iterative attack.
      num_queries: queries of Square; there are half as many random points.
      channels: position of the channels, see :func:`opnorm.attacks.square`.
      batch_size: rows per compiled call.
      key: typed key.
      index: ``(N,)`` int, numbers of the examples in the data set; None for 0, ...
      bounds: box (low, high) of all attacks, or None. If it is not finite, the checks
        of units use the range of the images.

    Returns:
      The checks. Those that did not pass are warnings, not proofs.

    Raises:
      ValueError: for the reasons of :func:`attack_examples`, for bounds that are no
        box, and for images whose channels are obviously elsewhere.

    Source: Carlini et al. 2019, "On evaluating adversarial robustness"; Croce & Hein
    2020 for the flags of AutoAttack. Its flag for defences that optimise at inference
    has no counterpart, since a compiled function does not show whether it optimises.
    """
    p = linalg.check_exponent("p", p)
    linalg.check_length("epsilon", epsilon)
    check_examples(images, labels, batch_size)
    if checks.has_arrays(checks.check_bounds(bounds)):
        raise ValueError(
            "bounds has arrays; these checks take one box for all entries."
        )
    check_bounds(images, bounds)
    if p in (1, 2, math.inf):
        check_layout(images.shape, channels)
    f = linalg.prepare_network(f)
    check_labels(f, images, labels, batch_size)
    low, high = pixel_range(images)
    box = (low, high)
    if bounds is not None:
        bounds = (float(bounds[0]), float(bounds[1]))
        box = bounds if all(map(math.isfinite, bounds)) else box
    reach = _grey(p, images.shape[1:], box)
    found = [
        _units_check(low, high, bounds if box == bounds else None),
        budget_check(epsilon, p=p, shape=images.shape[1:], bounds=box),
        *_basic_checks(f, images, labels, batch_size),
    ]

    def stands(name: str, budget: float, **options: Hashable) -> np.ndarray:
        attacked = attack_examples(
            f,
            images,
            labels,
            attack=_factory(name, p, bounds, tuple(sorted(options.items()))),
            epsilons=[budget],
            batch_size=batch_size,
            key=key,
            index=index,
        )
        return np.asarray(~attacked.success[0])

    # In L1, sparse steps on many entries reach farther than steps on the steepest one.
    name = "apgd" if p == 1 else "pga"
    strong = stands(name, epsilon, num_steps=num_steps, keep="success")
    longer = stands(name, epsilon, num_steps=2 * num_steps, keep="success")
    far = stands(name, reach, num_steps=2 * num_steps, keep="success")
    rivals = {
        "iterative attacks beat a single step": stands("fgm", epsilon),
        "gradients beat random points": stands(
            "uniform_noise", epsilon, num_draws=max(num_queries // 2, 2)
        ),
    }
    if p in (1, 2, math.inf):
        rivals["white-box attacks beat a black-box one"] = stands(
            "square", epsilon, num_queries=num_queries, channels=channels
        )
    for name, weak in rivals.items():
        found.append(_no_worse(name, strong, weak))
    found.append(_no_worse("more steps never help the model", longer, strong))
    found.append(
        Check(
            "accuracy reaches 0 as epsilon grows",
            not far.any(),
            f"{far.mean():.1%} stand at epsilon {reach:.3g}, which reaches grey",
        )
    )
    return found


def square_check(before: float, after: float) -> Check:
    """Checks AutoAttack's flag: Square gains nothing after attacks with gradients.

    Args:
      before: accuracy before Square in an ensemble.
      after: accuracy after it.
    """
    return Check(
        "Square gains nothing on gradient attacks",
        before - after <= _GAIN,
        f"accuracy {before:.1%} before Square, {after:.1%} after",
    )


def budget_check(
    epsilon: float,
    *,
    p: float,
    shape: tuple[int, ...],
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Check:
    """Checks that a budget is too small to turn every image grey.

    Args:
      epsilon: budget in the units of the bounds.
      p: exponent of the norm, in [1, inf].
      shape: shape of one image.
      bounds: finite box (low, high) that images lie in.

    Example:
      >>> from opnorm import analysis
      >>> found = analysis.budget_check(8.0, p=float("inf"), shape=(32, 32, 3))
      >>> found.passed, found.detail
      (False, 'epsilon 8; 0.5 turns every image grey; is 8/255 meant?')
    """
    grey = _grey(p, shape, bounds)
    small = epsilon < grey
    detail = f"epsilon {epsilon:g}; {grey:.3g} turns every image grey"
    if not small and 1 <= epsilon < 255 * grey:
        detail += f"; is {epsilon:g}/255 meant?"
    return Check("the budget is smaller than the box", small, detail)


def _grey(p: float, shape: tuple[int, ...], bounds: tuple[float, float]) -> float:
    """Returns the smallest budget that takes every image to the middle of the box."""
    entries: float = math.prod(shape) ** (1 / p)
    return 0.5 * (bounds[1] - bounds[0]) * entries


def _units_check(low: float, high: float, box: tuple[float, float] | None) -> Check:
    """Checks that images from ``low`` to ``high`` are in the units of the box."""
    detail = f"values from {low:g} to {high:g}"
    if box is None:
        good, causes = high <= _LARGEST, "bytes are to be divided by 255"
    else:
        good = high - low >= _FILLED * (box[1] - box[0])
        causes = "they may have been divided by 255 twice, or not be in its units"
        detail += f" in bounds from {box[0]:g} to {box[1]:g}"
    return Check(
        "images fill the bounds", good, detail if good else f"{detail}; {causes}"
    )


def _basic_checks(
    f: linalg.Network,
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
) -> list[Check]:
    parts = []
    for start in range(0, len(images), batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), len(images) - 1)
        found = _probe(f, images[rows], labels[rows])
        # A second program shares nothing with the first but the network.
        batch = (*found, evaluate(f, images[rows]))
        kept = min(batch_size, len(images) - start)
        parts.append([np.asarray(array)[:kept] for array in batch])
    logits, zero, finite, again = map(np.concatenate, zip(*parts, strict=True))
    apart = _difference(logits, again)
    moved = 0.0
    for rows in _other_batches(min(len(images), batch_size), batch_size):
        other = np.asarray(evaluate(f, images[rows]))
        moved = max(moved, _difference(again[rows], other))
    steady, independent = bool(apart <= _SAME), moved <= _SAME
    causes = "" if independent else "; usual causes: BatchNorm in train mode, dropout"
    if len(images) == 1:
        causes += "; a single example cannot tell"
    classes = logits.shape[1]
    probable = (
        np.all((logits > -1e-5) & (logits < 1 + 1e-5))
        and np.max(np.abs(logits.sum(axis=1) - 1)) < 1e-5
    )
    return [
        Check(
            "gradients are finite",
            bool(finite.all()),
            f"{1 - finite.mean():.1%} of the input gradients are not",
        ),
        Check(
            "gradients are not zero",
            not zero.any(),
            f"{zero.mean():.1%} of the input gradients are",
        ),
        Check(
            "the network is deterministic",
            steady,
            f"two evaluations differ by {apart:.1e} of the logits' length"
            + ("" if steady else _RANDOMISED),
        ),
        Check(
            "rows are independent",
            independent,
            f"other rows in the batch change logits by {moved:.1e} of their length"
            + causes,
        ),
        Check(
            "the network returns logits",
            not probable,
            "outputs are probabilities" if probable else "outputs are not normalised",
        ),
        Check(
            "there are classes enough for the DLR losses",
            classes >= 4,
            f"{classes} classes; with 2 or 3 the losses are those of the margin or of "
            "the untargeted ratio",
        ),
    ]


def _other_batches(count: int, size: int) -> list[np.ndarray]:
    """Returns the first rows in reverse, and each half repeated to a whole batch.

    These batches have the size of the others, so nothing new is compiled.
    """
    rows = np.arange(count)
    parts = (rows[::-1], rows[: (count + 1) // 2], rows[count // 2 :])
    return [np.resize(part, size) for part in parts]


def _difference(logits: np.ndarray, again: np.ndarray) -> float:
    """Returns the largest relative difference of two evaluations of the same rows.

    Logits with the same infinity or NaN in both, such as those of masked classes, do
    not differ. Logits that are not finite in one alone differ infinitely.
    """
    same = (logits == again) | (np.isnan(logits) & np.isnan(again))
    finite = np.isfinite(logits) & np.isfinite(again)
    if not np.all(same | finite):
        return math.inf
    apart = np.where(
        same, 0.0, np.where(finite, logits, 0) - np.where(finite, again, 0)
    )
    size = np.linalg.norm(np.where(finite, logits, 0.0), axis=1)
    return float(np.max(np.linalg.norm(apart, axis=1) / np.maximum(size, 1e-10)))


def _no_worse(name: str, strong: np.ndarray, weak: np.ndarray) -> Check:
    """Checks that no more examples stand after the strong attack than the weak one."""
    extra = strong.astype(float) - weak.astype(float)
    # With a single example, one win of the weak attack is enough to fail.
    error = np.nan_to_num(average(extra).standard_error)
    return Check(
        name,
        bool(extra.mean() <= _ERRORS * error),
        f"accuracy {strong.mean():.1%} against {weak.mean():.1%}",
    )


@functools.lru_cache(maxsize=64)
def _factory(
    name: str, p: float, bounds: Bounds, options: tuple[tuple[str, Hashable], ...]
) -> inputs.AttackFactory:
    """Returns one object for each attack, so that the attack is compiled once."""
    given: dict[str, Any] = dict(options)
    return lambda epsilon: attacks.make(
        name, p=p, epsilon=epsilon, bounds=bounds, **given
    )


@linalg.network_program
def _probe(
    f: linalg.Network, x: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x = inputs.to_pixels(x)

    def total(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = f(z)
        return jnp.sum(attacks.cross_entropy(logits, labels)), logits

    gradient, logits = jax.grad(total, has_aux=True)(x)
    flat = gradient.reshape(len(x), -1)
    zero = jnp.all(flat == 0, axis=1)
    return logits, zero, jnp.all(jnp.isfinite(flat), axis=1)
