"""Extreme eigenvalues of symmetric maps by the Lanczos process."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from opnorm.linalg import checks, krylov, loops, norms
from opnorm.linalg.dtypes import at_least_single
from opnorm.linalg.linear_map import LinearMap
from opnorm.linalg.typed import machine_epsilon

ENDS = ("largest", "smallest", "magnitude")


class Tridiagonal(NamedTuple):
    """A symmetric map restricted to a Krylov space.

    The restriction is a tridiagonal matrix T with ``A Q = Q T + beta_m q e_m^T``.

    Attributes:
      diagonal: ``(B, m)``, the diagonal of T.
      off_diagonal: ``(B, m)``, the entries beside the diagonal of T, then ``beta_m``.
      basis: ``(B, m, *shape)``, the orthonormal columns of Q; None if they were not
        kept.
      removed: ``(B, m)``, bounds of the errors of the columns of T, from the components
        that orthogonalisation removed from A Q. They are rounding, unless the map is
        not symmetric or multiplies in a narrower dtype. None without a basis.
      num_steps: int32 scalar, how many of the m columns were computed.
    """

    diagonal: jax.Array
    off_diagonal: jax.Array
    basis: jax.Array | None
    removed: jax.Array | None
    num_steps: jax.Array


class Eigenpairs(NamedTuple):
    """k eigenpairs of each map.

    Attributes:
      values: ``(B, k)``, in the order of the argument ``which``.
      vectors: ``(B, k, *shape)``, orthonormal.
      residual: ``(B, k)``, a bound of ``||A v - lambda v||`` with an allowance for
        rounding. A symmetric map has an eigenvalue within this distance of each value.
        The residual is large for a map that is not symmetric.
      num_steps: int32 scalar, the number of products with the map.
    """

    values: jax.Array
    vectors: jax.Array
    residual: jax.Array
    num_steps: jax.Array


def lanczos(
    linear_map: LinearMap,
    num_steps: int,
    *,
    init: jax.Array | None = None,
    key: jax.Array | None = None,
    reorthogonalize: bool = True,
) -> Tridiagonal:
    """Runs the Lanczos process on a batch of symmetric maps, one product a step.

    With ``reorthogonalize``, every vector is made orthogonal to all vectors before it
    (classical Gram-Schmidt, twice, in float32 or wider), and the m vectors are kept. No
    eigenpair is found twice. A Krylov space contains one vector of each eigenspace, so
    a repeated eigenvalue is found once until the space is exhausted. Then the process
    continues from a random direction (repeated eigenvalues, low rank, zero map), and n
    steps find every eigenvalue with its multiplicity.

    Without it, three vectors are held for every m. Extreme eigenvalues are still right,
    but copies of them appear after they have converged. Copies do not change
    :func:`spectral_density`, which uses this variant. An exhausted space leaves zeros
    in T.

    There is no block variant, since on the spectra of networks it took more products
    for each eigenvalue than single vectors do.

    Args:
      linear_map: B symmetric maps; ``rmatvec`` is not used.
      num_steps: m, from 1 to n.
      init: ``(B, *shape)``, the first vectors; random if None.
      key: typed key of a random start and of restarts; needed without ``init``.
      reorthogonalize: whether the basis is orthogonalised and kept.

    Returns:
      The tridiagonal matrices, with the basis if it was orthogonalised.

    Raises:
      ValueError: for maps that are not square, num_steps out of range, no start or one
        of another shape, or a key that is not typed.

    Source: Lanczos 1950; Paige 1972.

    Example:
      Three steps find all eigenvalues of a symmetric 3 x 3 matrix.

      >>> import jax
      >>> import numpy as np
      >>> from opnorm import linalg
      >>> @jax.jit
      ... def pairs(matrix, key):
      ...     tridiagonal = linalg.lanczos(linalg.from_matrix(matrix), 3, key=key)
      ...     return linalg.ritz_pairs(tridiagonal, k=2, which="magnitude")
      >>> found = pairs(np.diag([1.0, 2.0, -4.0]), jax.random.key(0))
      >>> print(np.asarray(found.values).round(4))
      [[-4.  2.]]
    """
    state = _start(linear_map, num_steps, init, key, reorthogonalize)
    body = _step(linear_map, reorthogonalize, key)
    state = loops.fori_loop(num_steps, lambda _, s: body(s), state)
    return _finish(linear_map, num_steps, state, reorthogonalize)


def eigenpairs(
    linear_map: LinearMap,
    k: int = 1,
    *,
    which: str = "magnitude",
    num_steps: int | None = None,
    tolerance: float | None = None,
    init: jax.Array | None = None,
    key: jax.Array | None = None,
) -> Eigenpairs:
    """Computes k extreme eigenpairs of each symmetric map, with error bars.

    A process finds a repeated eigenvalue once, unless its Krylov space is exhausted,
    which happens after n steps at the latest. With a tolerance and k of 2 or more,
    repeated eigenvalues are found with their multiplicity: further processes start
    from random directions orthogonal to the pairs that have converged, until a process
    changes no value by more than the tolerance. This at least doubles the number of
    products. Copies may be missing if ``num_steps`` is reached before, and without a
    tolerance.

    To get both ends of a spectrum from one process, call :func:`lanczos` once and
    :func:`ritz_pairs` twice. Derivatives through the process are NaN at repeated
    values.

    Args:
      linear_map: B symmetric maps.
      k: number of pairs.
      which: "largest", "smallest" or "magnitude" (largest in absolute value).
      num_steps: largest number of products with the map; None for
        ``min(n, 2 k + 20)``.
      tolerance: the process stops when every residual is at most this times the
        absolute value of its eigenvalue; with None it takes every step. A zero
        eigenvalue never satisfies a tolerance.
      init: ``(B, *shape)``, the first vectors, such as earlier eigenvectors. With
        ``k=1`` and a tolerance, the process stops at an eigenvector of any eigenvalue.
      key: typed key; needed without ``init``.

    Returns:
      The pairs; NaN for a map with NaN.

    Raises:
      ValueError: for k, which, num_steps or tolerance out of range, and as
        :func:`lanczos`.

    Source: Lanczos 1950; Parlett 1980 for the residuals.
    """
    steps = min(linear_map.in_size, 2 * k + 20) if num_steps is None else num_steps
    _check_wanted(k, which, steps)
    krylov.check_tolerance(tolerance)
    if tolerance is not None and k > 1:
        return _sweep(linear_map, k, which, steps, tolerance, init, key)
    state = _start(linear_map, steps, init, key, True)
    body = _step(linear_map, True, key)
    if tolerance is None:
        state = loops.fori_loop(steps, lambda _, s: body(s), state)
    else:

        def unfinished(carry: tuple[_State, jax.Array]) -> jax.Array:
            state, done = carry
            return ~done & (state.step < steps)

        def advance(carry: tuple[_State, jax.Array]) -> tuple[_State, jax.Array]:
            state = body(carry[0])
            values, _, residual = _ritz(_numbers(state), k, which)
            return state, jnp.all(residual <= tolerance * jnp.abs(values))

        state, _ = loops.while_loop(
            unfinished, advance, (state, linear_map.spread(jnp.zeros((), bool)))
        )
    return ritz_pairs(_finish(linear_map, steps, state, True), k, which=which)


def ritz_pairs(
    tridiagonal: Tridiagonal, k: int = 1, *, which: str = "magnitude"
) -> Eigenpairs:
    """Computes k eigenpairs from a Krylov space, without a product with the map.

    Args:
      tridiagonal: m columns from :func:`lanczos` with ``reorthogonalize``.
      k: number of pairs, from 1 to m.
      which: "largest", "smallest" or "magnitude".

    Returns:
      The pairs, best first: ``(B, k)`` values and residuals.

    Raises:
      ValueError: for k or which out of range, or without a basis.
    """
    _check_wanted(k, which, tridiagonal.diagonal.shape[1])
    if tridiagonal.basis is None or tridiagonal.removed is None:
        raise ValueError("tridiagonal has no basis; it needs reorthogonalize=True.")
    numbers = _Numbers(
        tridiagonal.diagonal,
        tridiagonal.off_diagonal,
        tridiagonal.removed,
        0.0,
        tridiagonal.num_steps,
    )
    values, small, residual = _ritz(numbers, k, which)
    vectors = jnp.einsum(
        "bmk,bm...->bk...", small, tridiagonal.basis, precision="highest"
    )
    return Eigenpairs(values, vectors, residual, tridiagonal.num_steps)


class _State(NamedTuple):
    """The state of a process.

    ``vectors`` holds the locked vectors, to which the basis is orthogonal, the whole
    basis and the next vector. Without orthogonalisation it holds the last vector and
    the next.
    """

    vectors: jax.Array
    diagonal: jax.Array
    off_diagonal: jax.Array
    removed: jax.Array
    size: jax.Array
    step: jax.Array


class _Numbers(NamedTuple):
    """The numbers that give eigenvalues and residuals.

    ``least`` is a lower bound of the norm of the map, which may exceed the norm of T.
    ``step`` counts the columns that were computed.
    """

    diagonal: jax.Array
    off_diagonal: jax.Array
    removed: jax.Array
    least: jax.Array | float
    step: jax.Array


def _start(
    linear_map: LinearMap,
    num_steps: int,
    init: jax.Array | None,
    key: jax.Array | None,
    keep: bool,
    num_locked: int = 0,
) -> _State:
    batch, n = linear_map.batch_size, linear_map.in_size
    check_steps(linear_map, num_steps)
    shape = (batch, *linear_map.in_shape)
    wide = at_least_single(linear_map.dtype)
    start = krylov.start(init, key, shape, wide).reshape(batch, n).astype(wide)
    empty = jnp.zeros((batch, 1, n), wide)
    first, _, _ = krylov.extend(start, empty, jnp.zeros((), wide), _restart(key, n))
    length = num_locked + num_steps + 1 if keep else 2
    vectors = jnp.zeros((batch, length, n), wide)
    numbers = jnp.zeros((batch, num_steps), wide)
    spread = linear_map.spread
    return _State(
        spread(vectors.at[:, num_locked if keep else 1].set(first)),
        spread(numbers),
        spread(numbers),
        spread(numbers),
        spread(jnp.zeros((batch,), wide)),
        # Devices that stop on their own count their own steps.
        spread(jnp.int32(0)) if num_locked else jnp.int32(0),
    )


def _step(
    linear_map: LinearMap, keep: bool, key: jax.Array | None, num_locked: int = 0
) -> Callable[[_State], _State]:
    batch, n = linear_map.batch_size, linear_map.in_size
    wide = at_least_single(linear_map.dtype)
    narrowing = krylov.narrowing(wide, linear_map.dtype)

    def advance(state: _State) -> _State:
        j = state.step
        row = num_locked + j
        current = state.vectors[:, row] if keep else state.vectors[:, 1]
        shaped = current.reshape(batch, *linear_map.in_shape).astype(linear_map.dtype)
        product = linear_map.matvec(shaped).reshape(batch, n).astype(current.dtype)
        size = jnp.maximum(state.size, norms.norm(product, 2.0))
        before = state.off_diagonal[:, jnp.maximum(j - 1, 0)]
        removed = jnp.zeros_like(size)
        if keep:
            vector, beta, along = krylov.extend(
                product, state.vectors, size, _restart(key, j)
            )
            alpha = along[:, row]
            removed = krylov.removed(along, (row, alpha), (row - 1, before))
            removed = removed + narrowing * size
            vectors = state.vectors.at[:, row + 1].set(vector)
        else:
            alpha = jnp.einsum("bn,bn->b", current, product, precision="highest")
            product = product - alpha[:, None] * current
            product = product - before[:, None] * state.vectors[:, 0]
            vector, beta = krylov.normalize(product, size)
            vectors = jnp.stack([current, vector], axis=1)
        return _State(
            vectors,
            state.diagonal.at[:, j].set(alpha),
            state.off_diagonal.at[:, j].set(beta),
            state.removed.at[:, j].set(removed),
            size,
            j + 1,
        )

    return advance


def _sweep(
    linear_map: LinearMap,
    k: int,
    which: str,
    num_steps: int,
    tolerance: float,
    init: jax.Array | None,
    key: jax.Array | None,
) -> Eigenpairs:
    """The k eigenpairs that :func:`krylov.sweep` finds."""
    batch, n = linear_map.batch_size, linear_map.in_size

    def begin(found: krylov.Found, state: _State, number: jax.Array) -> _State:
        (locked,) = found.vectors
        fresh = _restart(_restart(key, n + number), n)
        start = jax.random.normal(fresh, (batch, n), locked.dtype)
        first, _, _ = krylov.extend(start, locked, jnp.zeros((), start.dtype), fresh)
        empty: _State = jax.tree.map(jnp.zeros_like, state)
        vectors = empty.vectors.at[:, :k].set(locked).at[:, k].set(first)
        return empty._replace(vectors=vectors, size=state.size)

    def advance(state: _State, number: jax.Array) -> _State:
        # The first process uses the same keys as a process without a tolerance.
        later = _restart(key, n + number)
        own = later if key is None else jnp.where(number > 0, later, key)
        return _step(linear_map, True, own, k)(state)

    def read(state: _State) -> tuple[krylov.Found, jax.Array]:
        values, small, residual = _ritz(_numbers(state), k, which)
        computed = jnp.arange(k) < state.step
        keys = jnp.where(computed, _order(values, which), -jnp.inf)
        return krylov.Found(keys, values, residual, ()), small

    def lift(state: _State, small: jax.Array) -> tuple[jax.Array, ...]:
        basis = state.vectors[:, k : k + num_steps]
        return (jnp.einsum("bmk,bmn->bkn", small, basis, precision="highest"),)

    state = _start(linear_map, num_steps, init, key, True, k)
    found, taken = krylov.sweep(
        state,
        krylov.nothing(linear_map, k, (n,), state.size.dtype),
        begin=begin,
        advance=advance,
        read=read,
        lift=lift,
        room=n - k,
        num_steps=num_steps,
        tolerance=tolerance,
    )
    shaped = found.vectors[0].reshape(batch, k, *linear_map.in_shape)
    return Eigenpairs(found.values, shaped, found.residual, taken)


def _finish(
    linear_map: LinearMap, num_steps: int, state: _State, keep: bool
) -> Tridiagonal:
    basis, removed = None, None
    if keep:
        removed = state.removed
        basis = state.vectors[:, :num_steps].reshape(
            linear_map.batch_size, num_steps, *linear_map.in_shape
        )
    return Tridiagonal(state.diagonal, state.off_diagonal, basis, removed, state.step)


def _restart(key: jax.Array | None, number: int | jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.key(0) if key is None else key, number)


def check_steps(linear_map: LinearMap, num_steps: int) -> None:
    """Raises ValueError for a map that is not square or steps out of range."""
    if linear_map.in_shape != linear_map.out_shape:
        raise ValueError(
            f"linear_map goes from {linear_map.in_shape} to {linear_map.out_shape}; "
            "it must be symmetric."
        )
    checks.check_count("num_steps", num_steps, 1, linear_map.in_size)


def _check_wanted(k: int, which: str, num_steps: int) -> None:
    if which not in ENDS:
        raise ValueError(f"which is {which!r}; it may be {', '.join(ENDS)}.")
    checks.check_count("k", k, 1, num_steps)


def tridiagonal_eigh(
    diagonal: jax.Array, off_diagonal: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes eigenvalues ``(..., m)``, ascending, and eigenvectors ``(..., m, m)``.

    Args:
      diagonal: ``(..., m)``, the diagonal of T.
      off_diagonal: ``(..., m)``, the entries beside it; the last entry is not a part of
        T.
    """
    m = diagonal.shape[-1]
    rows = jnp.arange(m)
    matrix = jnp.zeros((*diagonal.shape, m), diagonal.dtype)
    matrix = matrix.at[..., rows, rows].set(diagonal)
    beside = off_diagonal[..., :-1]
    matrix = matrix.at[..., rows[1:], rows[:-1]].set(beside)
    matrix = matrix.at[..., rows[:-1], rows[1:]].set(beside)
    # Some backends square what they decompose.
    scaled, size = norms.rescale(matrix, (-2, -1))
    values, vectors = jnp.linalg.eigh(scaled)
    return size[..., 0] * values, vectors


