"""Slope and curvature of the cross-entropy in the input.

Every example has a Hessian of its own. Its rank is below the number of classes where
the network is piecewise linear.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import linalg, operators
from opnorm.analysis import inputs
from opnorm.analysis.batches import in_batches, reporting_progress
from opnorm.analysis.inputs import check_examples, check_labels
from opnorm.analysis.precision import exact_program
from opnorm.attacks import losses
from opnorm.linalg.dtypes import at_least_single


class InputCurvature(NamedTuple):
    """First and second derivatives in the input, by example; lengths in pixel units.

    Attributes:
      largest: ``(N,)``, the largest eigenvalue of the Hessian of the cross-entropy.
        Where ``curved``, the largest one that the Krylov space reaches, which does not
        exceed the largest of all by more than ``error``.
      trace: ``(N,)``, the sum of the eigenvalues; where ``curved``, an estimate.
      gradient_norm: ``(N,)``, ``||gradient of the cross-entropy||_2``.
      sigma: ``(N,)``, the largest singular value of the Jacobian of the logits.
      smallest: ``(N,)``, the smallest eigenvalue; where ``curved``, the smallest one
        that the Krylov space reaches.
      error: ``(N,)``; the Hessian has an eigenvalue within this distance of
        ``largest``, and one within it of ``smallest``.
      trace_error: ``(N,)``, the standard error of ``trace`` over the random probes: 0
        where the trace is exact, NaN for a single probe.
      curved: ``(N,)`` bool, whether the network is not piecewise linear at the example.
    """

    largest: np.ndarray
    trace: np.ndarray
    gradient_norm: np.ndarray
    sigma: np.ndarray
    smallest: np.ndarray
    error: np.ndarray
    trace_error: np.ndarray
    curved: np.ndarray


def input_curvature(
    f: linalg.Network,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    num_steps: int = 30,
    num_probes: int = 10,
    batch_size: int = 100,
    key: jax.Array | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> InputCurvature:
    """Computes slope and curvature of the cross-entropy at each example.

    Where the network is piecewise linear, the Hessian is ``J^T (diag p - p p^T) J``,
    and the dense Jacobian gives all of it by one backward pass for each logit.
    :func:`opnorm.operators.is_curved` tells for each example whether the network is
    piecewise linear there. Where it is not, the Hessian has a second term. Then the
    Lanczos process on Hessian-vector products finds the eigenvalues, and random probes
    estimate the trace of the second term, in ``num_steps + num_probes`` products.

    Args:
      f: ``(B, ...) -> (B, d)`` logits, in inference mode; best a callable pytree, see
        :mod:`opnorm.analysis`.
      images: ``(N, ...)``, uint8 or float in [0, 1].
      labels: ``(N,)`` int.
      num_steps: steps of each Lanczos process, at least 1; as many as pixels are exact.
        Only networks that are not piecewise linear use it.
      num_probes: probes of each trace, at least 1; 2 or more give error bars, and as
        many as pixels give the exact trace. Only networks that are not piecewise linear
        use it.
      batch_size: examples per compiled call.
      key: typed key of random starts and probes; None for ``jax.random.key(0)``.
      on_progress: called with the fraction of the examples that is done, in [0, 1].

    Raises:
      ValueError: for no examples, or labels, a number of steps or probes, a batch size
        or a key that do not fit.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> from opnorm import analysis
      >>> f = jax.tree_util.Partial(lambda w, x: x @ w, np.eye(2, dtype=np.float32))
      >>> images, labels = np.full((1, 2), 0.5, np.float32), np.array([0])
      >>> found = analysis.input_curvature(f, images, labels)
      >>> round(float(found.largest[0]), 3), round(float(found.gradient_norm[0]), 3)
      (0.5, 0.707)

    Source: Finlay & Oberman 2019, Table 3, which has another loss; Schraudolph 2002 for
    the terms of the Hessian; Hutchinson 1989 for the trace.
    """
    num_steps = linalg.check_count("num_steps", num_steps, 1)
    num_probes = linalg.check_count("num_probes", num_probes, 1)
    key = jax.random.key(0) if key is None else key
    linalg.check_key(key)
    check_examples(images, labels, batch_size)
    size = min(batch_size, len(images))
    f = linalg.prepare_network(f)
    check_labels(f, images, labels, size)
    options = {"num_steps": num_steps, "num_probes": num_probes}

    def measured(
        f: linalg.Network,
        x: jax.Array,
        labels: jax.Array,
        number: jax.Array,
        key: jax.Array,
    ) -> InputCurvature:
        # Batches must not share probes, or their errors would not average out.
        key = jax.random.fold_in(key, number[0])
        found, pairs = _curvature(f, x, labels, key)
        if np.any(found.curved):
            # Only networks that need this program compile it.
            found = _whole_curvature(f, x, labels, key, found, pairs, **options)
        return found

    found: InputCurvature = in_batches(
        reporting_progress(measured, len(images), size, on_progress),
        f,
        (images, labels, np.arange(len(images))),
        size,
        (key,),
    )
    return found


@linalg.network_program
def _curvature(
    f: linalg.Network, x: jax.Array, labels: jax.Array, key: jax.Array
) -> tuple[InputCurvature, linalg.Eigenpairs]:
    """Returns all results of a piecewise linear network, and whether it is one."""
    pixels = inputs.to_pixels(x)
    logits, rows = f(pixels), operators.dense_jacobian(f, pixels)

    # The results depend on values and slopes at x alone, so they need no second pass
    # through the network.
    def linearized(z: jax.Array) -> jax.Array:
        moved = (z - pixels).reshape(len(z), -1)
        flat = rows.reshape(*rows.shape[:2], -1)
        change = jnp.einsum("bdn,bn->bd", flat, moved, precision="highest")
        return jnp.add(logits, change)

    pairs = operators.cross_entropy_gauss_newton(linearized, pixels)

    def total(z: jax.Array) -> jax.Array:
        return jnp.sum(losses.cross_entropy(linearized(z), labels))

    gradient = jax.grad(total)(pixels)
    top = operators.singular_triplets(linearized, pixels, 1, method="dense")
    # With at least d pixels, the last of d values is zero up to rounding.
    few = math.prod(pixels.shape[1:]) < logits.shape[1]
    lowest = pairs.values[:, -1]
    # The fields become NumPy arrays when they leave the batches.
    found: dict[str, Any] = {
        "largest": pairs.values[:, 0],
        "trace": jnp.sum(pairs.values, axis=1),
        "gradient_norm": linalg.norm(gradient, 2.0),
        "sigma": top.values[:, 0],
        "smallest": lowest if few else jnp.zeros_like(lowest),
        "error": pairs.residual[:, 0],
        "trace_error": jnp.zeros_like(lowest),
        "curved": operators.is_curved(f, pixels, key=key),
    }
    return InputCurvature(**found), pairs


@exact_program
def _whole_curvature(
    f: linalg.Network,
    x: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    found: InputCurvature,
    pairs: linalg.Eigenpairs,
    *,
    num_steps: int,
    num_probes: int,
) -> InputCurvature:
    """Replaces the Gauss-Newton term by the whole Hessian at curved examples."""
    start_key, probe_key = jax.random.split(key)
    pixels = inputs.to_pixels(x)
    hessian = operators.input_hessian_map(
        lambda z: losses.cross_entropy(f(z), labels), pixels
    )
    steps = min(num_steps, hessian.in_size)
    krylov = linalg.lanczos(hessian, steps, key=start_key)
    largest = linalg.ritz_pairs(krylov, which="largest")
    smallest = linalg.ritz_pairs(krylov, which="smallest")

    def product(v: jax.Array) -> jax.Array:
        along = pairs.values * jnp.einsum("bk...,b...->bk", pairs.vectors, v)
        return jnp.einsum("bk,bk...->b...", along, pairs.vectors)

    # Probes see the second term alone, since the trace of the first is exact.
    rest = hessian - hessian._replace(matvec=product, rmatvec=product)
    estimate = _trace(rest, num_probes, probe_key)
    bent: dict[str, Any] = {
        "largest": largest.values[:, 0],
        "trace": found.trace + estimate.mean,
        "smallest": smallest.values[:, 0],
        "error": jnp.maximum(largest.residual, smallest.residual)[:, 0],
        "trace_error": estimate.standard_error,
    }
    whole: InputCurvature = jax.tree.map(
        lambda a, b: jnp.where(found.curved, a, b), found._replace(**bent), found
    )
    return whole


def _trace(
    linear_map: linalg.LinearMap, num_probes: int, key: jax.Array
) -> linalg.Estimate:
    """Computes the trace by random probes, or by all n unit vectors if n is smaller."""
    n = linear_map.in_size
    if num_probes < n:
        return linalg.trace(linear_map, num_probes=num_probes, key=key)

    def add(number: jax.Array, total: jax.Array) -> jax.Array:
        unit = jax.nn.one_hot(number, n, dtype=linear_map.dtype)
        shape = (linear_map.batch_size, *linear_map.in_shape)
        image = linear_map.matvec(jnp.broadcast_to(unit, (shape[0], n)).reshape(shape))
        return total + image.reshape(shape[0], n)[:, number].astype(total.dtype)

    wide = at_least_single(linear_map.dtype)
    zero = jnp.zeros(linear_map.batch_size, wide)
    return linalg.Estimate(linalg.fori_loop(n, add, zero), zero)
