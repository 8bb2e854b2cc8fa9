"""linalg: the parts that Lanczos and Golub-Kahan share: growing orthonormal bases."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from opnorm.linalg import checks, loops, norms

# Allowance for rounding in a residual, as a multiple of eps times the map's norm.
ROUNDING = 20.0


def start(
    init: jax.Array | None, key: jax.Array | None, shape: tuple[int, ...], dtype: Any
) -> jax.Array:
    """Returns the vectors that a process starts from: the given ones, or random ones.

    Args:
      init: of this shape, or None.
      key: typed key; may be None where there is an init.
      shape: ``(B, ...)``.
      dtype: of random vectors.

    Raises:
      ValueError: if neither is given, for a key that is not typed, or if init has
        another shape.
    """
    if key is not None:
        checks.check_key(key)
    if init is not None:
        if init.shape != shape:
            raise ValueError(f"init has shape {init.shape}; it must be {shape}.")
        return init
    if key is None:
        raise ValueError("init and key are None; one of them must give the start.")
    return jax.random.normal(key, shape, dtype)


def check_tolerance(tolerance: float | None) -> None:
    """Raises a ValueError unless ``tolerance`` is positive or None."""
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; it must be positive or None.")


def extend(
    x: jax.Array, basis: jax.Array, size: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Makes the next vector of a basis out of a product with the map.

    Args:
      x: ``(B, n)``.
      basis: ``(B, m, n)``, its rows orthonormal or zero.
      size: ``(B,)`` or scalar, the norm of the map as far as it is known.
      key: typed key of the random vector that goes on where the space is exhausted,
        that is, where nothing but rounding is left of x. It is drawn only if that is so
        for some example: drawing and orthogonalising one costs more than x does.

    Returns:
      A unit vector ``(B, n)`` orthogonal to the basis (zero where the basis spans
      everything), what was left of x, ``(B,)``, 0 where that is rounding, and what x
      had along the rows of the basis, ``(B, m)``.
    """
    left, along = orthogonalize(x, basis)
    unit, length = normalize(left, size)
    broken = length == 0

    def restart(unit: jax.Array) -> jax.Array:
        fresh = jax.random.normal(key, x.shape, x.dtype)
        fresh = fresh / jnp.linalg.norm(fresh, axis=1, keepdims=True)
        # The rest of a unit vector in an exhausted space is rounding.
        fresh, _ = orthogonalize(fresh, basis)
        fresh, _ = normalize(fresh, jnp.full_like(length, 10.0))
        return jnp.where(broken[:, None], fresh, unit)

    unit = lax.cond(jnp.any(broken), restart, lambda unit: unit, unit)
    return unit, length, along


