"""Sets of adversarial images: made, rounded to 8 bits, and checked."""

import math
from typing import NamedTuple

import jax
import numpy as np

from opnorm import analysis, linalg

ROWS = ("labels", "adversarial", "lost", "number")
# A budget such as 8/255 may have been rounded to float32.
_ROUNDING = 1e-6


class ExampleSet(NamedTuple):
    """N images with their attacked versions.

    Attributes:
      images: ``(N, ...)``, the clean images: uint8, or float32 in [0, 1].
      x_adv: the attacked images, shape and dtype of ``images``; the clean image where
        the attack failed.
      labels: ``(N,)`` int32, the true classes.
      adversarial: ``(N,)`` bool: the attacked network is wrong at ``x_adv``.
      lost: ``(N,)`` bool: an adversarial point was found, and no rounded image within
        the budget is adversarial. False everywhere unless the set was quantized.
      number: ``(N,)`` int32, number of each image among those that were attacked.
      p: exponent of the norm, in [1, inf].
      epsilon: budget in [0, 1] pixel units; inf for an attack without a budget.
      attack: name of the attack, with its options.
      data: name of the data.
    """

    images: np.ndarray
    x_adv: np.ndarray
    labels: np.ndarray
    adversarial: np.ndarray
    lost: np.ndarray
    number: np.ndarray
    p: float
    epsilon: float
    attack: str = ""
    data: str = ""


def adversarial_examples(
    f: linalg.Network,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    attack: analysis.AttackFactory,
    epsilon: float | None,
    quantize: int | None = None,
    data: str = "",
    batch_size: int = 100,
    key: jax.Array,
) -> ExampleSet:
    """Attacks every example and returns the attacked images as a set.

    Args:
      f: ``(B, ...) -> (B, K)``, in inference mode; best a callable pytree, see
        :mod:`opnorm.analysis`.
      images: ``(N, ...)``, uint8 or float in [0, 1].
      labels: ``(N,)`` int, the true classes.
      attack: ``epsilon -> attack``, not targeted; see
        :func:`opnorm.analysis.attack_examples`.
      epsilon: budget in [0, 1] pixel units; None for an attack without a budget, whose
        points then count at any distance.
      quantize: steps from 0 to 1 to round the images to, 255 for files of 8 bits; None
        for float32.
      data: name of the data.
      batch_size: rows per compiled call.
      key: typed key of the attack.

    Raises:
      ValueError: for a targeted attack, and for the reasons of
        :func:`opnorm.analysis.attack_examples` and :func:`quantize_examples`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import attacks, reports
      >>> def f(x):
      ...     return jnp.concatenate([x - 0.5, 0.5 - x], axis=1)
      >>> def fgm(epsilon):
      ...     return attacks.fgm(p=2, epsilon=epsilon)
      >>> images, labels = np.uint8([[130], [250], [3]]), np.zeros(3, int)
      >>> found = reports.adversarial_examples(
      ...     f, images, labels, attack=fgm, epsilon=0.1, quantize=255,
      ...     key=jax.random.key(0)
      ... )
      >>> found.x_adv.ravel(), found.adversarial
      (array([105, 250,   3], dtype=uint8), array([ True, False,  True]))
    """
    pattern = attack(jax.numpy.zeros(1)) if callable(attack) else attack
    if pattern.stages[0].targeted:
        raise ValueError("attack is targeted; its labels would be classes to reach.")
    found = analysis.attack_examples(
        f,
        images,
        labels,
        attack=attack,
        epsilons=None if epsilon is None else [epsilon],
        batch_size=batch_size,
        key=key,
        keep_points=True,
    )
    assert found.x_adv is not None
    examples = ExampleSet(
        images=images if images.dtype == np.uint8 else images.astype(np.float32),
        x_adv=found.x_adv[0],
        labels=np.asarray(labels, np.int32),
        adversarial=found.success[0],
        lost=np.zeros(len(images), bool),
        number=np.arange(len(images), dtype=np.int32),
        p=pattern.p,
        epsilon=math.inf if epsilon is None else float(epsilon),
        attack=pattern.name,
        data=data,
    )
    if quantize is None:
        return _as_float(examples)
    return quantize_examples(f, examples, levels=quantize, batch_size=batch_size)


def _as_float(examples: ExampleSet) -> ExampleSet:
    """Returns a set whose clean images are float32 in [0, 1], as its attacked ones."""
    images = np.asarray(analysis.to_pixels(examples.images), np.float32)
    return examples._replace(images=images)