def _numbers(state: _State) -> _Numbers:
    return _Numbers(
        state.diagonal, state.off_diagonal, state.removed, state.size, state.step
    )


def _order(values: jax.Array, which: str) -> jax.Array:
    """Keys of values; the value with the largest key is wanted first."""
    if which == "magnitude":
        return jnp.abs(values)
    return values if which == "largest" else -values


def _ritz(
    numbers: _Numbers, k: int, which: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The k wanted Ritz values, eigenvectors ``(B, m, k)`` of T, and residuals."""
    diagonal, off_diagonal, removed, least, step = numbers
    m = diagonal.shape[1]
    done = jnp.arange(m, dtype=step.dtype) < step
    # The largest row sum of |T| bounds the spectrum. Columns that are not computed get
    # an eigenvalue outside this bound.
    rows = jnp.abs(diagonal) + off_diagonal + jnp.roll(off_diagonal, 1, axis=1)
    size = jnp.max(jnp.where(done, rows, 0.0), axis=1, keepdims=True)
    last = jnp.sum(jnp.where(jnp.arange(m) == step - 1, off_diagonal, 0.0), axis=1)
    coupled = jnp.where(jnp.arange(m) < step - 1, off_diagonal, 0.0)
    outside = 3 * jnp.where(size > 0, size, 1.0)
    values, vectors = tridiagonal_eigh(jnp.where(done, diagonal, outside), coupled)
    final = jnp.sum(
        jnp.where((jnp.arange(m) == step - 1)[:, None], vectors, 0.0), axis=1
    )
    residual = jnp.abs(last[:, None] * final)
    residual = residual + jnp.einsum(
        "bm,bmk->bk", removed, jnp.abs(vectors), precision="highest"
    )
    norm = jnp.maximum(size, jnp.reshape(least, (-1, 1)))
    residual = residual + krylov.ROUNDING * machine_epsilon(values.dtype) * norm
    order = jnp.where(values > 2 * size, -jnp.inf, _order(values, which))
    chosen = jnp.argsort(-order, axis=1)[:, :k]
    return (
        jnp.take_along_axis(values, chosen, axis=1),
        jnp.take_along_axis(vectors, chosen[:, None], axis=2),
        jnp.take_along_axis(residual, chosen, axis=1),
    )