def orthogonalize(x: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x without its components in the rows of the basis, and those components."""
    total = jnp.zeros(basis.shape[:2], x.dtype)
    # Twice is enough; at the reduced default precision of some accelerators it would
    # not be.
    for _ in range(2):
        along = jnp.einsum("bin,bn->bi", basis, x, precision="highest")
        x = x - jnp.einsum("bi,bin->bn", along, basis, precision="highest")
        total = total + along
    return x, total


def removed(along: jax.Array, *known: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Bound of what a column of the small matrix is wrong by.

    That is what orthogonalisation took out of a product and the matrix does not hold:
    rounding for a symmetric map, or for a map and its adjoint. It is counted twice,
    since it shows above the diagonal alone: below, it cannot be told from the map.

    Args:
      along: ``(B, m)``, the components that were taken out.
      *known: pairs of a row of the basis, an int32 scalar, and the component along it
        that the small matrix holds, ``(B,)``; a row of -1 is none.

    Returns:
      ``(B,)``.
    """
    rows = jnp.arange(along.shape[1])
    for row, component in known:
        along = along - jnp.where(rows == row, component[:, None], 0.0)
    return 2 * norms.norm(along, 2.0)


def narrowing(wide: Any, narrow: Any) -> float:
    """Relative error of products from casting vectors to a map's narrower dtype."""
    narrower = jnp.finfo(narrow).bits < jnp.finfo(wide).bits
    return float(jnp.finfo(narrow).eps) if narrower else 0.0


def normalize(x: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x normalised and its norm, both zero where it is rounding beside ``size``."""
    length = norms.norm(x, 2.0)
    # <=, so that a zero map, whose size is zero, breaks down too.
    noise = 10 * jnp.finfo(x.dtype).eps * size
    alive = (length > noise) & jnp.isfinite(length)
    scaled = x / jnp.where(alive, length, 1.0)[:, None]
    return jnp.where(alive[:, None], scaled, 0.0), jnp.where(alive, length, 0.0)


class Found(NamedTuple):
    """The k best values of each map so far.

    Attributes:
      keys: ``(B, k)``, what is wanted largest, in descending order; -inf for none.
      values: ``(B, k)``.
      residual: ``(B, k)``, their error bars.
      vectors: arrays ``(B, k, ...)`` that belong to the values; may be none.
    """

    keys: jax.Array
    values: jax.Array
    residual: jax.Array
    vectors: tuple[jax.Array, ...]


def nothing(linear_map: Any, k: int, sizes: Sequence[int], dtype: Any) -> Found:
    """Returns the first state of :func:`sweep`, for vectors of the given sizes."""
    unknown = jnp.full((linear_map.batch_size, k), jnp.nan, dtype)
    vectors = tuple(
        jnp.zeros((linear_map.batch_size, k, size), dtype) for size in sizes
    )
    found = Found(jnp.full_like(unknown, -jnp.inf), unknown, unknown, vectors)
    return jax.tree.map(linear_map.spread, found)


class _Sweeps(NamedTuple):
    state: Any
    found: Found
    first: jax.Array
    number: jax.Array
    taken: jax.Array
    done: jax.Array


def sweep(
    state: Any,
    found: Found,
    *,
    begin: Callable[[Found, Any, jax.Array], Any],
    advance: Callable[[Any, jax.Array], Any],
    read: Callable[[Any], tuple[Found, Any]],
    lift: Callable[[Any, Any], tuple[jax.Array, ...]],
    room: int,
    num_steps: int,
    tolerance: float,
) -> tuple[Found, jax.Array]:
    """Grows Krylov spaces until a new one adds nothing to the k best values.

    A Krylov space holds one vector of each eigenspace, so a single one gives a repeated
    value once. After each converged space, a process begins from a random direction
    orthogonal to the k best vectors. It would find a missing copy of a value in as many
    steps as the first process took for that value, so it takes at least that many. The
    spaces end with one whose values change none of the k by more than the tolerance.

    Args:
      state: of the first process, with its number of steps as ``step``.
      found: of :func:`nothing`.
      begin: ``(found, state, number) -> state`` of a process orthogonal to the vectors
        of ``found``.
      advance: ``(state, number) -> state`` after one more step.
      read: ``state ->`` the k best values of its space, without vectors, and whatever
        ``lift`` needs.
      lift: ``(state, what read returned) ->`` the vectors.
      room: most steps of a process after the first.
      num_steps: most steps of all together.
      tolerance: error bars of the k values are at most this times their modulus.

    Returns:
      The k best values with vectors, and how many steps were taken.
    """

    def unfinished(carry: _Sweeps) -> jax.Array:
        return ~carry.done & (carry.taken < num_steps)

    def body(carry: _Sweeps) -> _Sweeps:
        state = advance(carry.state, carry.number)
        current, small = read(state)
        best = _merge(carry.found._replace(vectors=()), current)
        k = best.values.shape[1]
        size = jnp.abs(best.values)
        top = jnp.maximum(size[:, -1], jnp.abs(current.values[:, 0]))
        settled = jnp.all(best.residual <= tolerance * size)
        settled &= jnp.all(current.residual[:, 0] <= tolerance * top)
        over = settled & (state.step >= jnp.maximum(k, carry.first))
        over |= (carry.number > 0) & (state.step >= room)
        changed = jnp.any(best.keys > carry.found.keys + tolerance * size)

        def again() -> Any:
            vectors = lift(state, small)
            found = _merge(carry.found, current._replace(vectors=vectors))
            number = carry.number + 1
            first = jnp.where(number > 1, carry.first, state.step)
            return begin(found, state, number), found, first, number

        def stay() -> Any:
            return state, carry.found, carry.first, carry.number

        more = over & changed & (room > 0)
        state, found, first, number = lax.cond(more, again, stay)
        return _Sweeps(state, found, first, number, carry.taken + 1, over & ~more)

    zero = jnp.zeros_like(state.step)
    start = _Sweeps(state, found, zero, zero, jnp.int32(0), zero > 0)
    end = loops.while_loop(unfinished, body, start)
    current, small = read(end.state)
    vectors = lift(end.state, small)
    return _merge(end.found, current._replace(vectors=vectors)), end.taken


def _merge(first: Found, second: Found) -> Found:
    """The k best of both."""
    k = first.keys.shape[1]
    keys = jnp.concatenate([first.keys, second.keys], axis=1)
    order = jnp.argsort(-keys, axis=1)[:, :k]

    def pick(a: jax.Array, b: jax.Array) -> jax.Array:
        joined = jnp.concatenate([a, b], axis=1)
        index = order.reshape(*order.shape, *(1,) * (joined.ndim - 2))
        return jnp.take_along_axis(joined, index, axis=1)

    return jax.tree.map(pick, first, second)
