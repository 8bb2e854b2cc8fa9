"""analysis: how linear a network is around its inputs.

Inside one ReLU cell a network is affine. These functions measure how far it leaves its
linearisation along given perturbations, and how many of its ReLU units a perturbation
switches.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import linalg
from opnorm.analysis import inputs
from opnorm.analysis.batches import in_batches
from opnorm.analysis.inputs import check_examples


class Linearity(NamedTuple):
    """How far outputs move along perturbations z, and how far from linearly.

    Attributes:
      length: ``(N,)``, ``||z||_2``.
      change: ``(N,)``, ``||f(x + z) - f(x)||_2``.
      deviation: ``(N,)``, ``||f(x + z) - f(x) - J_f(x) z||_2``.
    """

    length: np.ndarray
    change: np.ndarray
    deviation: np.ndarray

    @property
    def relative(self) -> np.ndarray:
        """``(N,)``, deviation / change; 0 where both are 0."""
        return np.divide(
            self.deviation,
            self.change,
            out=np.where(self.deviation > 0, np.inf, 0.0).astype(self.change.dtype),
            where=self.change > 0,
        )


def deviation_from_linearity(
    f: linalg.Network,
    images: np.ndarray,
    perturbations: np.ndarray,
    *,
    batch_size: int = 100,
) -> Linearity:
    """Computes ``||f(x + z) - f(x) - J_f(x) z||_2`` of each example.

    It costs two forward passes and one forward derivative. Outputs that barely move
    barely deviate, so a small deviation alone does not say that a network is linear;
    ``relative`` does.

    Args:
      f: ``(B, ...) -> (B, d)``, logits or features, in inference mode; best a callable
        pytree, see :mod:`opnorm.analysis`.
      images: ``(N, ...)``, x, uint8 or float in [0, 1].
      perturbations: ``(N, ...)`` float, z, in [0, 1] pixel units.
      batch_size: examples per compiled call.

    Raises:
      ValueError: for no examples, a bad batch size, or perturbations that do not fit.

    Source: Roth et al. 2020, Figs. 4, 10 and 12, left.
    """
    check_perturbations(images, perturbations, batch_size)
    rows = (images, perturbations)
    f = linalg.prepare_network(f)
    return Linearity(*in_batches(_deviation, f, rows, batch_size))


def activation_agreement(
    f: linalg.Network,
    images: np.ndarray,
    perturbations: np.ndarray,
    *,
    batch_size: int = 100,
) -> np.ndarray:
    """Computes the part of the ReLU units that are in the same state at x and x + z.

    A unit is on where its pre-activation is positive. Units that are on at both points
    agree, and so do those that are off at both; every unit of every layer counts the
    same.

    Args:
      f: ``(B, ...) ->`` any pytree of arrays ``(B, ...)``, the inputs of the ReLUs, in
        inference mode; best a callable pytree, see :mod:`opnorm.analysis`. A
        :class:`opnorm.models.Network` has it as its ``preactivations``.
      images: ``(N, ...)``, x, uint8 or float in [0, 1].
      perturbations: ``(N, ...)`` float, z, in [0, 1] pixel units.
      batch_size: examples per compiled call.

    Returns:
      ``(N,)`` in [0, 1].

    Raises:
      ValueError: for no examples, a bad batch size, perturbations that do not fit, or a
        function that returns no unit.

    Source: Roth et al. 2020, Figs. 5 and 9 (their code counts agreement of either
    state; the text reads as if only units that are on counted).
    """
    check_perturbations(images, perturbations, batch_size)
    rows = (images, perturbations)
    f = linalg.prepare_network(f)
    return in_batches(_agreement, f, rows, batch_size)


def random_directions(perturbations: np.ndarray, key: jax.Array) -> np.ndarray:
    """Draws a perturbation in a random direction for each one that is given.

    Directions are those of Gaussian noise, and lengths those of the given ones, example
    by example: the baseline of perturbations that were chosen.

    Args:
      perturbations: ``(N, ...)`` float.
      key: typed key; example i draws from ``fold_in(key, i)``.

    Returns:
      ``(N, ...)``, dtype of ``perturbations``.
    """
    return np.asarray(_random_directions(perturbations, key))


def check_perturbations(
    images: np.ndarray, perturbations: np.ndarray, batch_size: int
) -> None:
    """Raises ValueError for perturbations or a batch size that cannot be used."""
    check_examples(images, images, batch_size)
    kind = perturbations.dtype
    if perturbations.shape != images.shape or not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(
            f"perturbations has shape {perturbations.shape} and dtype {kind}; it must "
            f"be float of the shape of images, {images.shape}."
        )


@jax.jit
def _random_directions(like: jax.Array, key: jax.Array) -> jax.Array:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(like)))
    unit = linalg.sample_sphere(keys, like, 2.0)
    return linalg.scale(unit, linalg.norm(like, 2.0))


@linalg.network_program
def _deviation(f: linalg.Network, x: jax.Array, z: jax.Array) -> tuple[jax.Array, ...]:
    pixels = inputs.to_pixels(x)
    z = z.astype(pixels.dtype)
    clean, linear = jax.jvp(f, (pixels,), (z,))
    moved = f(pixels + z) - clean
    differences = (z, moved, moved - linear)
    return tuple(linalg.norm(difference, 2.0) for difference in differences)


@linalg.network_program
def _agreement(f: linalg.Network, x: jax.Array, z: jax.Array) -> jax.Array:
    pixels = inputs.to_pixels(x)
    states = [
        [layer.reshape(len(x), -1) > 0 for layer in jax.tree.leaves(f(points))]
        for points in (pixels, pixels + z.astype(pixels.dtype))
    ]
    units = sum(layer.shape[1] for layer in states[0])
    if not units:
        raise ValueError("f returns no unit; it must return the inputs of the ReLUs.")
    equal = [jnp.sum(a == b, axis=1) for a, b in zip(*states, strict=True)]
    return sum(equal[1:], equal[0]) / units
