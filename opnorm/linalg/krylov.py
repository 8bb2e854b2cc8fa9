"""Orthonormal bases that grow step by step, for Lanczos and Golub-Kahan."""

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from opnorm.linalg import checks, loops, norms, sampling
from opnorm.linalg.linear_map import LinearMap
from opnorm.linalg.typed import machine_epsilon

# Allowance for rounding in a residual, as a multiple of eps times the map's norm.
ROUNDING = 20.0


def start(
    init: jax.Array | None,
    key: jax.Array | None,
    shape: tuple[int, ...],
    dtype: DTypeLike,
) -> jax.Array:
    """Returns the first vectors of a process: the given ones, or random ones.

    Args:
      init: vectors of this shape, or None.
      key: typed key; may be None if there is an ``init``.
      shape: ``(B, ...)``, the shape of the vectors.
      dtype: dtype of random vectors.

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
    return sampling.draw(jax.random.normal, key, shape, dtype)


def check_tolerance(tolerance: float | None) -> None:
    """Raises a ValueError unless ``tolerance`` is positive or None."""
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; it must be positive or None.")


def extend(
    x: jax.Array, basis: jax.Array, size: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the next vector of a basis from a product with the map.

    Args:
      x: ``(B, n)``, the product.
      basis: ``(B, m, n)``, rows that are orthonormal or zero.
      size: ``(B,)`` or scalar, a lower bound of the norm of the map.
      key: typed key of the random vector that replaces x where the space is exhausted,
        that is, where only rounding remains of x. The vector is drawn only if the space
        of some example is exhausted, since drawing and orthogonalising it costs more
        than orthogonalising x.

    Returns:
      A unit vector ``(B, n)`` orthogonal to the basis (zero where the basis spans the
      whole space), the length ``(B,)`` of the part of x orthogonal to the basis (0
      where it is rounding), and the components ``(B, m)`` of x along the basis.
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
    """Returns x without its components along the basis, and those components."""
    total = jnp.zeros(basis.shape[:2], x.dtype)
    # Two passes are enough at full precision. They are not at the reduced default
    # precision of some accelerators.
    for _ in range(2):
        along = jnp.einsum("bin,bn->bi", basis, x, precision="highest")
        x = x - jnp.einsum("bi,bin->bn", along, basis, precision="highest")
        total = total + along
    return x, total


def removed(along: jax.Array, *known: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Computes a bound of the error of a column of the small matrix.

    The error consists of the components that orthogonalisation removed from a product
    and that the matrix does not contain. They are rounding for a symmetric map, or for
    a map and its adjoint. The bound is twice their norm, since they are visible above
    the diagonal only; below the diagonal they are mixed with entries of the map.

    Args:
      along: ``(B, m)``, the components that were removed.
      *known: pairs ``(row, component)`` of an entry that the small matrix contains: a
        row of the basis, an int32 scalar, and the component ``(B,)`` along it. A row of
        -1 stands for no entry.

    Returns:
      ``(B,)``.
    """
    rows = jnp.arange(along.shape[1], dtype=jnp.int32)[None]
    for row, component in known:
        along = along - jnp.where(rows == row, component[:, None], 0.0)
    return 2 * norms.norm(along, 2.0)


def narrowing(wide: DTypeLike, narrow: DTypeLike) -> float:
    """Returns the relative error of a product with a vector in a narrower dtype."""
    narrower = jnp.dtype(narrow).itemsize < jnp.dtype(wide).itemsize
    return machine_epsilon(narrow) if narrower else 0.0


