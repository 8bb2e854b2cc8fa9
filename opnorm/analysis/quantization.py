"""Rounds adversarial images to the values of image files, within the budget."""

import math
from typing import NamedTuple

import numpy as np

from opnorm import linalg
from opnorm.analysis import accuracy, inputs

# Factors of the perturbation that are tried in turn. Rounding may carry an image back
# across the boundary, and a longer perturbation leads further behind it. The nearest
# points of an attack without a budget may be closer than half a step in every entry.
_FACTORS = (1.0, 1.05, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)
# Halvings in the search for the longest rounded perturbation within the budget.
_HALVINGS = 12
# A budget such as 8/255 may have been rounded to float32.
_ROUNDING = 1e-6


class Quantized(NamedTuple):
    """Rounded images.

    Attributes:
      x_adv: ``(N, ...)`` float32, multiples of ``1 / levels`` in [0, 1].
      kept: ``(N,)`` bool: the network is wrong at ``x_adv``, which lies within the
        budget. Where it is False, ``x_adv`` is the clean image, rounded.
      distance: ``(N,)`` float64, Lp distance of ``x_adv`` from the image.
    """

    x_adv: np.ndarray
    kept: np.ndarray
    distance: np.ndarray


def quantize(
    f: linalg.Network,
    images: np.ndarray,
    x_adv: np.ndarray,
    labels: np.ndarray,
    *,
    p: float,
    epsilon: float | None,
    levels: int = 255,
    batch_size: int = 100,
) -> Quantized:
    """Rounds adversarial images so that they stay adversarial and within the budget.

    A perturbation is rounded to the nearest values within the budget: for p = inf each
    entry is confined to the values that the budget reaches; for other norms the
    perturbation is shortened until the rounded one fits. Where the network is then
    right, the perturbation is lengthened step by step and rounded again. ``kept`` says
    for each example whether a rounded image was found.

    Args:
      f: ``(B, ...) -> (B, K)``, in inference mode; best a callable pytree, see
        :mod:`opnorm.analysis`.
      images: ``(N, ...)``, uint8 or float in [0, 1], the clean images. The budget may
        be out of reach for images that are not multiples of ``1 / levels``.
      x_adv: ``(N, ...)`` float in [0, 1], attacked images.
      labels: ``(N,)`` int, the true classes.
      p: exponent of the norm of the budget, in [1, inf].
      epsilon: budget in [0, 1] pixel units; None for no budget.
      levels: number of steps from 0 to 1; 255 for images of 8 bits.
      batch_size: images in a compiled call.

    Raises:
      ValueError: for arrays that do not fit each other, values outside [0, 1], or p,
        epsilon, levels or a batch size out of range.

    Example:
      The nearest value to 0.4 + 0.05 in steps of 0.1 is at a distance of 0.1, outside
      of the budget of the first image. It is within the budget of the second one.

      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import analysis
      >>> def f(x):
      ...     return jnp.concatenate([0.43 - x, x - 0.43], axis=1)
      >>> images, labels = np.float32([[0.4]]), np.zeros(1, int)
      >>> for epsilon in (0.08, 0.12):
      ...     found = analysis.quantize(
      ...         f, images, images + 0.05, labels, p=2, epsilon=epsilon, levels=10
      ...     )
      ...     print(found.kept, found.x_adv)
      [False] [[0.4]]
      [ True] [[0.5]]
    """
    p = linalg.check_exponent("p", p)
    levels = linalg.check_count("levels", levels, 1)
    if epsilon is not None:
        linalg.check_length("epsilon", epsilon)
    inputs.check_examples(images, labels, batch_size)
    _check(images, x_adv)
    f = linalg.prepare_network(f)
    inputs.check_labels(f, images, labels, min(batch_size, len(images)))
    clean = _wide(images)
    delta = _wide(x_adv) - clean
    flat = (len(images), -1)
    best = np.round(levels * clean)
    kept = np.zeros(len(images), bool)
    limit = math.inf if epsilon is None else float(epsilon) * (1 + _ROUNDING)
    moved = np.any(delta.reshape(flat) != 0, axis=1)
    for factor in _FACTORS:
        # An image that is not perturbed has nothing to lengthen.
        left = np.flatnonzero(~kept & (moved | (factor == 1)))
        if not len(left):
            break
        rounded, fits = _round(
            clean[left].reshape(len(left), -1),
            factor * delta[left].reshape(len(left), -1),
            p,
            limit,
            levels,
        )
        shaped = rounded.reshape(len(left), *images.shape[1:])
        points = (shaped / levels).astype(np.float32)
        right = _correct(f, points, labels[left], batch_size, len(images))
        won = fits & ~right
        best[left[won]] = shaped[won]
        kept[left[won]] = True
    distance = np.linalg.norm((best / levels - clean).reshape(flat), p, axis=1)
    return Quantized((best / levels).astype(np.float32), kept, distance)


def _check(images: np.ndarray, x_adv: np.ndarray) -> None:
    if x_adv.shape != images.shape or x_adv.dtype.kind != "f":
        raise ValueError(
            f"x_adv has shape {x_adv.shape} and dtype {x_adv.dtype}; it must be float "
            f"of the shape of images, {images.shape}."
        )
    for name, array in (("images", images), ("x_adv", x_adv)):
        low, high = inputs.pixel_range(array)
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"{name} has values from {low:g} to {high:g}; they must be in [0, 1]."
            )


def _wide(images: np.ndarray) -> np.ndarray:
    """Returns pixels in [0, 1] as float64, so that steps of 8 bits are exact."""
    return images / 255.0 if images.dtype == np.uint8 else images.astype(np.float64)


def _round(
    clean: np.ndarray, delta: np.ndarray, p: float, limit: float, levels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rounds ``clean + delta``, all ``(n, size)``, to steps within a budget.

    Returns:
      Steps from 0 to ``levels``, and whether each row keeps the budget.
    """

    def steps(factor: np.ndarray) -> np.ndarray:
        point = clean + factor[:, None] * delta
        found = np.clip(np.round(levels * point), 0, levels)
        if p == math.inf and limit < 1:
            low = np.ceil(levels * (clean - limit))
            high = np.floor(levels * (clean + limit))
            found = np.clip(found, np.maximum(low, 0), np.minimum(high, levels))
        whole: np.ndarray = found
        return whole

    def fits(found: np.ndarray) -> np.ndarray:
        length = np.linalg.norm(found / levels - clean, p, axis=1)
        return np.asarray(length <= limit)

    low, high = np.zeros(len(clean)), np.ones(len(clean))
    best = steps(high)
    good = fits(best)
    # The rows that do not fit are shortened; the others stay at their full length.
    low[good] = 1.0
    for _ in range(0 if good.all() else _HALVINGS):
        middle = (low + high) / 2
        found = steps(middle)
        short = fits(found)
        best[short] = found[short]
        good |= short
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return best, good


def _correct(
    f: linalg.Network,
    points: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    count: int,
) -> np.ndarray:
    """Returns whether the network is right at each point.

    Few points are filled up to a whole batch, so that one program serves all calls.
    """
    rows = np.resize(np.arange(len(points)), max(len(points), min(batch_size, count)))
    found = accuracy.evaluate_accuracy(
        f, points[rows], labels[rows], batch_size=batch_size
    )
    return found.correct[: len(points)]
