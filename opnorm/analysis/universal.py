"""Universal perturbations, directions that change the decisions of many images.

The linear theory looks at the stacked Jacobians S of a set of N images
(:func:`opnorm.operators.stacked_jacobian_map`). For a perturbation ``epsilon v`` with
``||v||_p = 1`` it promises the change

    (sum_i ||f(x_i + epsilon v) - f(x_i)||_q^q)^(1/q)  ~  epsilon ||S v||_q,

and ``||S v||_q <= ||S||_{p,q}`` for every v. The inequality between the products with S
is exact. The first relation holds to first order in epsilon only, and is exact for a
linear network. It has no box: an image that is clipped to the box is moved by less.

An image with the margin m (largest minus second largest logit) keeps its class as long
as its logits change by less than ``m / 2^(1 - 1/q)`` in the q-norm. This is exact for
every network, so :func:`fooling_bound` bounds the fooling rate by the change.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike

from opnorm import linalg, operators
from opnorm.analysis import inputs
from opnorm.analysis.batches import in_batches
from opnorm.attacks import checks
from opnorm.attacks.checks import Bounds

# A sum of powers that is equal to the bound may have been rounded above it.
_ROUNDING = 1e-6


class UniversalDirection(NamedTuple):
    """A stationary direction of the stacked Jacobians of a set.

    Attributes:
      norm: ``||S v||_q``, a lower bound of ``||S||_{p,q}``; it is the norm if v is a
        global maximiser.
      direction: v, float32 of the shape of an image, with ``||v||_p = 1``. The sign of
        v is arbitrary: ``-v`` has the same norm.
      residual: in [0, 1], 0 where v is stationary; see
        :class:`opnorm.linalg.OperatorNorm`.
    """

    norm: float
    direction: np.ndarray
    residual: float


class Response(NamedTuple):
    """The effect of a perturbation on the outputs of a network, for N images.

    Attributes:
      change: ``(E, N)`` float32, ``||f(x_i + delta_i) - f(x_i)||_q``, where delta_i is
        ``epsilon v`` after the image was clipped to the box.
      slope: ``(N,)`` float32, ``||J_f(x_i) v||_q``: the change for each unit of epsilon
        to first order, without the box.
    """

    change: np.ndarray
    slope: np.ndarray


class Fooling(NamedTuple):
    """Decisions that a perturbation changes, for N images.

    Attributes:
      fooled: ``(E, N)`` bool: the class at the perturbed image differs from the class
        at the image, whether that is right or wrong; NaN logits count as fooled.
      margin: ``(N,)`` float32, the largest minus the second largest logit at the image.
      decision: ``(N,)`` int32, the class at the image.
    """

    fooled: np.ndarray
    margin: np.ndarray
    decision: np.ndarray


def universal_direction(
    f: linalg.Network,
    images: np.ndarray,
    *,
    p: float = math.inf,
    q: float = 10.0,
    num_steps: int = 20,
    num_restarts: int = 1,
    batch_size: int = 100,
    key: jax.Array,
) -> UniversalDirection:
    """Computes the top (p, q) singular vector of the stacked Jacobians of a set.

    It is the direction of the strongest universal perturbation to first order. The
    power method takes ``num_steps`` steps from each start. A step costs a product with
    S and one with its transpose, about five forward passes over the set, and the memory
    of one batch.

    Args:
      f: ``(B, ...) -> (B, d)``, in inference mode: the logits or an inner layer; best a
        callable pytree, see :mod:`opnorm.analysis`.
      images: ``(N, ...)``, uint8 or float in [0, 1]. 64 images are enough for a
        direction that carries over to others, in the source's experiments.
      p: exponent of the norm of the perturbation, in [1, inf].
      q: exponent of the norm of the outputs, in [1, inf].
      num_steps: steps of the power method, at least 0.
      num_restarts: number of random starts, at least 1; the best one counts.
      batch_size: images in a pass.
      key: typed key of the random starts.

    Raises:
      ValueError: for no images, images that are neither uint8 nor float, and for the
        reasons of :func:`opnorm.linalg.operator_norm`.

    Source: Khrulkov and Oseledets 2017, "Art of singular vectors and universal
    adversarial perturbations" (arXiv 1709.03582).

    Example:
      A linear network amplifies the first pixel most, in both images.

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import analysis
      >>> weights = jnp.array([[3.0, 0.0], [0.0, 1.0]])
      >>> f = jax.tree_util.Partial(lambda w, x: x @ w, weights)
      >>> images = np.full((2, 2), 0.5, np.float32)
      >>> found = analysis.universal_direction(
      ...     f, images, p=2, q=2, key=jax.random.key(0)
      ... )
      >>> round(found.norm, 3), abs(found.direction).round(3).tolist()
      (4.243, [1.0, 0.0])
    """
    inputs.check_examples(images, images, batch_size)
    linalg.check_key(key)
    found = _search(
        linalg.prepare_network(f),
        images,
        key,
        p=linalg.check_exponent("p", p),
        q=linalg.check_exponent("q", q),
        num_steps=linalg.check_count("num_steps", num_steps, 0),
        num_restarts=linalg.check_count("num_restarts", num_restarts, 1),
        batch_size=min(batch_size, len(images)),
    )
    direction = np.asarray(found.right[0], np.float32)
    return UniversalDirection(
        float(found.value[0]), direction, float(found.residual[0])
    )


def shuffled_directions(
    direction: np.ndarray, count: int, key: jax.Array
) -> np.ndarray:
    """Draws noise with the norms of a direction: its entries, shuffled, random signs.

    The noise has the same length in every Lp norm, so that it is the baseline of a
    universal perturbation.

    Args:
      direction: ``(...)`` float.
      count: number of draws.
      key: typed key.

    Returns:
      ``(count, ...)``, dtype of ``direction``.

    Raises:
      ValueError: for a count below 1 or a key that is not typed.
    """
    count = linalg.check_count("count", count, 1)
    linalg.check_key(key)
    draws = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    rows = np.tile(direction.reshape(-1), (count, 1))
    signs = draws.choice(np.array([-1, 1], direction.dtype), rows.shape)
    noise = draws.permuted(rows, axis=1) * signs
    return np.asarray(noise.reshape(count, *direction.shape), direction.dtype)


def perturbation_response(
    f: linalg.Network,
    images: np.ndarray,
    directions: np.ndarray,
    *,
    epsilons: Sequence[float],
    q: float = 2.0,
    bounds: Bounds = (0.0, 1.0),
    batch_size: int = 100,
) -> Response:
    """Measures the change of outputs along a direction, and its first order.

    Args:
      f: ``(B, ...) -> (B, d)``, in inference mode: the logits or an inner layer.
      images: ``(N, ...)``, uint8 or float, in the bounds.
      directions: the shape of an image for a universal direction, or ``(N, ...)``.
      epsilons: E factors of the directions, at least 0; budgets in [0, 1] pixel units
        where the directions have length 1.
      q: exponent of the norm of the outputs, in [1, inf].
      bounds: box (low, high) that perturbed images are clipped to, of numbers or of
        arrays that broadcast against one image; None for no box.
      batch_size: images in a compiled call.

    Raises:
      ValueError: for no images, images outside the bounds, directions of another shape,
        or epsilons, q, bounds or a batch size out of range.
    """
    q = linalg.check_exponent("q", q)
    images, directions, budgets, bounds = _check(
        images, directions, epsilons, bounds, batch_size
    )
    f = linalg.prepare_network(f)
    rows = (images, directions)
    slope = in_batches(functools.partial(_slope, q=q), f, rows, batch_size)
    measure = functools.partial(_change, q=q, bounds=bounds)
    change = [
        in_batches(measure, f, rows, batch_size, (epsilon,)) for epsilon in budgets
    ]
    return Response(np.stack(change), slope)


def fooling(
    f: linalg.Network,
    images: np.ndarray,
    directions: np.ndarray,
    *,
    epsilons: Sequence[float],
    bounds: Bounds = (0.0, 1.0),
    batch_size: int = 100,
) -> Fooling:
    """Measures whose decisions a perturbation changes.

    The fooling rate is the mean of ``fooled`` over the images. No labels are needed.

    Args:
      f: ``(B, ...) -> (B, K)``, the logits, in inference mode.
      images: ``(N, ...)``, uint8 or float, in the bounds.
      directions: the shape of an image for a universal direction, or ``(N, ...)``.
      epsilons: E factors of the directions, at least 0.
      bounds: box (low, high) that perturbed images are clipped to, of numbers or of
        arrays that broadcast against one image; None for no box.
      batch_size: images in a compiled call.

    Raises:
      ValueError: as :func:`perturbation_response`, and for a network of one logit.

    Source: Moosavi-Dezfooli et al. 2017, "Universal adversarial perturbations", Eq. 1.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import analysis
      >>> def f(x):
      ...     return jnp.concatenate([x - 0.5, 0.5 - x], axis=1)
      >>> images, up = np.float32([[0.4], [0.1], [0.9]]), np.ones(1, np.float32)
      >>> found = analysis.fooling(f, images, up, epsilons=[0.2, 0.5])
      >>> found.fooled.mean(axis=1).round(2).tolist()
      [0.33, 0.67]
    """
    images, directions, budgets, bounds = _check(
        images, directions, epsilons, bounds, batch_size
    )
    f = linalg.prepare_network(f)
    zeros = np.zeros(len(images), np.int32)
    inputs.check_labels(f, images, zeros, min(batch_size, len(images)))
    margin, decision = in_batches(_decision, f, (images,), batch_size)
    judge = functools.partial(_fooled, bounds=bounds)
    fooled = [
        in_batches(judge, f, (images, directions), batch_size, (epsilon,))
        for epsilon in budgets
    ]
    return Fooling(np.stack(fooled), margin, decision)


def fooling_bound(margin: ArrayLike, change: ArrayLike, q: float) -> np.ndarray:
    """Computes the largest fooling rate that a change of all logits allows.

    An image is fooled only if its logits change by at least ``m_i / 2^(1 - 1/q)`` in
    the q-norm. The most images that share a change c are then those of the smallest
    margins, as long as ``sum_i (m_i / 2^(1 - 1/q))^q <= c^q``; for q = inf all images
    whose own bound is at most c.

    The bound holds exactly for the measured change ``(sum_i change_i^q)^(1/q)``. With
    ``epsilon ||S||_{p,q}`` it holds for every universal perturbation of length epsilon
    of a linear network without a box, and to first order for other networks.

    Args:
      margin: ``(N,)``, at least 0, as :func:`fooling` returns it.
      change: ``(E,)``, q-norms of the changes of all N images together, at least 0.
      q: exponent, in [1, inf].

    Returns:
      ``(E,)`` float64 in [0, 1].

    Raises:
      ValueError: for arrays of another rank, no image, or a q out of range.

    Example:
      >>> from opnorm import analysis
      >>> analysis.fooling_bound([2.0, 1.0, 3.0], [0.5, 2.0], 1).tolist()
      [0.0, 0.3333333333333333]
    """
    q = linalg.check_exponent("q", q)
    margins, changes = np.asarray(margin, float), np.asarray(change, float)
    if margins.ndim != 1 or not len(margins) or changes.ndim != 1:
        raise ValueError(
            f"margin and change have shapes {margins.shape} and {changes.shape}; they "
            "must be (N,) and (E,), N at least 1."
        )
    needed = np.sort(margins) / 2 ** (1 - 1 / q)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = needed / changes[:, None]
        ratio = np.where(needed == 0, 0.0, ratio)
        used = ratio if q == math.inf else np.cumsum(ratio**q, axis=1)
    fractions: np.ndarray = np.mean(used <= 1 + _ROUNDING, axis=1)
    return fractions


def _check(
    images: np.ndarray,
    directions: np.ndarray,
    epsilons: Sequence[float],
    bounds: Bounds,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Bounds]:
    """Returns images, a direction for each, epsilons and a box that can be hashed.

    Raises:
      ValueError: if one of them is bad.
    """
    inputs.check_examples(images, images, batch_size)
    box = checks.check_bounds(bounds)
    images = inputs.check_bounds(images, box)
    directions = np.asarray(directions)
    kind = directions.dtype
    if directions.shape not in (images.shape, images.shape[1:]) or not jnp.issubdtype(
        kind, jnp.floating
    ):
        raise ValueError(
            f"directions has shape {directions.shape} and dtype {kind}; it must be "
            f"float, of shape {images.shape[1:]} or {images.shape}."
        )
    budgets = np.asarray(epsilons, np.float32)
    linalg.check_length("epsilons", budgets)
    if budgets.ndim != 1 or not len(budgets):
        raise ValueError(f"epsilons is {epsilons}; it must be a list, not empty.")
    rows = np.broadcast_to(directions, images.shape)
    return images, rows, budgets, checks.hashable(box)


@linalg.network_program
def _search(
    f: linalg.Network,
    images: jax.Array,
    key: jax.Array,
    *,
    p: float,
    q: float,
    num_steps: int,
    num_restarts: int,
    batch_size: int,
) -> linalg.OperatorNorm:
    stacked = operators.stacked_jacobian_map(f, images, batch_size=batch_size)
    return linalg.operator_norm(
        stacked, p=p, q=q, num_steps=num_steps, num_restarts=num_restarts, key=key
    )


def _moved(
    pixels: jax.Array, direction: jax.Array, epsilon: jax.Array, bounds: Bounds
) -> jax.Array:
    point = pixels + epsilon * direction.astype(pixels.dtype)
    if bounds is not None:
        low, high = (np.asarray(end, pixels.dtype) for end in bounds)
        point = jnp.clip(point, low, high)
    return point.astype(pixels.dtype)


@linalg.network_program
def _change(
    f: linalg.Network,
    x: jax.Array,
    direction: jax.Array,
    epsilon: jax.Array,
    *,
    q: float,
    bounds: Bounds,
) -> jax.Array:
    pixels = inputs.to_pixels(x)
    moved = f(_moved(pixels, direction, epsilon, bounds))
    return linalg.norm(moved - f(pixels), q)


@linalg.network_program
def _slope(
    f: linalg.Network, x: jax.Array, direction: jax.Array, *, q: float
) -> jax.Array:
    pixels = inputs.to_pixels(x)
    return linalg.norm(
        operators.directional_derivative(f, pixels, direction.astype(pixels.dtype)), q
    )


@linalg.network_program
def _fooled(
    f: linalg.Network,
    x: jax.Array,
    direction: jax.Array,
    epsilon: jax.Array,
    *,
    bounds: Bounds,
) -> jax.Array:
    pixels = inputs.to_pixels(x)
    before, after = f(pixels), f(_moved(pixels, direction, epsilon, bounds))
    broken = jnp.any(jnp.isnan(after), axis=1)
    return broken | (jnp.argmax(before, axis=1) != jnp.argmax(after, axis=1))


@linalg.network_program
def _decision(f: linalg.Network, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    top, classes = lax.top_k(f(inputs.to_pixels(x)), 2)
    return top[:, 0] - top[:, 1], classes[:, 0].astype(jnp.int32)