def normalize(x: jax.Array, size: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns x normalised and its norm, both 0 where x is rounding beside ``size``."""
    length = norms.norm(x, 2.0)
    # Not >=: a zero map has size 0, and its product 0 must count as rounding, too.
    noise = 10 * machine_epsilon(x.dtype) * size
    alive = (length > noise) & jnp.isfinite(length)
    scaled = x / jnp.where(alive, length, 1.0)[:, None]
    return jnp.where(alive[:, None], scaled, 0.0), jnp.where(alive, length, 0.0)


class Found(NamedTuple):
    """The k best values of each map so far.

    Attributes:
      keys: ``(B, k)`` in descending order; the value with the largest key is wanted
        most, and a key of -inf marks a missing value.
      values: ``(B, k)``.
      residual: ``(B, k)``, the error bars of the values.
      vectors: arrays ``(B, k, ...)``, the vectors of the values; may be empty.
    """

    keys: jax.Array
    values: jax.Array
    residual: jax.Array
    vectors: tuple[jax.Array, ...]


def nothing(
    linear_map: LinearMap, k: int, sizes: Sequence[int], dtype: DTypeLike
) -> Found:
    """Returns the first state of :func:`sweep`, for vectors of the given sizes."""
    unknown = jnp.full((linear_map.batch_size, k), jnp.nan, dtype)
    vectors = tuple(
        jnp.zeros((linear_map.batch_size, k, size), dtype) for size in sizes
    )
    found = Found(jnp.full_like(unknown, -jnp.inf), unknown, unknown, vectors)
    spread: Found = jax.tree.map(linear_map.spread, found)
    return spread


class Process(Protocol):
    """The state of a process that counts its steps."""

    @property
    def step(self) -> jax.Array:
        """The steps that were taken, an int32 scalar."""


State = TypeVar("State", bound=Process)
Small = TypeVar("Small")


class _Sweeps(NamedTuple, Generic[State]):
    state: State
    found: Found
    first: jax.Array
    number: jax.Array
    taken: jax.Array
    done: jax.Array


def sweep(
    state: State,
    found: Found,
    *,
    begin: Callable[[Found, State, jax.Array], State],
    advance: Callable[[State, jax.Array], State],
    read: Callable[[State], tuple[Found, Small]],
    lift: Callable[[State, Small], tuple[jax.Array, ...]],
    room: int,
    num_steps: int,
    tolerance: float,
) -> tuple[Found, jax.Array]:
    """Searches Krylov spaces until a new one does not change the k best values.

    A Krylov space contains one vector of each eigenspace, so one space gives a repeated
    value once. After each converged space, a process starts from a random direction
    orthogonal to the k best vectors. It takes at least as many steps as the first
    process, since it finds a missing copy of a value in about as many steps as the
    first process needed for that value. The search ends with a space that changes none
    of the k values by more than the tolerance.

    Args:
      state: the state of the first process.
      found: the result of :func:`nothing`.
      begin: ``(found, state, number) -> state``, the first state of a process that is
        orthogonal to the vectors of ``found``.
      advance: ``(state, number) -> state``, the state after one more step.
      read: ``state -> (found, small)``, the k best values of the space, without
        vectors, and the decomposition that ``lift`` needs.
      lift: ``(state, small) -> vectors``.
      room: largest number of steps of each process after the first.
      num_steps: largest number of steps of all processes together.
      tolerance: the error bars of the k values are at most this times their modulus.

    Returns:
      The k best values with vectors, and the number of steps that were taken.
    """

    def unfinished(carry: _Sweeps[State]) -> jax.Array:
        return ~carry.done & (carry.taken < num_steps)

    def body(carry: _Sweeps[State]) -> _Sweeps[State]:
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

        def again() -> tuple[State, Found, jax.Array, jax.Array]:
            vectors = lift(state, small)
            found = _merge(carry.found, current._replace(vectors=vectors))
            number = carry.number + 1
            first = jnp.where(number > 1, carry.first, state.step)
            return begin(found, state, number), found, first, number

        def stay() -> tuple[State, Found, jax.Array, jax.Array]:
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
    """The k best values of both."""
    k = first.keys.shape[1]
    keys = jnp.concatenate([first.keys, second.keys], axis=1)
    order = jnp.argsort(-keys, axis=1)[:, :k]

    def pick(a: jax.Array, b: jax.Array) -> jax.Array:
        joined = jnp.concatenate([a, b], axis=1)
        index = order.reshape(*order.shape, *(1,) * (joined.ndim - 2))
        return jnp.take_along_axis(joined, index, axis=1)

    merged: Found = jax.tree.map(pick, first, second)
    return merged
