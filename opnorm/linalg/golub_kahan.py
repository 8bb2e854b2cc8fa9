"""Leading singular triplets by Golub-Kahan-Lanczos bidiagonalisation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from opnorm.linalg import checks, krylov, loops, norms
from opnorm.linalg.dtypes import at_least_single
from opnorm.linalg.linear_map import LinearMap
from opnorm.linalg.typed import machine_epsilon


class SingularTriplets(NamedTuple):
    """The leading k singular triplets of each example, largest first.

    Attributes:
      values: ``(B, k)``, at least 0; lower bounds of the singular values.
      right: ``(B, k, *in_shape)``, orthonormal.
      left: ``(B, k, *out_shape)``, orthonormal.
      residual: ``(B, k)``, a bound of ``||A^T u - sigma v|| + ||A v - sigma u||`` with
        an allowance for rounding. Some singular value of the map is within this
        distance of each value. The residual is large where ``rmatvec`` is not the
        adjoint of ``matvec``.
      num_steps: int32 scalar, the number of steps.
    """

    values: jax.Array
    right: jax.Array
    left: jax.Array
    residual: jax.Array
    num_steps: jax.Array


class _State(NamedTuple):
    """The state of a process.

    ``us`` and ``vs`` hold the locked vectors, to which each basis is orthogonal, and
    then the basis. ``removed_left`` and ``removed_right`` are bounds of the columns of
    ``A^T U - V B^T`` and ``A V - U B``. ``pulled`` is A^T of the last vector.
    """

    us: jax.Array
    vs: jax.Array
    alphas: jax.Array
    betas: jax.Array
    removed_left: jax.Array
    removed_right: jax.Array
    size: jax.Array
    pulled: jax.Array
    step: jax.Array


class _Process(NamedTuple):
    """The constants of a process.

    The first ``locked`` vectors of each basis, k or none, are locked.
    """

    linear_map: LinearMap
    k: int
    num_steps: int
    locked: int
    key: jax.Array

    @property
    def dtype(self) -> DTypeLike:
        return at_least_single(self.linear_map.dtype)

    @property
    def narrowing(self) -> float:
        return krylov.narrowing(self.dtype, self.linear_map.dtype)

    def apply(self, vectors: jax.Array) -> jax.Array:
        """Multiplies by A, ``(B, n) -> (B, d)``."""
        given = self.linear_map
        shaped = vectors.reshape(given.batch_size, *given.in_shape)
        found = given.matvec(shaped.astype(given.dtype))
        return found.reshape(given.batch_size, given.out_size).astype(self.dtype)

    def pull(self, vectors: jax.Array) -> jax.Array:
        """Multiplies by A^T, ``(B, d) -> (B, n)``."""
        given = self.linear_map
        shaped = vectors.reshape(given.batch_size, *given.out_shape)
        found = given.rmatvec(shaped.astype(given.dtype))
        return found.reshape(given.batch_size, given.in_size).astype(self.dtype)

    def restart(self, number: int | jax.Array, j: int | jax.Array) -> jax.Array:
        """Returns the key of random vector j of the process with this number."""
        base = self.key
        if self.locked:
            later = jax.random.fold_in(base, 2 * self.num_steps + 1 + number)
            base = jnp.where(number > 0, later, base)
        return jax.random.fold_in(base, j)


def golub_kahan(
    linear_map: LinearMap,
    k: int = 1,
    *,
    num_steps: int | None = None,
    tolerance: float | None = None,
    init: jax.Array | None = None,
    key: jax.Array | None = None,
) -> SingularTriplets:
    """Computes the leading k singular triplets from a Krylov space of A A^T.

    The process starts with a vector of outputs, since a network has fewer outputs than
    inputs, and keeps both bases orthogonal (classical Gram-Schmidt, twice). For one
    triplet to 1e-3 it needs 5 to 7 steps; the power method needs 12 to 33. The result
    is exact after min(d, n) steps. Where the Krylov space is exhausted before
    (repeated singular values, rank-deficient or zero maps), the process continues from
    a random direction orthogonal to the space.

    A process finds a repeated value once, unless its Krylov space is exhausted. With a
    tolerance and k of 2 or more, repeated values are found with their multiplicity:
    further processes start from random directions orthogonal to the triplets that have
    converged, until a process changes no value by more than the tolerance. This at
    least doubles the number of products. Copies may be missing if ``num_steps`` is
    reached before, and without a tolerance.

    Each step costs one product with A^T and one with A; the error bar of each process
    costs one more product with A^T. Derivatives through the process are NaN at repeated
    values. The derivatives of :func:`opnorm.operators.jacobian_norm` are finite there.

    Args:
      linear_map: B maps.
      k: number of triplets, from 1 to num_steps.
      num_steps: largest number of steps, from 1 to min(d, n); None for
        ``min(d, n, 2 k + 5)``.
      tolerance: the process stops when each of the k residuals of every map is at most
        this times its value; with None it takes every step. A zero singular value never
        satisfies a tolerance.
      init: ``(B, *out_shape)``, the first vectors; random if None. With ``k=1`` and a
        tolerance, the process stops at a singular vector of any singular value.
      key: typed key for a random start.

    Returns:
      The triplets with error bars. For a map with NaN, the values are NaN and the
      vectors are finite.

    Raises:
      ValueError: for k, num_steps or tolerance out of range, no start or one of another
        shape, or a key that is not typed.

    Source: Golub & Kahan 1965.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import linalg
      >>> @jax.jit
      ... def triplets(matrix, key):
      ...     return linalg.golub_kahan(linalg.from_matrix(matrix), k=2, key=key)
      >>> matrix = jnp.array([[3.0, 0.0, 0.0], [0.0, 2.0, 1.0]])
      >>> found = triplets(matrix, jax.random.key(0))
      >>> print(np.asarray(found.values).round(4))
      [[3.     2.2361]]
    """
    most, batch = min(linear_map.out_size, linear_map.in_size), linear_map.batch_size
    k = checks.check_count("k", k, 1, most)
    steps = min(most, 2 * k + 5) if num_steps is None else num_steps
    steps = checks.check_count("num_steps", steps, 1, most)
    checks.check_count("k", k, 1, steps)
    krylov.check_tolerance(tolerance)
    shape = (batch, *linear_map.out_shape)
    start = krylov.start(init, key, shape, float)
    restarts = jax.random.key(0) if key is None else jax.random.fold_in(key, 1)
    sweeping = tolerance is not None and k > 1
    process = _Process(linear_map, k, steps, k if sweeping else 0, restarts)
    state = _start(process, start)
    if tolerance is None:
        state = loops.fori_loop(steps, lambda _, s: _advance(process, s, 0), state)
        found, done = _read_all(process, state), jnp.int32(steps)
    elif sweeping:
        found, done = _sweep(process, state, tolerance)
    else:

        def unfinished(carry: tuple[_State, jax.Array]) -> jax.Array:
            state, enough = carry
            return ~enough & (state.step < steps)

        def refine(carry: tuple[_State, jax.Array]) -> tuple[_State, jax.Array]:
            state = _advance(process, carry[0], 0)
            _, values, _, residual = _decompose(process, state)
            return state, jnp.all(residual <= tolerance * values)

        enough = linear_map.spread(jnp.zeros((), bool))
        state, _ = loops.while_loop(unfinished, refine, (state, enough))
        found, done = _read_all(process, state), state.step
    lefts, rights = found.vectors
    return SingularTriplets(
        found.values,
        rights.reshape(batch, k, *linear_map.in_shape),
        lefts.reshape(batch, k, *linear_map.out_shape),
        found.residual,
        done,
    )


def _start(process: _Process, start: jax.Array) -> _State:
    linear_map, steps, locked = process.linear_map, process.num_steps, process.locked
    batch, d, n = linear_map.batch_size, linear_map.out_size, linear_map.in_size
    wide = process.dtype
    first = start.reshape(batch, d).astype(wide)
    empty = jnp.zeros((batch, 1, d), wide)
    first, _, _ = krylov.extend(first, empty, jnp.zeros(()), process.restart(0, 0))
    # A^T U = V B^T with B lower bidiagonal: alpha on, beta below its diagonal.
    state = _State(
        jnp.zeros((batch, locked + steps + 1, d), wide).at[:, locked].set(first),
        jnp.zeros((batch, locked + steps, n), wide),
        jnp.zeros((batch, steps), wide),
        jnp.zeros((batch, steps), wide),
        jnp.zeros((batch, steps + 1), wide),
        jnp.zeros((batch, steps), wide),
        jnp.zeros((batch,), wide),
        process.pull(first),
        jnp.int32(0),
    )
    spread: _State = jax.tree.map(linear_map.spread, state)
    return spread


def _advance(process: _Process, state: _State, number: int | jax.Array) -> _State:
    """One step of the process with this number."""
    j = state.step
    row = process.locked + j
    before = state.betas[:, jnp.maximum(j - 1, 0)]
    v, alpha, along = krylov.extend(
        state.pulled, state.vs, state.size, process.restart(number, 2 * j + 1)
    )
    removed = krylov.removed(along, (row - 1, before))
    size = jnp.maximum(state.size, alpha)
    left = state.removed_left.at[:, j].set(removed + process.narrowing * size)
    u, beta, along = krylov.extend(
        process.apply(v), state.us, size, process.restart(number, 2 * j + 2)
    )
    removed = krylov.removed(along, (row, alpha))
    size = jnp.maximum(size, beta)
    right = state.removed_right.at[:, j].set(removed + process.narrowing * size)
    return _State(
        state.us.at[:, row + 1].set(u),
        state.vs.at[:, row].set(v),
        state.alphas.at[:, j].set(alpha),
        state.betas.at[:, j].set(beta),
        left,
        right,
        size,
        # The first product of the next step gives the error of this step.
        process.pull(u),
        j + 1,
    )


def _decompose(
    process: _Process, state: _State
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Left vectors of B, the k values, right vectors, and the values' residuals."""
    k, steps, wide = process.k, process.num_steps, process.dtype
    rows = jnp.arange(steps)
    small = jnp.zeros((len(state.size), steps + 1, steps), wide)
    small = small.at[:, rows, rows].set(state.alphas)
    small = small.at[:, rows + 1, rows].set(state.betas)
    # Some backends square what they decompose.
    scaled, size = norms.rescale(small, (1, 2))
    left, values, right = jnp.linalg.svd(scaled, full_matrices=False)
    values = size[..., 0] * values
    # A V = U B, where U has one column more than V. So the error consists of
    # A^T u - sigma v, along the next direction, and of the parts that
    # orthogonalisation removed on both sides.
    following, along = krylov.orthogonalize(state.pulled, state.vs)
    final = norms.norm(following, 2.0)[:, None]
    last = state.step - 1
    removed = krylov.removed(along, (process.locked + last, state.betas[:, last]))
    removed = removed + process.narrowing * state.size
    removed_left = state.removed_left.at[:, state.step].set(removed)
    residual = final * jnp.abs(left[:, state.step, :k])
    residual = residual + jnp.einsum(
        "bi,bik->bk", removed_left, jnp.abs(left[:, :, :k]), precision="highest"
    )
    residual = residual + jnp.einsum(
        "bi,bki->bk", state.removed_right, jnp.abs(right[:, :k]), precision="highest"
    )
    largest = values[:, :1]
    if process.locked:
        # A later process searches a part of the space.
        largest = jnp.maximum(largest, state.size[:, None])
    residual = residual + krylov.ROUNDING * machine_epsilon(wide) * largest
    # Without this, the values of a map that is not finite would be 0.
    values = jnp.where(jnp.isfinite(final), values, jnp.nan)
    return left, values[:, :k], right, residual


