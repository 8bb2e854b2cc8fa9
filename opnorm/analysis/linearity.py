"""Linearity of a network around its inputs.

Inside one ReLU cell a network is affine. These functions measure the distance between a
network and its linearisation along given perturbations, and the number of ReLU units
that a perturbation switches.
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
    """Changes of the outputs along perturbations z, and their nonlinear parts.

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
        ratio: np.ndarray = np.divide(
            self.deviation,
            self.change,
            out=np.where(self.deviation > 0, np.inf, 0.0).astype(self.change.dtype),
            where=self.change > 0,
        )
        return ratio


def deviation_from_linearity(
    f: linalg.Network,
    images: np.ndarray,
    perturbations: np.ndarray,
    *,
    batch_size: int = 100,
) -> Linearity:
    """Computes ``||f(x + z) - f(x) - J_f(x) z||_2`` of each example.

    It costs two forward passes and one forward derivative. Outputs that hardly change
    hardly deviate, so a small deviation alone does not show that a network is linear; a
    small ``relative`` deviation does.

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
    """Computes the fraction of ReLU units that have one state at x and x + z.

    A unit is on where its pre-activation is positive. Units that are on at both points
    agree, and so do units that are off at both. All units of all layers count alike.

    Args:
      f: function of a batch ``(B, ...)`` that returns a pytree of arrays ``(B, ...)``,
        the inputs of the ReLUs, in inference mode; best a callable pytree, see
        :mod:`opnorm.analysis`. The ``preactivations`` of a
        :class:`opnorm.models.Network` are such a function.
      images: ``(N, ...)``, x, uint8 or float in [0, 1].
      perturbations: ``(N, ...)`` float, z, in [0, 1] pixel units.
      batch_size: examples per compiled call.

    Returns:
      ``(N,)`` in [0, 1].

    Raises:
      ValueError: for no examples, a bad batch size, perturbations that do not fit, or a
        function that returns no unit.

    Source: Roth et al. 2020, Figs. 5 and 9. Their code counts agreement in either
    state; the text may be read as if only units that are on counted.
    """
    check_perturbations(images, perturbations, batch_size)
    rows = (images, perturbations)
    f = linalg.prepare_network(f)
    agreement: np.ndarray = in_batches(_agreement, f, rows, batch_size)
    return agreement


def random_directions(perturbations: np.ndarray, key: jax.Array) -> np.ndarray:
    """Draws a random perturbation of the same length for each given one.

    The directions are those of Gaussian noise. Random perturbations are the baseline
    for those of an attack.

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
    agreement: jax.Array = sum(equal[1:], equal[0]) / units
    return agreement
