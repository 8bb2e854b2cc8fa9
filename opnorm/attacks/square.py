"""The Square Attack, a random search by squares that sees only the logits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from opnorm import linalg
from opnorm.attacks import checks, criteria, losses, meshes, parts, registry
from opnorm.attacks.attack import Attack
from opnorm.attacks.checks import Bounds
from opnorm.attacks.parts import Best
from opnorm.attacks.stage import Problem, Stage, check_keys
from opnorm.linalg import BatchFunction

CHANNELS = ("last", "first", "none")
# So many channels an image usually has: grey, RGB, RGBA.
_USUAL_CHANNELS = (1, 3, 4)
# Andriushchenko et al. 2020, section 5: where the changed part of the image halves.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@registry.register
def square(
    *,
    p: float,
    epsilon: float | jax.Array,
    num_queries: int = 5000,
    fraction: float = 0.8,
    rescale_schedule: bool = False,
    channels: str = "last",
    targeted: bool = False,
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
      fraction: share of the entries of a channel that the first squares cover, in
        (0, 1], up to the rounding of their sides. Where an image is too narrow for such
        a square, it becomes a rectangle over the whole of the shorter side.
      rescale_schedule: whether the nine steps, made for 10,000 queries, are stretched
        over ``num_queries``; AutoAttack does not.
      channels: where images have their channels: "last", ``(B, H, W, C)``; "first",
        ``(B, C, H, W)``; or "none", where an input of rank 4 has no channels either.
        Inputs of rank 3, ``(B, H, W)``, have none in any case; vectors ``(B, N)`` are
        rows of N pixels, and inputs of higher rank have all axes but the last of them
        joined.
      targeted: reach the labels instead of leaving them.
      bounds: box (low, high), for all entries or for each, or None.

    Raises:
      ValueError: for an option out of range; when applied, as :class:`Attack`, and for
        inputs of rank 4 with 1, 3 or 4 entries along the axis where "last" or "first"
        would not have channels, and another number along the one where it has.

    Source: Andriushchenko et al. 2020, Algorithms 1 to 3; Croce & Hein 2021 for p = 1.
    Unlike the published code, squares also reach the last row and column, and every
    example draws its own.

    Example:
      A linear network gives the larger coordinate; an image here has no
      channels.

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from opnorm import attacks
      >>> x, labels = jnp.array([[0.4, 0.6]]), jnp.array([1])
      >>> key = jax.random.key(0)
      >>> attack = attacks.square(
      ...     p=jnp.inf, epsilon=0.2, num_queries=10, channels="none"
      ... )
      >>> found = attack.run(lambda x: x, x, labels, key)
      >>> found.success
      Array([ True], dtype=bool)
      >>> [round(entry, 3) for entry in found.x_adv[0].tolist()]
      [0.6, 0.4]
    """
    p = checks.check_norm(p, (1.0, 2.0, math.inf))
    linalg.check_length("epsilon", epsilon)
    linalg.check_count("num_queries", num_queries, 1)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}; it must be in (0, 1].")
    if channels not in CHANNELS:
        raise ValueError(
            f"channels is {channels!r}; it may be {', '.join(map(repr, CHANNELS))}."
        )
    bounds = checks.check_bounds(bounds)
    radius = lax.stop_gradient(epsilon)

    def check(problem: Problem) -> None:
        check_keys(problem)
        check_layout(problem.x.shape, channels)

    def init(f: BatchFunction, problem: Problem) -> Best:
        del f
        return parts.begin_best(jnp.zeros_like(problem.x), problem.labels)

    def step(f: BatchFunction, problem: Problem, state: Best, i: jax.Array) -> Best:
        assert problem.keys is not None
        x = problem.x
        shape = image_shape(x.shape, channels)
        moves = channels == "first" and x.ndim == 4
        sizes = jnp.asarray(
            _sizes(p, num_queries, fraction, rescale_schedule, shape), jnp.int32
        )
        size = sizes[jnp.maximum(i - 1, 0)]
        keys = parts.fold_in(problem.keys, i)
        reach = jnp.asarray(meshes.constant(radius), x.dtype)
        reach = jnp.broadcast_to(reach, problem.labels.shape)

        def first() -> jax.Array:
            draw = _stripes if p == math.inf else _grid
            return jax.vmap(lambda key: draw(key, shape, p, x.dtype))(keys)

        def propose() -> jax.Array:
            def one(key: jax.Array, delta: jax.Array, r: jax.Array) -> jax.Array:
                if p == math.inf:
                    return _recolour(key, delta, r, size)
                return _move_mass(key, delta, r, size, p)

            images = state.delta
            images = jnp.moveaxis(images, 1, 3) if moves else images
            unit = jax.vmap(one)(keys, images.reshape(len(x), *shape), reach)
            return unit.astype(x.dtype)

        unit = lax.cond(i == 0, first, propose)
        unit = (jnp.moveaxis(unit, 3, 1) if moves else unit).reshape(x.shape)
        delta = parts.confine(x, linalg.scale(unit, reach), p, reach, bounds)
        # Clipped as in the end: the sum may round to the outside of the box.
        logits = f(parts.clip(x + delta, bounds))
        margin = losses.margin(logits, problem.labels)
        margin = jnp.nan_to_num(margin, nan=-jnp.inf).astype(state.value.dtype)
        new = Best(delta, margin, parts.decided(logits, problem.labels))
        better = parts.improves(new, state, "success") | (i == 0)
        return parts.select(better, new, state)

    stage = Stage(
        name="square",
        num_steps=num_queries + 1,
        bounds=bounds,
        epsilon=radius,
        init=init,
        step=step,
        finish=lambda problem, state: parts.clip(problem.x + state.delta, bounds),
        done=lambda state: state.hit,
        check=check,
    )
    if targeted:
        stage = criteria.reaching(stage)
    return Attack(name="square", p=p, stages=(stage,), judges_input=True)


