"""linalg: (p, q) norms of dense matrices, exactly where that is feasible."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from opnorm.linalg import norms
from opnorm.linalg.linear_map import as_batch, from_matrix
from opnorm.linalg.operator_norm import check_options, operator_norm

# Sign vectors evaluated at once: bounds the memory of an enumeration.
_CHUNK = 512


class MatrixNorm(NamedTuple):
    """A (p, q) norm per matrix, how it was found, and the vectors that attain it.

    Attributes:
      value: ``(B,)``, or a scalar for one matrix.
      right: ``(B, n)`` or ``(n,)``, v with ``||v||_p = 1``.
      left: ``(B, d)`` or ``(d,)``, ``T_q(A v)``.
      method: "column" (p = 1), "row" (q = inf), "singular_value" (p = q = 2),
        "enumeration" of sign vectors (p = inf or q = 1), or "iteration".
      exact: False for "iteration", whose value is a lower bound.
    """

    value: jax.Array
    right: jax.Array
    left: jax.Array
    method: str
    exact: bool


def matrix_norm(
    matrix: jax.Array,
    p: float,
    q: float,
    *,
    num_restarts: int = 30,
    num_steps: int = 50,
    key: jax.Array | None = None,
    max_enumeration: int = 2**14,
) -> MatrixNorm:
    """Computes ``||A||_{p,q} = max ||A v||_q over ||v||_p = 1`` of dense matrices.

    For p = 1 it is the largest q-norm of a column, for q = inf the largest p*-norm of a
    row, for p = q = 2 the largest singular value. For p = inf the maximum of a convex
    function over a cube is at one of its 2^n corners, and for q = 1 it is
    ``max ||A^T s||_{p*}`` over the 2^d sign vectors s: NP-hard, but enumerated while
    the corners are few. Every other case is iterated from several starts.

    The value can be differentiated: it is ``<left, A right>`` with both vectors held
    constant, whose gradient is a subgradient of the norm where several vectors attain
    it, and 0 at zero. The vectors carry no gradient, and second derivatives of the
    value are wrong.

    Args:
      matrix: ``(d, n)`` or ``(B, d, n)`` float.
      p: exponent of the input norm, in [1, inf].
      q: exponent of the output norm, in [1, inf].
      num_restarts: starts of an iteration.
      num_steps: power steps of an iteration.
      key: typed key of an iteration's starts; None for a fixed one.
      max_enumeration: most sign vectors (counting s and -s once) to enumerate.

    Returns:
      The norm, its vectors, and how it was found.

    Raises:
      ValueError: for a matrix of another rank, exponents outside [1, inf], or
        iteration options out of range.

    Source: Roth et al. 2020, Table 1.
    """
    p, q = norms.check_exponent("p", p), norms.check_exponent("q", q)
    check_options(num_steps, None, math.inf, num_restarts)
    batch = as_batch(matrix)
    batch = batch.astype(jnp.promote_types(batch.dtype, jnp.float32))
    _, d, n = batch.shape
    if p == 1:
        method = "column"
    elif q == math.inf:
        method = "row"
    elif p == q == 2:
        method = "singular_value"
    elif min(n if p == math.inf else math.inf, d if q == 1 else math.inf) <= (
        1 + math.log2(max_enumeration)
    ):
        method = "enumeration"
    else:
        method = "iteration"
    value, right, left = _compute(
        batch,
        jax.random.key(0) if key is None else key,
        method,
        p,
        q,
        num_restarts,
        num_steps,
    )
    if jnp.ndim(matrix) == 2:
        value, right, left = value[0], right[0], left[0]
    return MatrixNorm(value, right, left, method, method != "iteration")


@functools.partial(jax.jit, static_argnums=range(2, 7))
def _compute(
    batch: jax.Array,
    key: jax.Array,
    method: str,
    p: float,
    q: float,
    num_restarts: int,
    num_steps: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The norms and their right and left vectors."""
    given, batch = batch, lax.stop_gradient(batch)
    if method == "column":
        right = _column(batch, q)
    elif method == "row":
        right = _row(batch, p)
    elif method == "singular_value":
        right = _singular(batch)
    elif method == "enumeration":
        right = _enumerate(batch, p, q)
    else:
        right = operator_norm(
            from_matrix(batch),
            p=p,
            q=q,
            num_steps=num_steps,
            num_restarts=num_restarts,
            key=key,
        ).right
    # A zero matrix prefers no direction; the first axis has norm 1 for every p.
    alive = norms.norm(right, math.inf)[:, None] > 0
    first = jnp.zeros_like(right).at[:, 0].set(1.0)
    right = jnp.where(alive, right, first)
    right = lax.stop_gradient(right)
    image = jnp.einsum("bdn,bn->bd", given, right, precision="highest")
    left = norms.dual_map(lax.stop_gradient(image), q)
    return norms.norm(image, q), right, left


def _enumerate(batch: jax.Array, p: float, q: float) -> jax.Array:
    """The sign vectors of whichever side has to be, and has fewer of them."""
    _, d, n = batch.shape
    if p == math.inf and (q != 1 or n <= d):
        return _corner(batch, q)
    dual = norms.conjugate_exponent(p)
    left = _corner(jnp.swapaxes(batch, 1, 2), dual)
    pulled = jnp.einsum("bdn,bd->bn", batch, left, precision="highest")
    return norms.dual_map(pulled, dual)


def _column(batch: jax.Array, q: float) -> jax.Array:
    count, d, n = batch.shape
    columns = jnp.swapaxes(batch, 1, 2).reshape(count * n, d)
    best = jnp.argmax(norms.norm(columns, q).reshape(count, n), axis=1)
    return jax.nn.one_hot(best, n, dtype=batch.dtype)


def _row(batch: jax.Array, p: float) -> jax.Array:
    count, d, n = batch.shape
    dual = norms.conjugate_exponent(p)
    sizes = norms.norm(batch.reshape(count * d, n), dual).reshape(count, d)
    best = jnp.argmax(sizes, axis=1)
    row = jnp.take_along_axis(batch, best[:, None, None], axis=1)[:, 0]
    return norms.dual_map(row, dual)


def _singular(batch: jax.Array) -> jax.Array:
    scaled, _ = norms.rescale(batch, (1, 2))
    _, _, right = jnp.linalg.svd(scaled, full_matrices=False)
    return right[:, 0]


def _corner(batch: jax.Array, q: float) -> jax.Array:
    """The sign vector s that maximises ||A s||_q; s and -s count once."""
    count, d, n = batch.shape
    total = 2 ** (n - 1)
    codes = np.arange(total)[:, None] >> np.arange(n - 1)[None] & 1
    signs = np.concatenate([np.ones((total, 1)), 1.0 - 2.0 * codes], axis=1)
    best = jnp.full((count,), -jnp.inf, batch.dtype)
    corner = jnp.ones((count, n), batch.dtype)
    for start in range(0, total, _CHUNK):
        chunk = jnp.asarray(signs[start : start + _CHUNK], batch.dtype)
        images = jnp.einsum("bdn,sn->bsd", batch, chunk, precision="highest")
        sizes = norms.norm(images.reshape(-1, d), q).reshape(count, len(chunk))
        place = jnp.argmax(sizes, axis=1)
        size = jnp.max(sizes, axis=1)
        corner = jnp.where((size > best)[:, None], chunk[place], corner)
        best = jnp.maximum(best, size)
    return corner