def quantize_examples(
    f: linalg.Network,
    examples: ExampleSet,
    *,
    levels: int = 255,
    batch_size: int = 100,
) -> ExampleSet:
    """Rounds a set so that its images stay adversarial and within the budget.

    Args:
      f: the attacked network.
      examples: a set whose attacked images are float32. Its clean images are best
        uint8.
      levels: number of steps from 0 to 1. With 255 the images of the result are uint8.
      batch_size: images in a compiled call.

    Returns:
      The rounded set. ``lost`` is True where an adversarial point was found and no
      rounded one is adversarial; these rows are the clean image.

    Raises:
      ValueError: for clean images of uint8 and other levels than 255, clean images
        that are not multiples of ``1 / levels``, and for the reasons of
        :func:`opnorm.analysis.quantize`.
    """
    levels = linalg.check_count("levels", levels, 1)
    if examples.images.dtype == np.uint8 and levels != 255:
        raise ValueError(f"levels is {levels}; images of uint8 have 255.")
    steps = _steps(examples.images, levels)
    if steps is None:
        raise ValueError(
            f"images have values that are no multiples of 1/{levels}; rounding the "
            "clean images would change the budget."
        )
    found = analysis.quantize(
        f,
        examples.images,
        examples.x_adv,
        examples.labels,
        p=examples.p,
        epsilon=None if examples.epsilon == math.inf else examples.epsilon,
        levels=levels,
        batch_size=batch_size,
    )
    kept = found.kept & examples.adversarial
    keep = kept.reshape(-1, *[1] * (steps.ndim - 1))
    whole = np.where(keep, np.round(levels * found.x_adv.astype(np.float64)), steps)

    def typed(array: np.ndarray) -> np.ndarray:
        if levels == 255:
            return array.astype(np.uint8)
        return (array / levels).astype(np.float32)

    return examples._replace(
        images=typed(steps),
        x_adv=typed(whole),
        adversarial=kept,
        lost=examples.adversarial & ~kept,
    )


def check(examples: ExampleSet, name: str) -> None:
    """Raises ValueError unless the arrays of a set hold together."""
    images, x_adv = examples.images, examples.x_adv
    count = len(np.atleast_1d(images))
    if images.ndim < 2 or not count or images.dtype not in (np.uint8, np.float32):
        raise ValueError(
            f"{name}: images has shape {images.shape} and dtype {images.dtype}; it "
            "must be (N, ...), N at least 1, uint8 or float32."
        )
    if x_adv.shape != images.shape or x_adv.dtype != images.dtype:
        raise ValueError(
            f"{name}: x_adv has shape {x_adv.shape} and dtype {x_adv.dtype}; it must "
            f"be {images.dtype} of shape {images.shape}, as images."
        )
    for field in ROWS:
        array = getattr(examples, field)
        kinds = "b" if field in ("adversarial", "lost") else "iu"
        if array.shape != (count,) or array.dtype.kind not in kinds:
            raise ValueError(
                f"{name}: {field} has shape {array.shape} and dtype {array.dtype}; it "
                f"must be ({count},) and {'bool' if kinds == 'b' else 'integer'}."
            )
        if kinds == "iu" and (array.min() < 0 or array.max() >= 2**31):
            raise ValueError(f"{name}: {field} has values outside [0, 2^31).")
    linalg.check_exponent(f"{name}: p", examples.p)
    if not examples.epsilon >= 0:
        raise ValueError(f"{name}: epsilon is {examples.epsilon}; it must be >= 0.")
    _check_values(examples, name)


def _check_values(examples: ExampleSet, name: str) -> None:
    """Raises ValueError for pixels outside [0, 1], or images outside the budget."""
    beyond = 0
    # A few images at a time, since float64 takes eight times the memory of uint8.
    for first in range(0, len(examples.labels), 100):
        pair = [
            _wide(each[first : first + 100])
            for each in (examples.images, examples.x_adv)
        ]
        for field, pixels in zip(("images", "x_adv"), pair, strict=True):
            if not (pixels.min() >= 0 and pixels.max() <= 1):
                raise ValueError(
                    f"{name}: {field} has values from {pixels.min():g} to "
                    f"{pixels.max():g}; they must be in [0, 1]."
                )
        difference = (pair[1] - pair[0]).reshape(len(pair[0]), -1)
        length = np.linalg.norm(difference, examples.p, axis=1)
        beyond += int(np.sum(length > _limit(examples, pair[0])))
    if beyond:
        raise ValueError(
            f"{name}: {beyond} of {len(examples.labels)} attacked images are further "
            f"than epsilon = {examples.epsilon:g} from the clean ones."
        )


def _wide(images: np.ndarray) -> np.ndarray:
    """Returns pixels in [0, 1] as float64, so that steps of 8 bits are exact."""
    return images / 255.0 if images.dtype == np.uint8 else images.astype(np.float64)


def _limit(examples: ExampleSet, clean: np.ndarray) -> np.ndarray:
    """The budget of each image, with an allowance for rounding.

    A float32 entry is rounded at most by half a unit of itself, as in
    :func:`opnorm.attacks.parts.within_budget`. Images of 8 bits are exact.
    """
    rows = clean.reshape(len(clean), -1)
    limit = examples.epsilon * (1 + _ROUNDING) * np.ones(len(rows))
    if examples.images.dtype == np.uint8 or examples.epsilon == math.inf:
        return limit
    unit = linalg.machine_epsilon(np.float32)
    size = np.linalg.norm(rows, examples.p, axis=1)
    widened: np.ndarray = limit + unit * (2 * size + math.sqrt(rows.shape[1]) * limit)
    return widened


def _steps(images: np.ndarray, levels: int) -> np.ndarray | None:
    """Returns images as multiples of ``1 / levels``; None if they are none."""
    if images.dtype == np.uint8:
        return images.astype(np.float64)
    scaled = levels * images.astype(np.float64)
    steps = np.round(scaled)
    return steps if np.all(np.abs(scaled - steps) <= 1e-6 * levels) else None
