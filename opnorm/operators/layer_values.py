"""Values in the abstract run of a network: known ones, and ones of the input."""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from opnorm.operators.kernel_forms import Steps
from opnorm.operators.slopes import largest_slope

# Positions of the entries of an anchor; -1 is a constant.
Index = np.ndarray
Curve = Callable[[jax.Array], jax.Array]

_anchors = itertools.count()


class Known(NamedTuple):
    """A value that does not depend on the input.

    Attributes:
      value: returns the array. It is computed in the first call.
      shape: its shape.
      varies: for each axis whether the entries may differ along it.
      sources: positions of the parameters that it is computed from.
      leaf: position of the parameter whose entries it moves; None for other values.
      steps: the moves.
    """

    value: Callable[[], jax.Array]
    shape: tuple[int, ...]
    varies: tuple[bool, ...]
    sources: frozenset[int]
    leaf: int | None = None
    steps: Steps = ()


class Anchor(NamedTuple):
    """An array whose Lipschitz constant is known.

    Attributes:
      number: tells anchors apart.
      node: position of a node of the graph.
      gain: Lipschitz constant of the array with respect to the node.
    """

    number: int
    node: int
    gain: float


class Live(NamedTuple):
    """A value that depends on the input.

    Each entry is a function of some entries of an anchor. With ``entries`` of one
    array, it is ``curve`` of the entry of the anchor that the array names. With
    several, it has slopes of at most ``slope`` in the entries that they name.

    Attributes:
      shape: its shape.
      anchor: the array that it is computed from.
      entries: arrays of positions in the anchor, each of the shape of the value; None
        for all positions in their order.
      slope: bound of the slopes; inf where only ``curve`` can tell.
      curve: the function of one entry; None if it is not known.
      discrete: whether the value is not floating point, so that it has no slope.
      unbounded: the first operation after which only the curve tells the slope.
      layer: position of the layer of which it is the shifted output; None for others.
      channel_axis: axis that counts the last axis of the kernel of that layer.
    """

    shape: tuple[int, ...]
    anchor: Anchor
    entries: tuple[Index, ...] | None = None
    slope: float = 1.0
    curve: Curve | None = lambda z: z
    discrete: bool = False
    unbounded: str = ""
    layer: int | None = None
    channel_axis: int | None = None


Value = Known | Live


def new_anchor(node: int, gain: float = 1.0) -> Anchor:
    """Returns an anchor that differs from all others."""
    return Anchor(next(_anchors), node, gain)


def fresh(shape: tuple[int, ...], node: int, gain: float = 1.0) -> Live:
    """Returns a value that is an anchor of its own."""
    return Live(tuple(shape), new_anchor(node, gain))


def positions(value: Live) -> tuple[Index, ...]:
    """Returns the entries of a value as arrays."""
    if value.entries is not None:
        return value.entries
    size = math.prod(value.shape)
    return (np.arange(size, dtype=np.int64).reshape(value.shape),)


def gain(value: Live) -> float:
    """Returns a Lipschitz constant of a value with respect to its node; inf if unknown.

    Entries that are used several times raise it by the root of their number.
    """
    slope = value.slope
    if math.isinf(slope) and value.curve is not None:
        slope = largest_slope(value.curve)
    return value.anchor.gain * slope * math.sqrt(_multiplicity(value))


def _multiplicity(value: Live) -> int:
    if value.entries is None:
        return 1
    used = np.concatenate([index.ravel() for index in value.entries])
    used = used[used >= 0]
    return int(np.bincount(used).max()) if used.size else 0


def moved(value: Live, move: Callable[[Index], Index]) -> Live:
    """Returns a value whose entries are moved, copied or left out."""
    entries = tuple(move(index) for index in positions(value))
    return value._replace(
        shape=entries[0].shape, entries=entries, layer=None, channel_axis=None
    )


def one_entry(first: Live, second: Live) -> bool:
    """Tells whether two values are curves of the same entries, place by place."""
    return (
        first.anchor == second.anchor
        and first.curve is not None
        and second.curve is not None
        and _same(first, second)
    )


def _same(first: Live, second: Live) -> bool:
    if first.entries is None and second.entries is None:
        return first.shape == second.shape
    a, b = positions(first), positions(second)
    return len(a) == len(b) and all(
        one.shape == other.shape and np.array_equal(one, other)
        for one, other in zip(a, b, strict=True)
    )


def united(values: list[Live], shape: tuple[int, ...]) -> tuple[Index, ...]:
    """Returns the different entries of values of one anchor, with one shape."""
    found: list[Index] = []
    for value in values:
        for index in positions(value):
            wide = np.broadcast_to(index, shape)
            if not any(np.array_equal(wide, other) for other in found):
                found.append(wide)
    return tuple(found)


def broadcast(value: Live, shape: tuple[int, ...]) -> Live:
    """A value as an operation broadcasts it."""
    if value.shape == tuple(shape):
        return value
    return moved(value, lambda index: np.broadcast_to(index, shape))
