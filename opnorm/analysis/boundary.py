"""The distance of a set of images to the decision boundary of a network."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from opnorm import attacks as attacks_lib
from opnorm import linalg
from opnorm.analysis import inputs
from opnorm.analysis.batches import in_batches
from opnorm.analysis.inputs import AttackFactory
from opnorm.analysis.nearest import make_patterns, nearest_points
from opnorm.attacks import checks
from opnorm.attacks.checks import Bounds


class BoundaryDistance(NamedTuple):
    """The least distance of a set of images to the decision boundary.

    Attributes:
      v_min: the least of ``distance``, minus the radius of the balls, at least 0; inf
        where no attack succeeded for any image.
      distance: ``(N,)`` float32, Lp distance of each image to the nearest point of
        another class that an attack found, or for which the network returns NaN; inf
        where every attack failed, NaN where the network returns NaN for the image.
      nearest: row of the image with the least distance; -1 where there is none.
      num_found: number of images for which an attack succeeded. The distances of the
        others are not known.
      num_images: N.
    """

    v_min: float
    distance: np.ndarray
    nearest: int
    num_found: int
    num_images: int


def boundary_distance(
    f: linalg.Network,
    images: np.ndarray,
    *,
    p: float = 2.0,
    attacks: Sequence[AttackFactory] | None = None,
    radius: float = 0.0,
    batch_size: int = 100,
    bounds: Bounds = (0.0, 1.0),
    key: jax.Array,
    index: np.ndarray | None = None,
) -> BoundaryDistance:
    """Finds v_min, the least distance of a set to the decision boundary, by attacks.

    The decision is the class that the network predicts, right or wrong, so no labels
    are needed. The paper takes the least distance over balls about the training images:
    a point of the ball lies on the way to the boundary, so it is the least distance of
    the images minus the radius. **Attacks find points that may not be the nearest
    ones**, so v_min is at least the true value, and images for which no attack
    succeeded do not count.

    Args:
      f: ``(B, ...) -> (B, K)``, in inference mode; best a callable pytree, see
        :mod:`opnorm.analysis`.
      images: ``(N, ...)``, uint8 or float, in the bounds. uint8 images are divided by
        255, float images are taken as they are.
      p: exponent of the norm; 1, 2 or inf for the attacks of this library.
      attacks: factories ``epsilon -> attack`` of attacks of the norm p that look for
        the nearest point and have no budget, in the order in which they run; each
        should be one object, since compiled code is kept by it. An attack that can
        start anywhere starts at the nearest point of those before it. None for the fast
        minimum-norm attack with 100 steps; others, such as DeepFool, compile slowly for
        deep networks on CPUs.
      radius: radius of the balls about the images, at least 0, in the norm p; the
        epsilon of the paper.
      batch_size: examples per compiled call, over all devices.
      bounds: box (low, high) that the points of ``attacks=None`` stay in, or None;
        given attacks have their own.
      key: typed key of the attacks.
      index: ``(N,)`` int, number of each image in the data set, which its random
        numbers depend on; None for 0, ..., N - 1.

    Returns:
      The least distance and where it is, in [0, 1] pixel units.

    Raises:
      ValueError: for no images, an index or a batch size that do not fit, images
        outside the bounds, a key that is not typed, a radius out of range, a norm that
        the attacks do not have, no attack, or one that is targeted or has a budget.

    Source: "Towards Understanding the Regularization of Adversarial Robustness on
    Neural Networks", 2020, Definition 6 and Eq. 2.

    Example:
      The boundary is at 0.5 for images of one pixel.

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import analysis
      >>> def f(x):
      ...     return jnp.concatenate([x - 0.5, 0.5 - x], axis=1)
      >>> images, key = np.float32([[0.9], [0.2], [0.6]]), jax.random.key(0)
      >>> found = analysis.boundary_distance(f, images, radius=0.02, key=key)
      >>> round(found.v_min, 3), found.nearest, found.num_found
      (0.08, 2, 3)
    """
    p = linalg.check_exponent("p", p)
    linalg.check_length("radius", radius)
    inputs.check_examples(images, images, batch_size)
    index = inputs.check_index(index, len(images))
    box = checks.hashable(checks.check_bounds(bounds))
    chosen = [_default_attack(p, box)] if attacks is None else attacks
    for pattern in make_patterns(chosen):
        if pattern.budget or pattern.p != p:
            budget = "a" if pattern.budget else "no"
            raise ValueError(
                f"attacks has {pattern.name}, with {budget} budget and the norm p = "
                f"{pattern.p:g}; it must have no budget and p = {p:g}."
            )
        images = inputs.check_attack(pattern, images, np.zeros(len(images), int), key)
    f = linalg.prepare_network(f)
    logits = in_batches(inputs.evaluate, f, (images,), batch_size)
    distance = nearest_points(
        f,
        images,
        np.argmax(logits, axis=1),
        attacks=chosen,
        batch_size=batch_size,
        key=key,
        index=index,
    ).distance
    distance = np.where(np.isnan(logits).any(axis=1), np.float32(np.nan), distance)
    found = np.isfinite(distance)
    if not found.any():
        return BoundaryDistance(np.inf, distance, -1, 0, len(images))
    nearest = int(np.argmin(np.where(found, distance, np.inf)))
    least = max(float(distance[nearest]) - radius, 0.0)
    return BoundaryDistance(least, distance, nearest, int(found.sum()), len(images))


@functools.cache
def _default_attack(p: float, bounds: Bounds) -> AttackFactory:
    """Returns one object for each norm and box, since compiled code is kept by it."""
    return lambda _: attacks_lib.fast_minimum_norm(p=p, bounds=bounds)
