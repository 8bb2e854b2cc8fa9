"""The way layers of a network are joined, and a Lipschitz bound from it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from opnorm import linalg


class Node(NamedTuple):
    """A value in a network, whose Lipschitz constant follows from those before it.

    Attributes:
      kind: "input"; "layer" for the output of a layer; "sum" for a sum of values, and
        for a single value; "stack" for values whose entries are put side by side, or of
        which a function with a slope of at most 1 is taken entry by entry, such as a
        maximum; "unknown" for a value without a bound.
      layer: position of the layer in the list of layers; -1 for the other kinds.
      parents: pairs (gain, position of an earlier node). The gain bounds the Lipschitz
        constant of all operations between the two.
    """

    kind: str
    layer: int
    parents: tuple[tuple[float, int], ...]


Graph = tuple[Node, ...]


def num_layers(graph: Graph) -> int:
    """Returns the number of layers that a graph refers to."""
    return 1 + max((node.layer for node in graph), default=-1)


@linalg.jit(static_argnums=0)
def log_bound(graph: Graph, norms: jax.Array) -> jax.Array:
    """Computes the log of a bound of the Lipschitz constant of the last node.

    Args:
      graph: nodes after their parents; the last one is the result of the network.
      norms: ``(L,)`` upper bounds of the norms of the layers.

    Returns:
      A scalar: the bound of a layer is its norm times that of its input, the bound of a
      sum is the sum of the bounds, and the bound of a stack is the root of the sum of
      their squares. Rounding is included.
    """
    logs = jnp.log(norms)
    zero = jnp.zeros((), logs.dtype)
    found: list[jax.Array] = []
    sizes: list[jax.Array] = []
    for node in graph:
        parts = [(_log(gain) + found[parent]) for gain, parent in node.parents]
        size = sum((sizes[parent] for _, parent in node.parents), zero)
        size = size + sum(
            abs(_log(gain)) for gain, _ in node.parents if 0 < gain < math.inf
        )
        if node.kind == "input":
            value = zero
        elif node.kind == "unknown":
            value = jnp.full((), jnp.inf, logs.dtype)
        elif node.kind == "layer":
            value = logs[node.layer] + parts[0]
            size = size + jnp.where(jnp.isneginf(value), 0.0, jnp.abs(logs[node.layer]))
        else:
            value = _joined(parts, 2 if node.kind == "stack" else 1)
        found.append(value)
        sizes.append(size)
    rounding = linalg.machine_epsilon(logs.dtype) * len(graph) * sizes[-1]
    return found[-1] + rounding


def _log(gain: float) -> float:
    return math.log(gain) if gain > 0 else -math.inf


def _joined(logs: Sequence[jax.Array], power: int) -> jax.Array:
    """The log of the sum, or of the root of the sum of squares, of exponentials."""
    if len(logs) == 1:
        return logs[0]
    return jax.nn.logsumexp(power * jnp.stack(list(logs))) / power
