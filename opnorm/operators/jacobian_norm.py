"""(p, q) norms and leading singular triplets of the Jacobian of a network."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from opnorm import linalg
from opnorm.linalg import BatchFunction, krylov
from opnorm.linalg.dtypes import at_least_single
from opnorm.linalg.norms import rescale
from opnorm.linalg.operator_norm import check_options, evaluate
from opnorm.operators import jacobian

METHODS = ("auto", "dense", "iterative", "golub_kahan")
# For K = 10 steps of two passes each, 1.6 K transposed passes cost as much, since a
# transposed pass of a convolutional network costs more than a forward pass.
_ROWS_PER_STEP = 1.6


def jacobian_norm(
    f: BatchFunction,
    x: jax.Array,
    *,
    p: float = 2.0,
    q: float = 2.0,
    method: str = "auto",
    num_steps: int = 10,
    tolerance: float | None = None,
    step_size: float | jax.Array = math.inf,
    num_restarts: int = 1,
    init: jax.Array | None = None,
    key: jax.Array | None = None,
) -> linalg.OperatorNorm:
    """Computes ``||J_f(x)||_{p,q} = max ||J v||_q over ||v||_p = 1`` of each example.

    The methods and their costs in passes through the network are:

    - "dense": the whole Jacobian, d transposed passes. The norm is exact for p = q = 2
      (eigenvectors of the d x d Gram matrix) and where
      :func:`opnorm.linalg.matrix_norm` is exact. Other norms are iterated on the (d, n)
      matrix from at least 10 starts, at almost no cost.
    - "iterative": ``num_steps`` steps of the power method or of gradient ascent
      (:func:`opnorm.linalg.operator_norm`), two passes each.
    - "golub_kahan": ``num_steps`` steps, two passes each, for p = q = 2 only. It is far
      more accurate than the same number of power steps.
    - "auto": "dense" if min(d, n) is at most 1.6 num_steps. Otherwise "golub_kahan" for
      p = q = 2 and "iterative" for other norms. With a tolerance or a finite step_size
      it is "iterative". For an f with reverse mode alone that JAX cannot transpose,
      such as a callback under ``jax.custom_vjp``, "auto" without these two is "dense".

    The value can be differentiated with respect to the arrays of ``f``. No gradient
    flows through the search. The value is ``<u, J v>`` with u and v held constant, and
    its gradient is that of the norm (envelope theorem). This costs one more forward
    pass. Second derivatives of the value are wrong.

    If f is a callable pytree, such as :func:`opnorm.models.network` returns, a call
    outside ``jit`` compiles once for all such networks. A plain function is compiled in
    each call, since it may close over values that have changed. If ``x`` is spread over
    a mesh, the axes of the mesh must have the type ``jax.sharding.AxisType.Auto``; pass
    ``axis_types`` to :func:`jax.make_mesh`.

    Args:
      f: batch function ``(B, ...) -> (B, d)`` with independent rows.
      x: ``(B, ...)`` float, in [0, 1] pixel units.
      p: exponent of the input norm, in [1, inf].
      q: exponent of the output norm, in [1, inf].
      method: "dense", "iterative", "golub_kahan" or "auto".
      num_steps: steps of an iteration, at least 0.
      tolerance: an iteration stops when the residual is at most this; or None.
      step_size: inf for the power method, or the step of projected gradient ascent.
      num_restarts: number of starts of "iterative", and of "dense" where it iterates;
        the best value of each example is kept. An exact norm and "golub_kahan" use one
        start.
      init: an array with the shape of ``x``, the first start, such as ``right`` of an
        earlier call. An exact "dense" norm ignores it.
      key: typed key of random starts; "dense" needs none.

    Returns:
      Norms, vectors and residuals, and the number of steps (0 for "dense").

    Raises:
      ValueError: for an unknown method, an option that is out of range or that the
        method does not have, a missing start, a key that is not typed, and as
        :func:`opnorm.operators.jacobian_map`.

    Source: Roth et al. 2020, Eqs. 6-13.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import operators
      >>> weights = jnp.array([[3.0, 0.0], [4.0, 2.0]])
      >>> f = jax.tree_util.Partial(lambda w, x: jnp.sin(x) @ w, weights)
      >>> found = operators.jacobian_norm(f, jnp.zeros((1, 2)), p=jnp.inf, q=2)
      >>> print(np.asarray(found.value).round(3), found.right)
      [7.28] [[1. 1.]]
    """
    p, q = linalg.check_exponent("p", p), linalg.check_exponent("q", q)
    num_steps, num_restarts = check_options(
        num_steps, tolerance, step_size, num_restarts
    )
    if key is not None:
        linalg.check_key(key)
    d = jacobian.check(f, x)
    euclidean = p == q == 2
    traced = isinstance(step_size, jax.core.Tracer)
    power = not traced and step_size == math.inf
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it may be {', '.join(METHODS)}.")
    if method == "golub_kahan" and not euclidean:
        raise ValueError(f"method 'golub_kahan' is for p = q = 2, not {p}, {q}.")
    if method in ("dense", "golub_kahan") and (tolerance is not None or not power):
        raise ValueError(f"method {method!r} has no tolerance and no step_size.")
    if method == "golub_kahan" and num_restarts != 1:
        raise ValueError(f"num_restarts is {num_restarts}; 'golub_kahan' starts once.")
    if init is not None and init.shape != x.shape:
        raise ValueError(f"init has shape {init.shape}; it must be {x.shape}.")
    automatic = method == "auto"
    if automatic:
        if tolerance is not None or not power:
            method = "iterative"
        elif min(d, math.prod(x.shape[1:])) <= _ROWS_PER_STEP * num_steps:
            method = "dense"
        else:
            method = "golub_kahan" if euclidean and num_steps else "iterative"
    automatic = automatic and method != "dense" and tolerance is None and power
    if method == "golub_kahan" and num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; 'golub_kahan' needs at least 1.")
    return _norm(
        f,
        x,
        init,
        key,
        step_size if traced else None,
        method=method,
        p=p,
        q=q,
        num_steps=num_steps,
        tolerance=tolerance,
        fixed_step_size=None if traced else float(step_size),
        num_restarts=num_restarts,
        automatic=automatic,
    )


@linalg.network_program
def _norm(
    f: BatchFunction,
    x: jax.Array,
    init: jax.Array | None,
    key: jax.Array | None,
    step_size: jax.Array | None,
    *,
    method: str,
    p: float,
    q: float,
    num_steps: int,
    tolerance: float | None,
    fixed_step_size: float | None,
    num_restarts: int,
    automatic: bool,
) -> linalg.OperatorNorm:
    held, init, key = lax.stop_gradient((x, init, key))
    linear_map = jacobian.jacobian_map(linalg.detach(f, held), held)
    if automatic and not jacobian.has_matvec(linear_map):
        method = "dense"
    if method == "iterative":
        size = fixed_step_size if step_size is None else step_size
        assert size is not None
        found = linalg.operator_norm(
            linear_map,
            p=p,
            q=q,
            num_steps=num_steps,
            tolerance=tolerance,
            step_size=size,
            num_restarts=num_restarts,
            init=init,
            key=key,
        )
    elif method == "golub_kahan":
        found = _golub_kahan(linear_map, num_steps, init, key)
    else:
        found = _dense(linear_map, p, q, num_steps, num_restarts, init, key)
    right = lax.stop_gradient(found.right).astype(x.dtype)
    if jacobian.has_forward_mode(linear_map):
        image = jacobian.directional_derivative(f, x, right)
        left = lax.stop_gradient(linalg.dual_map(image, q))
        value = linalg.inner(left, image)
    else:
        out, pull = jax.vjp(f, x)
        left = lax.stop_gradient(found.left)
        value = linalg.inner(pull(left.astype(out.dtype))[0], right)
    return linalg.OperatorNorm(
        value,
        right,
        left,
        lax.stop_gradient(found.residual),
        found.num_steps,
    )


def singular_triplets(
    f: BatchFunction,
    x: jax.Array,
    k: int = 1,
    *,
    method: str = "auto",
    num_steps: int | None = None,
    key: jax.Array | None = None,
) -> linalg.SingularTriplets:
    """Computes the leading k singular triplets of each example's Jacobian.

    Calls outside ``jit`` compile as those of :func:`jacobian_norm`.

    Args:
      f: batch function ``(B, ...) -> (B, d)`` with independent rows.
      x: ``(B, ...)`` float.
      k: number of triplets, from 1 to min(d, n).
      method: "dense" (all d rows, then a singular value decomposition), "golub_kahan"
        (:func:`opnorm.linalg.golub_kahan`), or "auto" for the method with fewer passes
        ("dense" if f has reverse mode alone and JAX cannot transpose it).
      num_steps: steps of "golub_kahan"; None for min(d, n, 2 k + 5).
      key: typed key of the random start of "golub_kahan"; None for a fixed key.

    Returns:
      ``values`` ``(B, k)``, ``right`` ``(B, k, *x.shape[1:])``, ``left`` ``(B, k, d)``,
      and ``residual`` ``(B, k)``. They carry no gradient.

    Raises:
      ValueError: for an unknown method, k or num_steps out of range, a key that is not
        typed, and as :func:`opnorm.operators.jacobian_map`.
    """
    d = jacobian.check(f, x)
    most = min(d, math.prod(x.shape[1:]))
    k = linalg.check_count("k", k, 1, most)
    if num_steps is not None:
        num_steps = linalg.check_count("num_steps", num_steps, 1)
    if key is not None:
        linalg.check_key(key)
    if method not in ("auto", "dense", "golub_kahan"):
        raise ValueError(f"method is {method!r}; it may be auto, dense or golub_kahan.")
    steps = min(most, 2 * k + 5) if num_steps is None else num_steps
    automatic = method == "auto"
    if automatic:
        method = "golub_kahan" if most > _ROWS_PER_STEP * steps else "dense"
        automatic = method == "golub_kahan"

    key = jax.random.key(0) if key is None else key
    return _triplets(
        f, x, key, k=k, method=method, num_steps=steps, automatic=automatic
    )


@linalg.network_program
def _triplets(
    f: BatchFunction,
    x: jax.Array,
    key: jax.Array,
    *,
    k: int,
    method: str,
    num_steps: int,
    automatic: bool,
) -> linalg.SingularTriplets:
    x, key = lax.stop_gradient((x, key))
    linear_map = jacobian.jacobian_map(linalg.detach(f, x), x)
    if automatic and not jacobian.has_matvec(linear_map):
        method = "dense"
    if method == "golub_kahan":
        found = linalg.golub_kahan(linear_map, k, num_steps=num_steps, key=key)
        return lax.stop_gradient(found)
    matrix = jacobian.materialize(linear_map)
    matrix = matrix.astype(at_least_single(matrix.dtype))
    scaled, size = rescale(matrix, (1, 2))
    left, values, right = jnp.linalg.svd(scaled, full_matrices=False)
    values, left, right = values[:, :k], left[:, :, :k], right[:, :k]
    pulled = jnp.einsum("bdn,bdk->bkn", scaled, left, precision="highest")
    error = jnp.linalg.norm(pulled - values[:, :, None] * right, axis=-1)
    rounding = krylov.ROUNDING * linalg.machine_epsilon(matrix.dtype)
    residual = size[:, 0] * (error + rounding * values[:, :1])
    values = size[:, 0] * values
    found = linalg.SingularTriplets(
        values,
        right.reshape(len(x), k, *x.shape[1:]),
        jnp.swapaxes(left, 1, 2),
        residual,
        jnp.int32(0),
    )
    return lax.stop_gradient(found)


def _golub_kahan(
    linear_map: linalg.LinearMap,
    num_steps: int,
    init: jax.Array | None,
    key: jax.Array | None,
) -> linalg.OperatorNorm:
    steps = min(num_steps, linear_map.in_size, linear_map.out_size)
    start = None if init is None else linear_map.matvec(init)
    found = linalg.golub_kahan(linear_map, num_steps=steps, init=start, key=key)
    value, right, left = found.values[:, 0], found.right[:, 0], found.left[:, 0]
    # ||J^T u||^2 = sigma^2 + error^2, since the error is orthogonal to v. The larger of
    # the two is the unit, so that squares neither overflow nor vanish, and the residual
    # is written without a difference.
    error = found.residual[:, 0]
    size = jnp.maximum(value, error)
    size = jnp.where(size == 0, 1.0, size)
    a, b = value / size, error / size
    bound = jnp.sqrt(a * a + b * b)
    residual = b * b / jnp.where(bound == 0, 1.0, bound * (bound + a))
    return linalg.OperatorNorm(value, right, left, residual, jnp.int32(steps))


def _fix_sign(vectors: jax.Array) -> jax.Array:
    """Vectors ``(B, d)`` with signs that make the entry of largest modulus positive.

    A decomposition may return either sign, and rounding may decide which one. Without
    this, a search along the vector would depend on the size of the batch, and so on the
    number of devices.
    """
    largest = jnp.argmax(jnp.abs(vectors), axis=1, keepdims=True)
    entry = jnp.take_along_axis(vectors, largest, axis=1)
    return jnp.where(entry < 0, -vectors, vectors)


def _dense(
    linear_map: linalg.LinearMap,
    p: float,
    q: float,
    num_steps: int,
    num_restarts: int,
    init: jax.Array | None,
    key: jax.Array | None,
) -> linalg.OperatorNorm:
    matrix = jacobian.materialize(linear_map)
    wide = matrix.astype(at_least_single(matrix.dtype))
    if p == q == 2 and linear_map.out_size <= linear_map.in_size:
        # The matrix is scaled, so that squares neither overflow nor vanish.
        scaled, _ = rescale(wide, (1, 2))
        gram = jnp.einsum("bdn,ben->bde", scaled, scaled, precision="highest")
        _, vectors = jnp.linalg.eigh(gram)
        top = _fix_sign(vectors[:, :, -1])
        pulled = jnp.einsum("bdn,bd->bn", scaled, top, precision="highest")
        right = linalg.dual_map(pulled, 2.0)
        fallback = jax.nn.one_hot(jnp.zeros(len(wide), int), wide.shape[2])
        # A vector that is zero or NaN has no direction.
        alive = linalg.norm(right, 2.0) > 0
        right = jnp.where(alive[:, None], right, fallback.astype(wide.dtype))
    else:
        best = linalg.matrix_norm(
            wide,
            p,
            q,
            num_steps=num_steps,
            num_restarts=max(num_restarts, 10),
            key=key,
        )
        right = best.right
        if init is not None and not best.exact:
            warm = linalg.operator_norm(
                linalg.from_matrix(wide),
                p=p,
                q=q,
                num_steps=num_steps,
                init=init.reshape(right.shape),
            )
            wins = warm.value > best.value
            right = jnp.where(wins[:, None], warm.right, right)
    value, left, _, residual = evaluate(linalg.from_matrix(wide), right, p, q)
    shaped = right.reshape(len(wide), *linear_map.in_shape)
    return linalg.OperatorNorm(value, shaped, left, residual, jnp.int32(0))
