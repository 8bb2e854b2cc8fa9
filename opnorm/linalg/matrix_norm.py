"""(p, q) norms of dense matrices, exact where that is feasible."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from opnorm.linalg import norms
from opnorm.linalg.dtypes import at_least_single
from opnorm.linalg.linear_map import as_batch, from_matrix
from opnorm.linalg.operator_norm import check_options, operator_norm
from opnorm.linalg.typed import jit

# The number of sign vectors that are evaluated at once bounds the memory.
_CHUNK = 512


class MatrixNorm(NamedTuple):
    """A (p, q) norm per matrix, the vectors that attain it, and how it was computed.

    Attributes:
      value: ``(B,)``, or a scalar for one matrix.
      right: ``(B, n)`` or ``(n,)``, v with ``||v||_p = 1``.
      left: ``(B, d)`` or ``(d,)``, ``T_q(A v)``.
      method: "column" (p = 1), "row" (q = inf), "singular_value" (p = q = 2),
        "enumeration" of sign vectors (p = inf or q = 1), or "iteration".
      exact: False for the method "iteration", whose value is a lower bound.
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

    - p = 1: the norm is the largest q-norm of a column.
    - q = inf: the norm is the largest p*-norm of a row.
    - p = q = 2: the norm is the largest singular value.
    - p = inf: the maximum over a cube is at one of its 2^n corners. For q = 1 the norm
      is ``max ||A^T s||_{p*}`` over the 2^d sign vectors s. Both problems are NP-hard;
      the sign vectors are enumerated if they are few.
    - In every other case the norm is iterated from several starts.

    The value can be differentiated: it is ``<left, A right>`` with both vectors held
    constant. Its gradient is a subgradient of the norm where several vectors attain
    the norm, and 0 at zero. The vectors carry no gradient, and second derivatives of
    the value are wrong.

    Args:
      matrix: ``(d, n)`` or ``(B, d, n)`` float.
      p: exponent of the input norm, in [1, inf].
      q: exponent of the output norm, in [1, inf].
      num_restarts: number of starts of an iteration.
      num_steps: number of power steps of an iteration.
      key: typed key of the starts of an iteration; None for a fixed key.
      max_enumeration: largest number of sign vectors to enumerate; s and -s count once.

    Returns:
      The norm, its vectors, and the method.

    Raises:
      ValueError: for a matrix of another rank, exponents outside [1, inf], or
        iteration options out of range.

    Source: Roth et al. 2020, Table 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from opnorm import linalg
      >>> found = linalg.matrix_norm(jnp.array([[1.0, 2.0], [3.0, -4.0]]), jnp.inf, 1)
      >>> print(found.value, found.right, found.method)
      8.0 [ 1. -1.] enumeration
    """
    p, q = norms.check_exponent("p", p), norms.check_exponent("q", q)
    check_options(num_steps, None, math.inf, num_restarts)
    batch = as_batch(matrix)
    batch = batch.astype(at_least_single(batch.dtype))
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


@jit(static_argnums=range(2, 7))
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
    # Every direction attains the norm of a zero matrix. The first axis has norm 1 for
    # every p.
    alive = norms.norm(right, math.inf)[:, None] > 0
    first = jnp.zeros_like(right).at[:, 0].set(1.0)
    right = jnp.where(alive, right, first)
    right = lax.stop_gradient(right)
    image = jnp.einsum("bdn,bn->bd", given, right, precision="highest")
    left = norms.dual_map(lax.stop_gradient(image), q)
    return norms.norm(image, q), right, left


def _enumerate(batch: jax.Array, p: float, q: float) -> jax.Array:
    """The right vectors; sign vectors are enumerated on the side that has fewer."""
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
