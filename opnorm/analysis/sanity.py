"""Signs that an evaluation of robustness may be too good to be true."""

import functools
import math
from collections.abc import Callable
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

# Differences of paired examples below this many standard errors are chance.
_ERRORS = 2.0
# Relative differences of logits between two evaluations of the same images.
_SAME = 1e-4
# The part of the box that images must fill. Bytes divided by 255 twice fill 1 / 255.
_FILLED = 1 / 64
# Without a box, larger values than these are bytes, not standardised images.
_LARGEST = 16.0
# AutoAttack's allowance for what Square may gain over gradients.
_GAIN = 0.002


class Check(NamedTuple):
    """One sanity check.

    Attributes:
      name: what should hold.
      passed: whether it does.
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

    Images fill the box, and the budget is smaller than the one that turns every image
    grey; gradients are finite and not zero; evaluating twice gives the same logits,
    whatever rows share the batch, and they are logits and not probabilities; PGA (APGD
    for p = 1) beats one step, random points of the ball and, for p = 1, 2 and inf, the
    Square Attack; twice the steps do no worse; and with the budget that turns every
    image grey no example stands. Comparisons are paired by example, and fail beyond two
    standard errors.

    Args:
      f: ``(B, ...) -> (B, K)``, in inference mode; best a callable pytree, see
        :mod:`opnorm.analysis`.
      images: ``(N, ...)``, uint8 or float, in the bounds; a hundred examples tell
        enough. uint8 images are divided by 255.
      labels: ``(N,)`` int.
      p: exponent of the norm, in [1, inf].
      epsilon: budget in the units of the bounds.
      num_steps: steps of the iterative attack.
      num_queries: queries of Square, and half as many random points.
      channels: where images have their channels, as for :func:`attacks.square`.
      batch_size: rows per compiled call.
      key: typed key.
      index: ``(N,)`` int, numbers of the examples in the data set; None for 0, ...
      bounds: box (low, high) of all attacks, or None. Where it is not finite, the range
        of the images takes its place in the checks of units.

    Returns:
      The checks; those that did not pass are warnings, not proofs.

    Raises:
      ValueError: as :func:`attack_examples`, for bounds that are no box, and for images
        whose channels are plainly elsewhere.

    Source: Carlini et al. 2019, "On evaluating adversarial robustness"; Croce & Hein
    2020 for the flags of AutoAttack. Its flag for defences that optimise at inference
    has no counterpart: whether a compiled function does so cannot be told.
    """
    p = linalg.check_exponent("p", p)
    linalg.check_length("epsilon", epsilon)
    check_examples(images, labels, batch_size)
    checks.check_bounds(bounds)
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

    def stands(name: str, budget: float, **options: Any) -> np.ndarray:
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
        return ~attacked.success[0]

    # In L1 sparse steps on many entries reach farther than those along the steepest.
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
    """AutoAttack's flag: Square should not gain on what gradients have left.

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
      shape: of one image.
      bounds: finite box (low, high) that images lie in.
    """
    grey = _grey(p, shape, bounds)
    small = epsilon < grey
    detail = f"epsilon {epsilon:g}; {grey:.3g} turns every image grey"
    if not small and 1 <= epsilon < 255 * grey:
        detail += f"; is {epsilon:g}/255 meant?"
    return Check("the budget is smaller than the box", small, detail)


def _grey(p: float, shape: tuple[int, ...], bounds: tuple[float, float]) -> float:
    """The budget within which every image has the middle of the box."""
    return 0.5 * (bounds[1] - bounds[0]) * math.prod(shape) ** (1 / p)


def _units_check(low: float, high: float, box: Bounds) -> Check:
    """Images from ``low`` to ``high`` are in the units of the box, or of no box."""
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
        logits, zero, finite = _probe(f, images[rows], labels[rows])
        # A second program, so that nothing is shared but the network.
        batch = (logits, evaluate(f, images[rows]), zero, finite)
        kept = min(batch_size, len(images) - start)
        parts.append(jax.tree.map(lambda a, n=kept: np.asarray(a)[:n], batch))
    logits, again, zero, finite = map(np.concatenate, zip(*parts, strict=True))
    apart = _difference(logits, again)
    moved = 0.0
    for rows in _other_batches(min(len(images), batch_size), batch_size):
        other = np.asarray(evaluate(f, images[rows]))
        moved = max(moved, _difference(again[rows], other))
    independent = moved <= _SAME
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
            bool(apart <= _SAME),
            f"two evaluations differ by {apart:.1e} of the logits' length",
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
    """The first rows in reverse, and each half of them filled up with its own rows.

    These batches have the size of the others, so that nothing new is compiled.
    """
    rows = np.arange(count)
    parts = (rows[::-1], rows[: (count + 1) // 2], rows[count // 2 :])
    return [np.resize(part, size) for part in parts]


def _difference(logits: np.ndarray, again: np.ndarray) -> float:
    """The largest relative difference of two evaluations of the same rows.

    Logits that are the same infinity or NaN twice, such as those of masked classes, do
    not differ; those that are so once differ infinitely.
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
    """The strong attack leaves no more examples standing than the weak one."""
    extra = strong.astype(float) - weak.astype(float)
    # A single example on which the weak attack wins tells enough.
    error = np.nan_to_num(average(extra).standard_error)
    return Check(
        name,
        bool(extra.mean() <= _ERRORS * error),
        f"accuracy {strong.mean():.1%} against {weak.mean():.1%}",
    )


@functools.lru_cache(maxsize=64)
def _factory(
    name: str, p: float, bounds: Bounds, options: tuple[tuple[str, Any], ...]
) -> Callable[[Any], attacks.Attack]:
    """One object for each attack, so that it is compiled once."""
    return lambda epsilon: attacks.make(
        name, p=p, epsilon=epsilon, bounds=bounds, **dict(options)
    )


@linalg.network_program
def _probe(f: linalg.Network, x: jax.Array, labels: jax.Array) -> Any:
    x = inputs.to_pixels(x)

    def total(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = f(z)
        return jnp.sum(attacks.cross_entropy(logits, labels)), logits

    gradient, logits = jax.grad(total, has_aux=True)(x)
    flat = gradient.reshape(len(x), -1)
    zero = jnp.all(flat == 0, axis=1)
    return logits, zero, jnp.all(jnp.isfinite(flat), axis=1)
