"""Least distances of adversarial examples, from derivatives of the loss.

The loss is negative where an example is classified correctly. Its largest slope L and
its largest curvature C bound the distance of the nearest point where it is zero. L and
C are maxima over a data set, or over samples around each example. They are estimates,
so the bounds are no certificates; :func:`violations` counts how often a bound exceeds a
distance that an attack has reached.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from opnorm import linalg, operators
from opnorm.analysis import inputs, margins
from opnorm.analysis.batches import in_batches
from opnorm.analysis.inputs import check_examples, check_labels
from opnorm.attacks import losses

Loss = Callable[[jax.Array, jax.Array], jax.Array]


class Regularity(NamedTuple):
    """Value and derivatives of a loss at each example; lengths in [0, 1] pixel units.

    Attributes:
      loss: ``(N,)``.
      gradient_norm: ``(N,)``, the dual norm of its gradient at the example; with a
        radius the largest one over samples around the example.
      curvature: ``(N,)``, the largest eigenvalue of its Hessian, signed; with a radius
        the largest one over samples.
      absolute_curvature: ``(N,)``, the largest modulus of an eigenvalue, likewise.
      curvature_error: ``(N,)``; the Hessian has an eigenvalue within this distance of
        ``curvature``, and one of ``absolute_curvature`` up to its sign.
    """

    loss: np.ndarray
    gradient_norm: np.ndarray
    curvature: np.ndarray
    absolute_curvature: np.ndarray
    curvature_error: np.ndarray


# The labels of these losses are classes; other losses may read labels as they like.
_OF_CLASSES: tuple[Loss, ...] = (
    margins.probability_margin,
    margins.log_sum_exp_margin,
    margins.soft_margin,
    margins.top_k_margin,
    margins.margin,
    *losses.NAMED.values(),
)


def lipschitz_bound(loss: ArrayLike, largest_slope: ArrayLike) -> np.ndarray:
    """Computes ``max(-loss, 0) / L``; no nearer point has a loss of zero.

    Args:
      loss: ``(N,)``, negative where the example is classified correctly.
      largest_slope: L, scalar or ``(N,)``: the largest dual norm of the gradient.

    Returns:
      ``(N,)`` distances in the norm whose dual L is measured in; inf for L = 0 where
      the loss is negative.

    Raises:
      ValueError: for a negative L.

    Example:
      >>> from opnorm import analysis
      >>> analysis.lipschitz_bound([-1.0, -0.5, 0.2], 2.0).tolist()
      [0.5, 0.25, 0.0]

    Source: Finlay & Oberman, Proposition 2.1.
    """
    room, slope = _room(loss), _positive("largest_slope", largest_slope)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(room > 0, room / slope, 0.0)


def curvature_bound(
    loss: ArrayLike, gradient_norm: ArrayLike, largest_curvature: ArrayLike
) -> np.ndarray:
    """Computes the L2 distance at which a parabola of curvature C reaches zero.

    With ``r = max(-loss, 0)`` it is::

        2 r / (g + sqrt(g^2 + 2 C r))

    which is the published formula without its difference of nearly equal numbers. It
    tends to r / g for small C and is ``sqrt(2 r / C)`` for g = 0.

    Args:
      loss: ``(N,)``, negative where the example is classified correctly.
      gradient_norm: ``(N,)``, g, the L2 norm of the loss's gradient at the example.
      largest_curvature: C, scalar or ``(N,)``, the largest eigenvalue of its Hessian
        around the example; a negative one counts as 0.

    Returns:
      ``(N,)``; inf where neither slope nor curvature leads to zero.

    Raises:
      ValueError: for a negative gradient norm.

    Source: Finlay & Oberman, Proposition 2.1.
    """
    room, slope = _room(loss), _positive("gradient_norm", gradient_norm)
    curvature = np.maximum(np.asarray(largest_curvature, np.float64), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = 2 * room / (slope + np.sqrt(slope**2 + 2 * curvature * room))
    return np.where(room > 0, reach, 0.0)


def violations(bound: ArrayLike, distance: ArrayLike) -> float:
    """Computes how often a bound exceeds a distance at which an attack succeeded.

    Args:
      bound: ``(N,)``, in the norm of the attack.
      distance: ``(N,)``, inf where no adversarial point is known.

    Returns:
      The fraction of the examples, in [0, 1]; 0 for a valid bound.

    Raises:
      ValueError: for different shapes or no example.
    """
    bound, distance = np.asarray(bound), np.asarray(distance)
    if bound.shape != distance.shape or not bound.size:
        raise ValueError(
            f"bound and distance have shapes {bound.shape} and {distance.shape}; they "
            "must be (N,) both, with N at least 1."
        )
    # A distance in float32 may be one rounding too small.
    return float(np.mean(bound > distance * (1 + 1e-6)))


def loss_regularity(
    f: linalg.Network,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    loss: Loss = margins.log_sum_exp_margin,
    p: float = 2.0,
    num_steps: int = 20,
    radius: float = 0.0,
    num_samples: int = 1,
    batch_size: int = 100,
    key: jax.Array,
) -> Regularity:
    """Measures the slope and the curvature of a loss at each example, or around it.

    The maxima over the examples are the global L and C of
    :func:`lipschitz_bound` and :func:`curvature_bound`; with a ``radius`` each
    example has its own. Curvatures are Lanczos values: lower bounds of the largest,
    with an error bar. On piecewise linear networks they miss what happens at kinks.

    Args:
      f: ``(B, ...) -> (B, K)`` logits, in inference mode; best a callable pytree, see
        :mod:`opnorm.analysis`.
      images: ``(N, ...)``, uint8 or float in [0, 1].
      labels: ``(N,)`` int, or whatever the caller's own loss takes.
      loss: ``(logits, labels) -> (B,)``; one object, not a new lambda in each call.
      p: exponent of the norm of perturbations; the gradient is measured in its dual.
      num_steps: products with the Hessian for each sample; 0 gives NaN as curvatures.
      radius: radius of the Lp ball that is sampled around each example, in [0, 1] pixel
        units; 0 for the example alone.
      num_samples: number of points that the maximum is taken over; the example is one.
      batch_size: examples per compiled call.
      key: typed key.

    Raises:
      ValueError: for a number of steps below 0, a radius and a number of samples that
        do not go together, a bad batch size, no examples, or labels that do not fit a
        loss of this library.

    Source: Finlay & Oberman, Table 3.
    """
    p = linalg.check_exponent("p", p)
    linalg.check_length("radius", radius)
    num_steps = linalg.check_count("num_steps", num_steps, 0)
    num_samples = linalg.check_count("num_samples", num_samples, 1)
    if (radius > 0) != (num_samples > 1):
        raise ValueError(
            f"radius is {radius} and num_samples {num_samples}; sampling a ball needs "
            "a positive radius and at least 2 samples."
        )
    check_examples(images, labels, batch_size)
    named = loss.func if isinstance(loss, functools.partial) else loss
    f = linalg.prepare_network(f)
    if named in _OF_CLASSES:
        check_labels(f, images, labels, min(batch_size, len(images)))
    measure = functools.partial(
        _regularity, loss=loss, p=p, num_steps=num_steps, num_samples=num_samples
    )
    return Regularity(
        *in_batches(measure, f, (images, labels), batch_size, (radius, key))
    )


@linalg.network_program
def _regularity(
    f: linalg.Network,
    x: jax.Array,
    labels: jax.Array,
    radius: jax.Array,
    key: jax.Array,
    *,
    loss: Loss,
    p: float,
    num_steps: int,
    num_samples: int,
) -> tuple[jax.Array, ...]:
    pixels = inputs.to_pixels(x)
    steps = min(num_steps, math.prod(pixels.shape[1:]))

    def at(z: jax.Array) -> jax.Array:
        return loss(f(z), labels)

    def curvatures(z: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
        if num_steps == 0:
            return (jnp.full(len(z), jnp.nan),) * 3
        process = linalg.lanczos(operators.input_hessian_map(at, z), steps, key=key)
        signed = linalg.ritz_pairs(process, which="largest")
        absolute = linalg.ritz_pairs(process, which="magnitude")
        error = jnp.maximum(signed.residual, absolute.residual)[:, 0]
        return signed.values[:, 0], jnp.abs(absolute.values[:, 0]), error

    def sample(number: jax.Array, found: list[jax.Array]) -> list[jax.Array]:
        ball_key, start_key = jax.random.split(jax.random.fold_in(key, number))
        noise = linalg.sample_ball(ball_key, pixels, p, radius)
        z = jnp.where(number == 0, pixels, pixels + noise)
        slope = margins.gradient_norms(f, z, labels, loss=loss, p=p)
        new = (slope, *curvatures(z, start_key))
        return list(map(jnp.maximum, found, new))

    start = jnp.full(len(pixels), -jnp.inf)
    found = linalg.fori_loop(num_samples, sample, [start] * 4)
    return at(pixels), *found


def _room(loss: ArrayLike) -> np.ndarray:
    return np.maximum(-np.asarray(loss, np.float64), 0.0)


def _positive(name: str, value: ArrayLike) -> np.ndarray:
    values = np.asarray(value, np.float64)
    if np.any(values < 0):
        raise ValueError(f"{name} is {values.min()}; it must be at least 0.")
    return values