def image_shape(shape: tuple[int, ...], channels: str) -> tuple[int, int, int]:
    """(H, W, C) of the images of a batch of that shape."""
    if len(shape) == 4 and channels == "last":
        return shape[1], shape[2], shape[3]
    if len(shape) == 4 and channels == "first":
        return shape[2], shape[3], shape[1]
    return math.prod(shape[1:-1]), shape[-1], 1


def check_layout(shape: tuple[int, ...], channels: str) -> None:
    """Raises ValueError where the axis of channels is plainly another one."""
    if len(shape) != 4 or channels == "none":
        return
    here, there = (3, 1) if channels == "last" else (1, 3)
    if shape[there] in _USUAL_CHANNELS and shape[here] not in _USUAL_CHANNELS:
        other = "first" if channels == "last" else "last"
        raise ValueError(
            f"x has shape {shape}, and channels is {channels!r}: axis {there} with "
            f"{shape[there]} entries looks like the channels, not axis {here} with "
            f"{shape[here]}; give channels={other!r}, or 'none' for images without."
        )


def _sizes(
    p: float,
    num_queries: int,
    fraction: float,
    rescale: bool,
    shape: tuple[int, int, int],
) -> np.ndarray:
    """The side of the square of each query, which may be longer than the image's."""
    height, width, _ = shape
    shorter, longer = min(height, width), max(height, width)
    query = np.arange(num_queries)
    if rescale:
        query = (query / num_queries * 10_000).astype(int)
    halvings = np.searchsorted(_HALVINGS, query)
    area = fraction / 2.0**halvings * height * width
    # As far as it goes beyond the shorter side of the image, the square is cut off.
    side = np.where(area > shorter**2, area / shorter, np.sqrt(area))
    side = np.round(side).astype(int)
    if p != math.inf:
        # The pattern has a centre.
        side = np.maximum(side, 3)
        side += 1 - side % 2
    return np.clip(side, 1, longer)


def _stripes(
    key: jax.Array, shape: tuple[int, int, int], p: float, dtype: DTypeLike
) -> jax.Array:
    del p
    _, width, channels = shape
    signs = linalg.draw(jax.random.rademacher, key, (1, width, channels), dtype)
    return jnp.broadcast_to(signs, shape)