def _lift(
    process: _Process, state: _State, left: jax.Array, right: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The singular vectors of the map from those of B."""
    k, locked = process.k, process.locked
    us, vs = state.us[:, locked:], state.vs[:, locked:]
    return (
        jnp.einsum("bik,bid->bkd", left[:, :, :k], us, precision="highest"),
        jnp.einsum("bki,bin->bkn", right[:, :k], vs, precision="highest"),
    )


def _read_all(process: _Process, state: _State) -> krylov.Found:
    left, values, right, residual = _decompose(process, state)
    vectors = _lift(process, state, left, right)
    return krylov.Found(values, values, residual, vectors)


def _sweep(
    process: _Process, state: _State, tolerance: float
) -> tuple[krylov.Found, jax.Array]:
    """The k triplets that :func:`krylov.sweep` finds, and the number of steps."""
    linear_map, k, dtype = process.linear_map, process.k, process.dtype
    batch, d, n = linear_map.batch_size, linear_map.out_size, linear_map.in_size

    def begin(found: krylov.Found, state: _State, number: jax.Array) -> _State:
        lefts, rights = found.vectors
        key = process.restart(number, 0)
        drawn = jax.random.normal(key, (batch, d), dtype)
        first, _, _ = krylov.extend(drawn, lefts, jnp.zeros(()), key)
        empty = jax.tree.map(jnp.zeros_like, state)
        first_state: _State = empty._replace(
            us=empty.us.at[:, :k].set(lefts).at[:, k].set(first),
            vs=empty.vs.at[:, :k].set(rights),
            size=state.size,
            pulled=process.pull(first),
        )
        return first_state

    def read(state: _State) -> tuple[krylov.Found, tuple[jax.Array, jax.Array]]:
        left, values, right, residual = _decompose(process, state)
        keys = jnp.where(jnp.arange(k) < state.step, values, -jnp.inf)
        return krylov.Found(keys, values, residual, ()), (left, right)

    return krylov.sweep(
        state,
        krylov.nothing(linear_map, k, (d, n), dtype),
        begin=begin,
        advance=lambda state, number: _advance(process, state, number),
        read=read,
        lift=lambda state, small: _lift(process, state, *small),
        room=min(d, n) - k,
        num_steps=process.num_steps,
        tolerance=tolerance,
    )
