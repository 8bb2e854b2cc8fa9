"""attacks: the Square Attack, random search by squares that sees only the logits."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from opnorm import linalg
from opnorm.attacks import attack as attack_lib
from opnorm.attacks import checks, losses
from opnorm.attacks.attack import Attack, BatchFunction, Problem, Stage, like
from opnorm.attacks.checks import Bounds

# Andriushchenko et al. 2020, section 5: where the changed part of the picture halves.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square(
    *,
    p: float,
    epsilon: float | jax.Array,
    num_queries: int = 5000,
    fraction: float = 0.8,
    rescale_schedule: bool = False,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """Returns the Square Attack: squares at random places, kept if the margin falls.

    It sees logits and no gradients. For p = inf a square of each channel is set to plus
    or minus epsilon; for p = 2 and 1 a pattern that falls off from its centre is put
    into one square, paid for by emptying another. The squares shrink in nine steps. A
    query is one forward pass; the first goes to vertical stripes (p = inf) or a grid of
    patterns. An example that the network gets wrong at x already is left as it is, at
    the price of one forward pass more.

    Args:
      p: exponent of the norm: 1, 2 or inf.
      epsilon: budget in pixel units, at least 0; scalar or ``(B,)``, may be traced.
      num_queries: tries after the first point, at least 1.
      fraction: part of the picture that the first squares cover, in (0, 1].
      rescale_schedule: whether the nine steps, made for 10,000 queries, are stretched
        over ``num_queries``; AutoAttack does not.
      bounds: box (low, high), or None.

    Returns:
      An attack on ``(B, H, W, C)`` pictures; inputs of another rank count as columns of
      one pixel.

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`.

    Source: Andriushchenko et al. 2020, Algorithms 1 to 3; Croce & Hein 2021 for p = 1.
    Unlike the published code, squares also reach the last row and column, and every
    example draws its own.
    """
    p = checks.check_norm(p, (1.0, 2.0, math.inf))
    linalg.check_length("epsilon", epsilon)
    linalg.check_count("num_queries", num_queries, 1)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}; it must be in (0, 1].")
    checks.check_bounds(bounds)
    radius = lax.stop_gradient(epsilon)

    def init(f: BatchFunction, problem: Problem) -> dict[str, jax.Array]:
        del f
        wide = jnp.promote_types(problem.x.dtype, jnp.float32)
        return {
            "delta": jnp.zeros_like(problem.x),
            "margin": jnp.full_like(problem.labels, -jnp.inf, dtype=wide),
            "done": jnp.zeros_like(problem.labels, dtype=bool),
        }

    def step(
        f: BatchFunction, problem: Problem, state: dict[str, jax.Array], i: jax.Array
    ) -> dict[str, jax.Array]:
        assert problem.keys is not None
        x = problem.x
        shape = picture_shape(x)
        sizes = jnp.asarray(
            _sizes(p, num_queries, fraction, rescale_schedule, shape), jnp.int32
        )
        size = sizes[jnp.maximum(i - 1, 0)]
        keys = attack_lib.fold_in(problem.keys, i)
        reach = jnp.asarray(attack_lib.constant(radius), x.dtype)
        reach = jnp.broadcast_to(reach, problem.labels.shape)

        def first() -> jax.Array:
            draw = _stripes if p == math.inf else _grid
            return jax.vmap(lambda key: draw(key, shape, p, x.dtype))(keys)

        def propose() -> jax.Array:
            def one(key: jax.Array, delta: jax.Array, r: jax.Array) -> jax.Array:
                if p == math.inf:
                    return _recolour(key, delta, r, size)
                return _move_mass(key, delta, r, size, p)

            pictures = state["delta"].reshape(len(x), *shape)
            unit = jax.vmap(one)(keys, pictures, reach)
            return unit.astype(x.dtype)

        unit = lax.cond(i == 0, first, propose).reshape(x.shape)
        delta = attack_lib.confine(x, linalg.scale(unit, reach), p, reach, bounds)
        # Clipped as in the end: the sum may round to the outside of the box.
        logits = f(attack_lib.clip(x + delta, bounds))
        margin = losses.margin(logits, problem.labels)
        margin = jnp.nan_to_num(margin, nan=-jnp.inf).astype(state["margin"].dtype)
        hit = attack_lib.decided(logits, problem.labels, False)
        better = hit | (margin > state["margin"]) | (i == 0)
        return {
            "delta": jnp.where(like(better, delta), delta, state["delta"]),
            "margin": jnp.where(better, margin, state["margin"]),
            "done": hit,
        }

    stage = Stage(
        name="square",
        num_steps=num_queries + 1,
        bounds=bounds,
        epsilon=radius,
        init=init,
        step=step,
        finish=lambda problem, state: attack_lib.clip(
            problem.x + state["delta"], bounds
        ),
        done=lambda state: state["done"],
        check=attack_lib.check_keys,
    )
    return Attack(name="square", p=p, stages=(stage,), judges_input=True)


def picture_shape(x: jax.Array) -> tuple[int, int, int]:
    """(H, W, C) of a batch of pictures; inputs of another rank are one column."""
    if x.ndim == 4:
        return x.shape[1], x.shape[2], x.shape[3]
    return math.prod(x.shape[1:]), 1, 1


def _sizes(
    p: float,
    num_queries: int,
    fraction: float,
    rescale: bool,
    shape: tuple[int, int, int],
) -> np.ndarray:
    """The side of the square of each query."""
    height, width, _ = shape
    query = np.arange(num_queries)
    if rescale:
        query = (query / num_queries * 10_000).astype(int)
    halvings = np.searchsorted(_HALVINGS, query)
    side = np.round(np.sqrt(fraction / 2.0**halvings * height * width)).astype(int)
    if p != math.inf:
        # The pattern has a centre.
        side = np.maximum(side, 3)
        side += 1 - side % 2
    return np.clip(side, 1, min(height, width) if width > 1 else height)


def _stripes(
    key: jax.Array, shape: tuple[int, int, int], p: float, dtype: Any
) -> jax.Array:
    del p
    _, width, channels = shape
    signs = jax.random.rademacher(key, (1, width, channels), dtype)
    return jnp.broadcast_to(signs, shape)


def _corner(
    key: jax.Array, shape: tuple[int, ...], size: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Row and column of every pixel, counted from a random corner of a square."""
    height, width = shape[:2]
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
    place = jax.random.uniform(key, (2,))
    down = jnp.floor(place[0] * jnp.maximum(height - size + 1, 1)).astype(jnp.int32)
    right = jnp.floor(place[1] * jnp.maximum(width - size + 1, 1)).astype(jnp.int32)
    return rows - down, columns - right


def _inside(rows: jax.Array, columns: jax.Array, size: jax.Array) -> jax.Array:
    return (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)


def _recolour(
    key: jax.Array, delta: jax.Array, radius: jax.Array, size: jax.Array
) -> jax.Array:
    """Sets a square of each channel to plus or minus one, in units of the radius."""
    place, colour = jax.random.split(key)
    window = _inside(*_corner(place, delta.shape, size), size)
    signs = jax.random.rademacher(colour, (1, 1, delta.shape[2]), delta.dtype)
    unit = delta / jnp.where(radius > 0, radius, 1.0)
    return jnp.where(window[..., None], signs, unit)


def _pattern(
    rows: jax.Array, columns: jax.Array, size: jax.Array, p: float, longest: int
) -> jax.Array:
    """Two bumps of opposite sign, side by side in a square, of p-norm 1."""
    # Table of the sums of 1 / (k + 1)^a that a bump is made of.
    terms = 1.0 / np.arange(1, longest + 2) ** (2.0 if p == 2 else 4.0)
    table = jnp.asarray(np.concatenate([[0.0], np.cumsum(terms)]), jnp.float32)

    def bump(row: jax.Array, height: jax.Array) -> jax.Array:
        """The bump of a height x size window, from its row 0 on."""
        centre, middle = height // 2, size // 2
        rings = jnp.maximum(centre, middle) + 1
        away = jnp.maximum(jnp.abs(row - centre), jnp.abs(columns - middle))
        here = (row >= 0) & (row < height) & (columns >= 0) & (columns < size)
        away = jnp.clip(away, 0, rings)
        value = jnp.where(here, table[rings] - table[away], 0.0)
        length = linalg.norm(value[None], p)[0]
        return value / jnp.where(length > 0, length, 1.0)

    upper = size // 2
    both = bump(rows, upper) - bump(rows - upper, size - upper)
    length = linalg.norm(both[None], p)[0]
    return both / jnp.where(length > 0, length, 1.0)


def _move_mass(
    key: jax.Array, delta: jax.Array, radius: jax.Array, size: jax.Array, p: float
) -> jax.Array:
    """Empties one square and puts a pattern into another; in units of the radius."""
    there, elsewhere, colour, turn = jax.random.split(key, 4)
    shape = delta.shape
    longest, channels = max(shape[:2]), shape[2]
    unit = delta / jnp.where(radius > 0, radius, 1.0)
    rows, columns = _corner(there, shape, size)
    target = _inside(rows, columns, size)[..., None]
    emptied = _inside(*_corner(elsewhere, shape, size), size)[..., None]
    turned = jax.random.bernoulli(turn)
    rows, columns = jnp.broadcast_arrays(rows, columns)
    across, along = jnp.where(turned, columns, rows), jnp.where(turned, rows, columns)
    pattern = _pattern(across, along, size, p, longest)[..., None].astype(delta.dtype)
    signs = jax.random.rademacher(colour, (1, 1, channels), delta.dtype)

    def length(picture: jax.Array) -> jax.Array:
        return linalg.norm(jnp.moveaxis(picture, 2, 0), p)

    kept = jnp.where(target, unit, 0.0)
    kept_length = length(kept)
    mixed = pattern * signs + kept / jnp.where(kept_length > 0, kept_length, 1.0)
    mixed_length = length(mixed)
    freed = length(jnp.where(target | emptied, unit, 0.0))
    whole = linalg.norm(unit[None], p)[0]
    if p == 2:
        spare = jnp.maximum(1.0 - whole**2, 0.0) / channels
        wanted = jnp.sqrt(spare + freed**2)
    else:
        wanted = jnp.maximum(1.0 - whole, 0.0) / channels + freed
    mixed = mixed * (wanted / jnp.where(mixed_length > 0, mixed_length, 1.0))
    moved = jnp.where(target, mixed, jnp.where(emptied, 0.0, unit))
    if p == 1:
        return moved
    length_now = linalg.norm(moved[None], p)[0]
    return moved / jnp.where(length_now > 0, length_now, 1.0)


def _grid(
    key: jax.Array, shape: tuple[int, int, int], p: float, dtype: Any
) -> jax.Array:
    """Patterns all over the picture, a fifth of it each, of p-norm 1 together."""
    height, width, channels = shape
    side = max(min(height, width) // 5, 1)
    rows, columns = np.arange(height), np.arange(width)
    down, right = (height % side) // 2, (width % side) // 2
    tiles = (-(-height // side) + 1, -(-width // side) + 1)
    signs = jax.random.rademacher(key, (*tiles, channels), dtype)
    row_of = (rows - down) // side + 1 - (down == 0)
    column_of = (columns - right) // side + 1 - (right == 0)
    tile = _pattern(
        jnp.arange(side)[:, None], jnp.arange(side)[None], jnp.int32(side), p, side
    )
    pattern = tile[(rows - down) % side][:, (columns - right) % side]
    if side == 1:
        pattern = jnp.ones((height, width))
    picture = pattern[..., None].astype(dtype) * signs[row_of][:, column_of]
    return picture / linalg.norm(picture[None], p)[0].astype(dtype)
