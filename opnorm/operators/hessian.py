"""Hessians of a loss, in the inputs and in the parameters."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jax import lax

from opnorm import linalg
from opnorm.linalg import BatchFunction, Network, Params, PyTree
from opnorm.linalg.dtypes import at_least_single
from opnorm.linalg.linear_map import varying_axes
from opnorm.operators import jacobian
from opnorm.operators.network_parameters import (
    choose_parameters,
    put_parameters,
    take_parameters,
)


def input_hessian_map(loss: BatchFunction, x: jax.Array) -> linalg.LinearMap:
    """Returns the Hessian of the loss of each example in its input, as one map.

    The gradient is linearised once (forward over reverse mode). Each product then costs
    about two forward passes. For the cross-entropy of a piecewise linear network,
    :func:`cross_entropy_hessian` computes the whole spectrum at the cost of a few
    products.

    Args:
      loss: batch function ``(B, ...) -> (B,)`` with independent rows, such as the
        cross-entropy of a network for given labels.
      x: ``(B, ...)`` float.

    Returns:
      A symmetric map on perturbations ``(B, ...)``, for :func:`opnorm.linalg.lanczos`,
      :func:`opnorm.linalg.eigenpairs`, :func:`opnorm.linalg.spectral_density`.

    Raises:
      ValueError: for an x that is not float or has no batch axis or no example, or a
        loss that does not return ``(B,)`` float.

    Source: Finlay & Oberman, the curvature bounds; Pearlmutter 1994.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from opnorm import operators
      >>> def loss(x):
      ...     return x[:, 0] ** 2 + 3 * x[:, 0] * x[:, 1]
      >>> hessian = operators.input_hessian_map(loss, jnp.zeros((1, 2)))
      >>> print(hessian.matvec(jnp.array([[1.0, 0.0]])))
      [[2. 3.]]
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
        found: jax.Array = push(linear_map.spread(v.astype(x.dtype)))
        return found

    shape = x.shape[1:]
    linear_map = linalg.LinearMap(product, product, len(x), shape, shape, x.dtype, axes)
    return linear_map


def is_curved(f: BatchFunction, x: jax.Array, *, key: jax.Array) -> jax.Array:
    """Tells at which examples a network is not piecewise linear.

    The second derivative of a random combination of the outputs along a random
    direction is exactly zero where every output is linear around the example. Where an
    output is not linear, it is not zero, with probability one. This takes one product
    with a Hessian, which XLA removes from the program of a piecewise linear network.

    Args:
      f: batch function ``(B, ...) -> (B, d)`` with independent rows.
      x: ``(B, ...)`` float.
      key: typed key of the combination and of the direction.

    Returns:
      ``(B,)`` bool: true where the Hessian of some output is not zero, or not finite.

    Raises:
      ValueError: for a key that is not typed, and as
        :func:`opnorm.operators.jacobian_map`.
    """
    d = jacobian.check(f, x)
    linalg.check_key(key)
    weight_key, direction_key = jax.random.split(key)
    weights = jax.random.normal(weight_key, (len(x), d))

    def combined(z: jax.Array) -> jax.Array:
        outputs = f(z)
        return jnp.sum(weights.astype(outputs.dtype) * outputs, axis=1)

    direction = linalg.draw(jax.random.normal, direction_key, x.shape, x.dtype)
    product = input_hessian_map(combined, x).matvec(direction)
    return jnp.any(product.reshape(len(x), -1) != 0, axis=1)


def cross_entropy_hessian(f: BatchFunction, x: jax.Array) -> linalg.Eigenpairs:
    """Computes the spectrum of the input Hessian of the cross-entropy.

    For a piecewise linear network with softmax p, the Hessian is

        J^T (diag p - p p^T) J

    for every label. So d transposed passes and one decomposition of a (d, n) matrix
    give every eigenvalue that is not zero; there are at most d - 1. The Hessian of a
    network with smooth nonlinearities (ELU, a smooth ReLU, response normalisation) also
    has the part ``sum_k (p_k - y_k) Hessian(f_k)``, which depends on the label. Such a
    network is refused: see :func:`input_hessian_map` for its Hessian and
    :func:`cross_entropy_gauss_newton` for the displayed part alone.

    Calls outside ``jit`` compile like those of :func:`opnorm.operators.jacobian_norm`.

    Args:
      f: batch function ``(B, ...) -> (B, d)`` of logits, with independent rows,
        piecewise linear.
      x: ``(B, ...)`` float.

    Returns:
      min(d, n) eigenpairs, largest first; the rest of the spectrum is zero. Under
      ``jit`` no network can be refused. Values and residuals are then NaN at examples
      where ``f`` is not piecewise linear.

    Raises:
      ValueError: for a network that is not piecewise linear at some example, and as
        :func:`opnorm.operators.jacobian_map`.

    Source: Schraudolph 2002 for the factors.
    """
    d = jacobian.check(f, x)
    # The key is an argument, so that XLA does not compute with its numbers while it
    # compiles.
    values, vectors, curved = _pairs_and_curved(f, x, jax.random.key(0))
    if not isinstance(curved, jax.core.Tracer) and curved.any():
        raise ValueError(
            f"f is not piecewise linear at {int(curved.sum())} of the {len(x)} "
            "examples, where the Hessian depends on the label too; it must be "
            "piecewise linear. operators.input_hessian_map takes any loss, and "
            "operators.cross_entropy_gauss_newton gives the Gauss-Newton part."
        )
    values = jnp.where(curved[:, None], jnp.nan, values)
    return _with_residuals(values, vectors, d)


