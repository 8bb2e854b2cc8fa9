"""Images, labels and budgets as measurements take them, and their checks."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import attacks, linalg
from opnorm.attacks import checks
from opnorm.attacks.attack import Attack

AttackFactory = Callable[[Any], attacks.Attack]


def check_examples(images: np.ndarray, labels: np.ndarray, batch_size: int) -> None:
    """Raises ValueError for examples or a batch size that cannot be used."""
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

    uint8 images are compared after the division by 255, and refused where they were
    divided by it before they became bytes.

    Returns:
      The images. Values that rounding has put outside a box are clipped: an attack
      would do so, and a budget has no room for it.
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
        checks.check_inside(np.array([low, high]), box, "images")
        if images.dtype != np.uint8 and (low < box[0] or high > box[1]):
            images = np.clip(images, *box)
    return images


def pixel_range(images: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest value, of uint8 images after the division by 255."""
    low, high = to_pixels(np.array([images.min(), images.max()]))
    return float(low), float(high)


def read_budgets(
    name: str, epsilons: Sequence[float] | None, pattern: Attack
) -> np.ndarray:
    """Returns the budgets as ``(E,)`` float32; infinity where any distance counts.

    Args:
      name: what errors call the argument.
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


def make_pattern(attack: AttackFactory) -> Attack:
    """The attack that a factory makes, for what does not depend on the budget.

    Raises:
      ValueError: for an attack in place of a factory.
    """
    if isinstance(attack, Attack):
        raise ValueError(
            f"attack is the attack {attack.name}; it must be a function of epsilon "
            "that returns one."
        )
    return attack(jnp.zeros(1))


def check_labels(
    f: linalg.Network, images: np.ndarray, labels: np.ndarray, size: int
) -> None:
    """Raises ValueError unless the labels are classes of the network.

    A prepared network is traced, on a batch of ``size`` examples, at most once for each
    structure and shape.
    """
    x = jax.ShapeDtypeStruct((size, *images.shape[1:]), images.dtype)
    logits = evaluate.eval_shape(f, x)
    checks.check_labels(np.asarray(labels), len(images), logits)


@linalg.network_program
def evaluate(f: linalg.Network, x: jax.Array) -> Any:
    """The outputs of a network for images."""
    return f(to_pixels(x))


def to_pixels(x: Any) -> Any:
    """Returns uint8 images as float32 in [0, 1], others as they are."""
    return x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x
