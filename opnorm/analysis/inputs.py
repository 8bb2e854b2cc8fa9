"""Checks and conversions of the images, labels and budgets of measurements."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import attacks, linalg
from opnorm.attacks import checks, criteria, parts, randomness

# An attack as a function of its budgets, (B,).
AttackFactory = Callable[[jax.Array], attacks.Attack]

Array = TypeVar("Array", jax.Array, np.ndarray)

_array_shape: Callable[..., jax.ShapeDtypeStruct] = jax.ShapeDtypeStruct


def check_examples(images: np.ndarray, labels: np.ndarray, batch_size: int) -> None:
    """Raises ValueError for examples or a batch size that cannot be used."""
    linalg.check_array("images", images)
    linalg.check_array("labels", labels)
    if len(images) == 0 or len(labels) != len(images):
        raise ValueError(
            f"images and labels have {[len(images), len(labels)]} examples; they must "
            "have the same number, at least 1."
        )
    pixels = images.dtype
    if pixels != np.uint8 and not jnp.issubdtype(pixels, jnp.floating):
        raise ValueError(f"images has dtype {pixels}; it must be uint8 or float.")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")


def check_bounds(images: np.ndarray, *boxes: checks.Bounds) -> np.ndarray:
    """Raises ValueError unless uint8 or float images lie in each of the boxes.

    uint8 images are compared after the division by 255. They are refused if they seem
    to be divided by 255 already.

    Returns:
      The images. Values that rounding has put outside a box are clipped, since an
      attack would clip them and so leave a part of the budget unused.
    """
    if images.dtype == np.uint8 and images.max() == 1:
        raise ValueError(
            "images is uint8 and has no value above 1; uint8 images are divided by "
            "255, so give values from 0 to 1 as floats."
        )
    given = [box for box in boxes if box is not None]
    if not given:
        return images
    low, high = pixel_range(images)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("images has values that are not finite.")
    for box in given:
        values = np.array([low, high])
        if checks.has_arrays(box):
            checks.check_shapes(box, images.shape[1:])
            values = to_pixels(np.stack([images.min(axis=0), images.max(axis=0)]))
        inside = checks.check_inside(values, box, "images")
        if images.dtype != np.uint8 and not inside:
            images = np.clip(images, *(np.asarray(end, images.dtype) for end in box))
    return images


def pixel_range(images: np.ndarray) -> tuple[float, float]:
    """Returns the smallest and the largest value, for uint8 after dividing by 255."""
    low, high = to_pixels(np.array([images.min(), images.max()]))
    return float(low), float(high)


def read_budgets(
    name: str, epsilons: Sequence[float] | None, pattern: attacks.Attack
) -> np.ndarray:
    """Returns the budgets as ``(E,)`` float32; infinity where any distance counts.

    Args:
      name: name of the argument in errors.
      epsilons: E budgets, or None.
      pattern: an attack that :func:`make_pattern` has made.

    Raises:
      ValueError: for a bad budget, or None for an attack that has one.
    """
    if epsilons is None:
        if pattern.budget:
            raise ValueError(
                f"{name} is None; {pattern.name} has a budget, which must be given."
            )
        return np.array([np.inf], np.float32)
    budgets = np.asarray(epsilons, np.float32)
    linalg.check_length(name, budgets)
    if budgets.ndim != 1 or not len(budgets):
        raise ValueError(f"{name} is {epsilons}; it must be a list, not empty.")
    return budgets


def make_pattern(
    attack: AttackFactory, *, takes_randomized: bool = False
) -> attacks.Attack:
    """Returns an attack of a factory, for properties that no budget changes.

    Args:
      attack: the factory.
      takes_randomized: whether the measurement knows randomised networks.

    Raises:
      ValueError: for an attack in place of a factory, and a randomised attack that the
        measurement does not take.
    """
    if isinstance(attack, attacks.Attack):
        raise ValueError(
            f"attack is the attack {attack.name}; it must be a function of epsilon "
            "that returns one."
        )
    # Positive, since a factory may derive lengths such as a step size from it.
    pattern = attack(jnp.ones(1))
    if pattern.draws is not None and not takes_randomized:
        raise ValueError(
            f"attack is {pattern.name}, randomised; only robust_accuracy and "
            "attack_examples take attacks on randomised networks."
        )
    return pattern


def check_labels(
    f: linalg.Network,
    images: np.ndarray,
    labels: np.ndarray,
    size: int,
    *,
    key: jax.Array | None = None,
) -> int:
    """Raises ValueError unless the labels are classes of the network.

    A prepared network is traced, on a batch of ``size`` examples, at most once for each
    structure and shape.

    Args:
      f: the network.
      images: ``(N, ...)``.
      labels: ``(N,)``.
      size: examples of the batch.
      key: typed key, for a randomised network ``f(x, keys)``; None for ``f(x)``.

    Returns:
      K, number of classes of the network.
    """
    dtype = jax.dtypes.canonicalize_dtype(images.dtype)
    x = _array_shape((size, *images.shape[1:]), dtype)
    logits = evaluate.eval_shape(f, x) if key is None else keyed_shapes(f, x, key)
    checks.check_labels(np.asarray(labels), len(images), logits)
    classes: int = logits.shape[1]
    return classes


def keyed_shapes(
    f: linalg.Network, images: linalg.ArrayShape | np.ndarray, key: jax.Array
) -> linalg.PyTree:
    """Returns the shapes and dtypes of the outputs of a randomised network.

    Args:
      f: the network ``f(x, keys)``.
      images: ``(b, ...)``, uint8 or float; an array or its shape and dtype.
      key: typed key.

    Raises:
      ValueError: if the network does not take keys.
    """
    linalg.check_key(key)
    keys = jax.eval_shape(lambda key: jax.random.split(key, images.shape[0]), key)
    return randomness.output_shapes(f, jax.eval_shape(to_pixels, images), keys)


def check_attack(
    pattern: attacks.Attack,
    images: np.ndarray,
    labels: np.ndarray,
    key: jax.Array,
) -> np.ndarray:
    """Raises ValueError for a key or images that an attack refuses.

    Args:
      pattern: an attack that :func:`make_pattern` has made.
      images: ``(N, ...)``, uint8 or float.
      labels: ``(N,)`` int, or ``(N, ...)`` for an attack with a criterion.
      key: typed key.

    Returns:
      The images, see :func:`check_bounds`.
    """
    linalg.check_key(key)
    images = check_bounds(images, *(stage.bounds for stage in pattern.stages))
    if pattern.scale is not None:
        scale = (pattern.scale, pattern.scale)
        checks.check_shapes(scale, images.shape[1:], "scale")
    example = attacks.Problem(
        jnp.asarray(images[:1]), jnp.asarray(labels[:1]), key, None
    )
    for stage in pattern.stages:
        if stage.check is not None:
            stage.check(example)
    return images


def check_index(index: np.ndarray | None, count: int) -> np.ndarray:
    """Returns the numbers of ``count`` examples in their data set, ``(count,)`` int32.

    Args:
      index: the numbers; None for 0, ..., count - 1.
      count: number of examples.

    Raises:
      ValueError: for another shape.
    """
    index = np.arange(count) if index is None else np.asarray(index)
    if index.shape != (count,):
        raise ValueError(f"index has shape {index.shape}; it must be ({count},).")
    return np.asarray(index, np.int32)


@linalg.network_program
def evaluate(f: linalg.Network, x: jax.Array) -> jax.Array:
    """Returns the outputs of a network for images."""
    outputs: jax.Array = f(to_pixels(x))
    return outputs


@linalg.network_program
def decided_at(
    f: linalg.Network,
    x: jax.Array,
    labels: jax.Array,
    *,
    goal: tuple[bool, float],
    criterion: attacks.Criterion | None,
) -> jax.Array:
    """Returns whether the network decides at x as an attack wants, ``(b,)`` bool.

    Args:
      f: the network.
      x: ``(b, ...)``, uint8 or float.
      labels: ``(b,)`` int, or ``(b, ...)`` with a criterion.
      goal: of the stages of the attack, see :attr:`opnorm.attacks.Stage.goal`.
      criterion: of the attack, or None.
    """
    pixels = to_pixels(x)
    f, labels = criteria.pose(criterion, f, pixels, labels, goal[0])
    return parts.decided(f(pixels), labels, *goal)


def to_pixels(x: Array) -> Array:
    """Returns uint8 images as float32 in [0, 1], others as they are."""
    return x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x
