"""operators: Hessians of a loss, in the inputs and in the parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jax import lax

from opnorm import linalg
from opnorm.linalg.linear_map import varying_axes
from opnorm.operators import jacobian
from opnorm.operators.jacobian import BatchFunction


def input_hessian_map(loss: BatchFunction, x: jax.Array) -> linalg.LinearMap:
    """Returns the Hessians of each example's loss in its input, as one map.

    Forward over reverse: the gradient is linearised once; a product then costs about
    two forward passes. For the cross-entropy of a piecewise linear network
    :func:`cross_entropy_hessian` finds the whole spectrum for the price of a few.

    Args:
      loss: batch function ``(B, ...) -> (B,)`` with independent rows, such as the
        cross-entropy of a network with the labels bound.
      x: ``(B, ...)`` float.

    Returns:
      A symmetric map on perturbations ``(B, ...)``, for :func:`opnorm.linalg.lanczos`,
      :func:`opnorm.linalg.eigenpairs`, :func:`opnorm.linalg.spectral_density`.

    Raises:
      ValueError: for an x that is not float or has no batch axis or no example, or a
        loss that does not return ``(B,)`` float.

    Source: Finlay & Oberman, the curvature bounds; Pearlmutter 1994.
    """
    jacobian.check_input(x)
    out = jax.eval_shape(lambda x: loss(x), x)
    if getattr(out, "shape", None) != x.shape[:1] or not jnp.issubdtype(
        out.dtype, jnp.floating
    ):
        raise ValueError(
            f"loss returns {out}; it must return one floating point number for each "
            f"example, of shape {x.shape[:1]}."
        )
    axes = varying_axes(x)
    _, push = jax.linearize(jax.grad(lambda x: jnp.sum(loss(x))), x)

    def product(v: jax.Array) -> jax.Array:
        return push(linear_map.spread(v.astype(x.dtype)))

    shape = x.shape[1:]
    linear_map = linalg.LinearMap(product, product, len(x), shape, shape, x.dtype, axes)
    return linear_map


def cross_entropy_hessian(f: BatchFunction, x: jax.Array) -> linalg.Eigenpairs:
    """Computes the input Hessian of the cross-entropy of each example, whole.

    For a piecewise linear network it is ``J^T (diag p - p p^T) J`` with the softmax p,
    whatever the label, so that d transposed passes and one decomposition of a (d, n)
    matrix give every eigenvalue that is not zero, at most d - 1. For a network with
    smooth nonlinearities it is the Gauss-Newton part of the Hessian, which is positive
    semidefinite; the rest, ``sum_k (p_k - y_k) Hessian of f_k``, is missing.

    Every call outside ``jit`` compiles anew, since what ``f`` closes over may have
    changed: for repeated use wrap the call in ``jax.jit``, with the network's variables
    among the arguments.

    Args:
      f: batch function ``(B, ...) -> (B, d)`` of logits, with independent rows.
      x: ``(B, ...)`` float.

    Returns:
      min(d, n) eigenpairs, largest first; the rest of the spectrum is zero.

    Raises:
      ValueError: as :func:`opnorm.operators.jacobian_map`.

    Source: Schraudolph 2002 for the factors.
    """
    d = jacobian.check(f, x)

    def decompose(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        matrix = jacobian.materialize(jacobian.jacobian_map(linalg.detach(f, x), x))
        matrix = matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
        p = jax.nn.softmax(f(x).astype(matrix.dtype))
        # diag p - p p^T = S S^T with S = (I - p 1^T) diag(sqrt p): centred rows.
        mean = jnp.einsum("bd,bdn->bn", p, matrix, precision="highest")
        centred = jnp.sqrt(p)[..., None] * (matrix - mean[:, None])
        _, values, right = jnp.linalg.svd(centred, full_matrices=False)
        return values**2, right

    values, right = lax.stop_gradient(jax.jit(decompose)(lax.stop_gradient(x)))
    rounding = 20 * jnp.finfo(values.dtype).eps * values[:, :1]
    return linalg.Eigenpairs(
        values,
        right.reshape(len(x), right.shape[1], *x.shape[1:]),
        jnp.broadcast_to(rounding, values.shape),
        jnp.int32(d),
    )


class ParameterMap(NamedTuple):
    """A symmetric map on the parameters of a network.

    Attributes:
      map: a batch of one map on vectors of all n parameters, for the functions of
        :mod:`opnorm.linalg`.
      ravel: parameters, or a tree like them, to such a vector ``(1, n)``.
      unravel: a vector ``(n,)`` to a tree like the parameters.
    """

    map: linalg.LinearMap
    ravel: Callable[[Any], jax.Array]
    unravel: Callable[[jax.Array], Any]


def parameter_hessian(
    loss: Callable[[Any, Any], jax.Array], params: Any, batches: Any
) -> ParameterMap:
    """Returns the Hessian in the parameters of the mean loss over a data set.

    Each product passes over all batches, one after another. To spread them over
    devices, put ``batches`` on a mesh with the second axis sharded and the parameters
    replicated, and use the map under ``jit``. The axes of the mesh must be of the type
    ``jax.sharding.AxisType.Auto``; :func:`jax.make_mesh` makes others unless it is told
    so.

    Args:
      loss: ``(params, batch) -> scalar``, the mean over a batch. Rows have to be
        independent for the result to be that of the data set: BatchNorm on running
        statistics.
      params: pytree of float arrays or numbers.
      batches: pytree of arrays ``(S, b, ...)``: S batches of equal size.

    Returns:
      The map; a product costs about four forward and backward passes of the data set.

    Raises:
      ValueError: for batches without a common first axis, or parameters not float.

    Source: Pearlmutter 1994.
    """

    def product(params: Any, batch: Any, v: Any) -> Any:
        gradient = jax.grad(lambda params: loss(params, batch))
        return jax.jvp(gradient, (params,), (v,))[1]

    return _over_batches(product, params, batches)


def gauss_newton(
    f: Callable[[Any, Any], jax.Array],
    loss: Callable[[jax.Array, Any], jax.Array],
    params: Any,
    batches: Any,
) -> ParameterMap:
    """Returns the generalised Gauss-Newton matrix of the mean loss over a data set.

    ``J^T H J`` with the Jacobian J of the logits in the parameters and the Hessian H
    of the loss in the logits: positive semidefinite for a convex loss, and the Fisher
    matrix for the cross-entropy.

    Args:
      f: ``(params, batch) -> logits``.
      loss: ``(logits, batch) -> scalar``, the mean over a batch.
      params: pytree of float arrays or numbers.
      batches: pytree of arrays ``(S, b, ...)``: S batches of equal size.

    Returns:
      The map; a product costs about two thirds of one with the Hessian.

    Raises:
      ValueError: as :func:`parameter_hessian`.

    Source: Schraudolph 2002.
    """

    def product(params: Any, batch: Any, v: Any) -> Any:
        def network(params: Any) -> jax.Array:
            return f(params, batch)

        logits, push = jax.linearize(network, params)
        gradient = jax.grad(lambda logits: loss(logits, batch))
        bent = jax.jvp(gradient, (logits,), (push(v),))[1]
        return jax.linear_transpose(push, params)(bent)[0]

    return _over_batches(product, params, batches)


def _over_batches(
    product: Callable[[Any, Any, Any], Any], params: Any, batches: Any
) -> ParameterMap:
    kinds = {
        a.dtype if hasattr(a, "dtype") else np.asarray(a).dtype
        for a in jax.tree.leaves(params)
    }
    if not kinds or not all(jnp.issubdtype(kind, jnp.floating) for kind in kinds):
        raise ValueError(
            f"params has leaves of {sorted(map(str, kinds))}; they must be floating "
            "point."
        )
    params, batches = jax.tree.map(jnp.asarray, (params, batches))
    counts = {jnp.shape(a)[:1] for a in jax.tree.leaves(batches)}
    if len(counts) != 1 or counts & {(), (0,)}:
        raise ValueError(
            f"batches has first axes {sorted(counts)}; all leaves must be "
            "(S, b, ...) with the same number S of batches, at least 1."
        )
    ((count,),) = counts
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def matvec(vector: jax.Array) -> jax.Array:
        v = unravel(vector[0].astype(flat.dtype))

        def add(number: jax.Array, total: jax.Array) -> jax.Array:
            batch = jax.tree.map(lambda a: a[number], batches)
            found = jax.flatten_util.ravel_pytree(product(params, batch, v))[0]
            return total + found.astype(total.dtype)

        wide = jnp.promote_types(flat.dtype, jnp.float32)
        total = linalg.fori_loop(count, add, jnp.zeros(flat.shape, wide))
        return (total / count)[None]

    shape = flat.shape
    linear_map = linalg.LinearMap(matvec, matvec, 1, shape, shape, flat.dtype)
    return ParameterMap(
        linear_map, lambda tree: jax.flatten_util.ravel_pytree(tree)[0][None], unravel
    )