def cross_entropy_gauss_newton(f: BatchFunction, x: jax.Array) -> linalg.Eigenpairs:
    """Computes the spectrum of the Gauss-Newton part of the cross-entropy's Hessian.

    The matrix is ``J^T (diag p - p p^T) J`` with the softmax p. It is positive
    semidefinite and the Fisher matrix of each example. For a piecewise linear network
    it is the Hessian (see :func:`cross_entropy_hessian`); for other networks it may be
    far from the Hessian.

    Calls outside ``jit`` compile like those of :func:`opnorm.operators.jacobian_norm`.

    Args:
      f: batch function ``(B, ...) -> (B, d)`` of logits, with independent rows.
      x: ``(B, ...)`` float.

    Returns:
      min(d, n) eigenpairs, largest first; the rest of the spectrum is zero.

    Raises:
      ValueError: as :func:`opnorm.operators.jacobian_map`.

    Source: Schraudolph 2002.
    """
    d = jacobian.check(f, x)
    values, vectors = _pairs(f, x)
    return _with_residuals(values, vectors, d)


@linalg.network_program
def _pairs(f: BatchFunction, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = lax.stop_gradient(x)
    return lax.stop_gradient(_gauss_newton_pairs(linalg.detach(f, x), x))


@linalg.network_program
def _pairs_and_curved(
    f: BatchFunction, x: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x = lax.stop_gradient(x)
    fixed = linalg.detach(f, x)
    values, vectors = lax.stop_gradient(_gauss_newton_pairs(fixed, x))
    return values, vectors, is_curved(fixed, x, key=key)


def _gauss_newton_pairs(f: BatchFunction, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues ``(B, k)``, largest first, and vectors ``(B, k, ...)``."""
    matrix = jacobian.materialize(jacobian.jacobian_map(f, x))
    matrix = matrix.astype(at_least_single(matrix.dtype))
    p = jax.nn.softmax(f(x).astype(matrix.dtype))
    # diag p - p p^T = S S^T with S = (I - p 1^T) diag(sqrt p), which centres the rows.
    mean = jnp.einsum("bd,bdn->bn", p, matrix, precision="highest")
    centred = jnp.sqrt(p)[..., None] * (matrix - mean[:, None])
    _, values, right = jnp.linalg.svd(centred, full_matrices=False)
    return values**2, right.reshape(len(x), right.shape[1], *x.shape[1:])


def _with_residuals(
    values: jax.Array, vectors: jax.Array, num_steps: int
) -> linalg.Eigenpairs:
    rounding = 20 * linalg.machine_epsilon(values.dtype) * values[:, :1]
    residual = jnp.broadcast_to(rounding, values.shape)
    return linalg.Eigenpairs(values, vectors, residual, jnp.int32(num_steps))


class ParameterMap(NamedTuple):
    """A symmetric map on the parameters of a network.

    Attributes:
      map: a batch of one map on vectors of all n parameters, for the functions of
        :mod:`opnorm.linalg`.
      ravel: a function from a tree like the parameters to a vector ``(1, n)``.
      unravel: a function from a vector ``(n,)`` to a tree like the parameters.
    """

    map: linalg.LinearMap
    ravel: Callable[[Params], jax.Array]
    unravel: Callable[[jax.Array], Params]


def parameter_hessian(
    loss: Callable[[Params, PyTree], jax.Array], params: Params, batches: PyTree
) -> ParameterMap:
    """Returns the Hessian in the parameters of the mean loss over a data set.

    Each product passes over all batches, one after the other. To spread the work over
    devices, put ``batches`` on a mesh with the second axis sharded and the parameters
    replicated, and use the map under ``jit``. The axes of the mesh must have the type
    ``jax.sharding.AxisType.Auto``; pass ``axis_types`` to :func:`jax.make_mesh`.

    Args:
      loss: ``(params, batch) -> scalar``, the mean over a batch. Its rows must be
        independent (BatchNorm on running statistics), so that the mean over batches is
        the mean over the data set.
      params: pytree of float arrays or numbers; or a network that is a pytree, such as
        an NNX or Equinox module, for losses ``(network, batch) -> scalar``. Its
        parameters are then the variables of the type ``nnx.Param`` of an NNX module,
        else the floating point arrays below "params" where some path has it, else all
        floating point arrays. Other leaves are constant.
      batches: pytree of arrays ``(S, b, ...)``, S batches of equal size.

    Returns:
      The map; a product costs about four forward and backward passes of the data set.

    Raises:
      ValueError: for batches without a common first axis, or parameters that are not
        float.

    Source: Pearlmutter 1994.
    """

    if callable(params):
        chosen = choose_parameters(params)
        return _of_network(
            parameter_hessian(
                lambda leaves, batch: loss(
                    put_parameters(params, chosen, leaves), batch
                ),
                take_parameters(params, chosen),
                batches,
            ),
            params,
            chosen,
        )

    def product(params: Params, batch: PyTree, v: Params) -> Params:
        gradient = jax.grad(lambda params: loss(params, batch))
        return jax.jvp(gradient, (params,), (v,))[1]

    return _over_batches(product, params, batches)


def gauss_newton(
    f: Callable[[Params, PyTree], jax.Array],
    loss: Callable[[jax.Array, PyTree], jax.Array],
    params: Params,
    batches: PyTree,
) -> ParameterMap:
    """Returns the generalised Gauss-Newton matrix of the mean loss over a data set.

    The matrix is ``J^T H J`` with the Jacobian J of the logits in the parameters and
    the Hessian H of the loss in the logits. It is positive semidefinite for a convex
    loss, and the Fisher matrix for the cross-entropy.

    Args:
      f: ``(params, batch) -> logits``.
      loss: ``(logits, batch) -> scalar``, the mean over a batch.
      params: as in :func:`parameter_hessian`.
      batches: pytree of arrays ``(S, b, ...)``, S batches of equal size.

    Returns:
      The map; a product costs about two thirds of a product with the Hessian.

    Raises:
      ValueError: as :func:`parameter_hessian`.

    Source: Schraudolph 2002.
    """

    if callable(params):
        chosen = choose_parameters(params)
        return _of_network(
            gauss_newton(
                lambda leaves, batch: f(put_parameters(params, chosen, leaves), batch),
                loss,
                take_parameters(params, chosen),
                batches,
            ),
            params,
            chosen,
        )

    def product(params: Params, batch: PyTree, v: Params) -> Params:
        def network(params: Params) -> jax.Array:
            return f(params, batch)

        logits, push = jax.linearize(network, params)
        gradient = jax.grad(lambda logits: loss(logits, batch))
        bent = jax.jvp(gradient, (logits,), (push(v),))[1]
        return jax.linear_transpose(push, params)(bent)[0]

    return _over_batches(product, params, batches)


def _of_network(
    found: ParameterMap, network: Network, chosen: tuple[int, ...]
) -> ParameterMap:
    """The map on the parameters of a network, whose trees are networks."""
    return ParameterMap(
        found.map,
        lambda tree: found.ravel(take_parameters(tree, chosen)),
        lambda vector: put_parameters(network, chosen, found.unravel(vector)),
    )


def _over_batches(
    product: Callable[[Params, PyTree, Params], Params],
    params: Params,
    batches: PyTree,
) -> ParameterMap:
    kinds = {
        a.dtype if hasattr(a, "dtype") else np.asarray(a).dtype
        for a in jax.tree.leaves(params)
    }
    if not kinds or not all(jnp.issubdtype(kind, jnp.floating) for kind in kinds):
        raise ValueError(
            f"params has leaves of {sorted(map(str, kinds))}; they must be floating "
            "point, unless params is a network."
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

        wide = at_least_single(flat.dtype)
        total = linalg.fori_loop(count, add, jnp.zeros(flat.shape, wide))
        return (total / count)[None]

    shape = flat.shape
    linear_map = linalg.LinearMap(matvec, matvec, 1, shape, shape, flat.dtype)
    return ParameterMap(
        linear_map, lambda tree: jax.flatten_util.ravel_pytree(tree)[0][None], unravel
    )