def _corner(
    key: jax.Array, shape: tuple[int, ...], size: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Row and column of every pixel, counted from a random corner of a square.

    An axis shorter than the square lies in it from end to end.
    """
    height, width = shape[:2]
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
    place = jax.random.uniform(key, (2,))

    def corner(place: jax.Array, length: int) -> jax.Array:
        corners = jnp.maximum(length - size + 1, 1).astype(place.dtype)
        return jnp.floor(place * corners).astype(jnp.int32)

    return rows - corner(place[0], height), columns - corner(place[1], width)


def _inside(rows: jax.Array, columns: jax.Array, size: jax.Array) -> jax.Array:
    return (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)


def _recolour(
    key: jax.Array, delta: jax.Array, radius: jax.Array, size: jax.Array
) -> jax.Array:
    """Sets a square of each channel to plus or minus one, in units of the radius."""
    place, colour = jax.random.split(key)
    window = _inside(*_corner(place, delta.shape, size), size)
    shape = (1, 1, delta.shape[2])
    signs = linalg.draw(jax.random.rademacher, colour, shape, delta.dtype)
    unit = delta / jnp.where(radius > 0, radius, 1.0)
    return jnp.where(window[..., None], signs, unit)


def _pattern(
    rows: jax.Array,
    columns: jax.Array,
    height: jax.Array,
    width: jax.Array,
    p: float,
    longest: int,
) -> jax.Array:
    """Two bumps of opposite sign, one below the other in a window, of p-norm 1."""
    # Table of the sums of 1 / (k + 1)^a that a bump is made of.
    terms = 1.0 / np.arange(1, longest + 2) ** (2.0 if p == 2 else 4.0)
    table = jnp.asarray(np.concatenate([[0.0], np.cumsum(terms)]), jnp.float32)

    def bump(row: jax.Array, tall: jax.Array) -> jax.Array:
        """The bump of a tall x width window, from its row 0 on."""
        centre, middle = tall // 2, width // 2
        rings = jnp.maximum(centre, middle) + 1
        away = jnp.maximum(jnp.abs(row - centre), jnp.abs(columns - middle))
        here = (row >= 0) & (row < tall) & (columns >= 0) & (columns < width)
        away = jnp.clip(away, 0, rings)
        value = jnp.where(here, table[rings] - table[away], 0.0)
        length = linalg.norm(value[None], p)[0]
        return value / jnp.where(length > 0, length, 1.0)

    upper = height // 2
    both = bump(rows, upper) - bump(rows - upper, height - upper)
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
    tall, wide = jnp.minimum(size, shape[0]), jnp.minimum(size, shape[1])
    sides = jnp.where(turned, wide, tall), jnp.where(turned, tall, wide)
    pattern = _pattern(across, along, *sides, p, longest)
    pattern = pattern[..., None].astype(delta.dtype)
    signs = linalg.draw(jax.random.rademacher, colour, (1, 1, channels), delta.dtype)

    def length(image: jax.Array) -> jax.Array:
        return linalg.norm(jnp.moveaxis(image, 2, 0), p)

    kept = jnp.where(target, unit, 0.0)
    kept_length = length(kept)
    mixed = pattern * signs + kept / parts.positive(kept_length)[None, None]
    mixed_length = length(mixed)
    freed = length(jnp.where(target | emptied, unit, 0.0))
    whole = linalg.norm(unit[None], p)[0]
    if p == 2:
        spare = jnp.maximum(1.0 - whole**2, 0.0) / channels
        wanted = jnp.sqrt(spare + freed**2)
    else:
        wanted = jnp.maximum(1.0 - whole, 0.0) / channels + freed
    mixed = mixed * (wanted / parts.positive(mixed_length))[None, None]
    moved = jnp.where(target, mixed, jnp.where(emptied, 0.0, unit))
    if p == 1:
        return moved
    length_now = linalg.norm(moved[None], p)[0]
    return moved / jnp.where(length_now > 0, length_now, 1.0)


def _grid(
    key: jax.Array, shape: tuple[int, int, int], p: float, dtype: DTypeLike
) -> jax.Array:
    """Patterns all over the image, a fifth of it each, of p-norm 1 together."""
    height, width, channels = shape
    side = max(min(height, width) // 5, 1)
    rows, columns = np.arange(height), np.arange(width)
    down, right = (height % side) // 2, (width % side) // 2
    tiles = (-(-height // side) + 1, -(-width // side) + 1)
    signs = linalg.draw(jax.random.rademacher, key, (*tiles, channels), dtype)
    row_of = (rows - down) // side + 1 - (down == 0)
    column_of = (columns - right) // side + 1 - (right == 0)
    places, size = jnp.arange(side), jnp.int32(side)
    tile = _pattern(places[:, None], places[None], size, size, p, side)
    pattern = tile[(rows - down) % side][:, (columns - right) % side]
    if side == 1:
        pattern = jnp.ones((height, width))
    image = pattern[..., None].astype(dtype) * signs[row_of][:, column_of]
    return image / linalg.norm(image[None], p)[0].astype(dtype)
