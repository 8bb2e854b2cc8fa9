"""Searches on arrays that are spread over the devices of a mesh."""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax import lax
from jax.sharding import PartitionSpec

from opnorm.linalg import BatchFunction, PyTree
from opnorm.linalg.linear_map import varying_axes

R = TypeVar("R")
Rows = TypeVar("Rows")
Tree = TypeVar("Tree")

# Functions of JAX with the types that JAX does not state.
_spec: Callable[..., PartitionSpec] = PartitionSpec
_reshard: Callable[[jax.Array, PartitionSpec], jax.Array] = jax.sharding.reshard


def without_explicit_axes(
    search: Callable[[BatchFunction, Rows], R],
    f: BatchFunction,
    rows: Rows,
    x: jax.Array,
    result: Callable[[PyTree, PyTree], PyTree],
    *,
    keyed: bool = False,
) -> R:
    """Runs ``search(f, rows)`` with the explicit axes of the mesh of x made automatic.

    A search mixes arrays with and without a sharding of their own, which explicit axes
    refuse. The network is still called with explicit axes, since it may close over
    arrays that have them.

    Args:
      search: a function of a network and of arrays with one row per example.
      f: the network.
      rows: pytree of arrays ``(B, ...)``.
      x: ``(B, ...)``, the inputs among them.
      result: makes the shardings of the result of ``search`` from that of arrays like x
        and that of arrays ``(B,)``.
      keyed: whether the network also takes keys ``(B,)``.
    """
    sharding = jax.typeof(x).sharding
    axes = _explicit_axes(sharding.mesh)
    if not axes:
        return search(f, rows)
    row = jax.NamedSharding(sharding.mesh, _spec(*sharding.spec[:1]))
    given = (sharding, row) if keyed else sharding
    network = jax.sharding.explicit_axes(f, axes=axes, in_sharding=given)
    run: Callable[[Rows], R] = jax.sharding.auto_axes(
        lambda rows: search(network, rows),
        axes=axes,
        out_sharding=result(sharding, row),
    )
    return run(rows)


def constant(value: float | jax.Array) -> float | jax.Array:
    """Returns an option of an attack, such as epsilon, as a constant of the search.

    A search runs without explicit mesh axes, and an option that has them is rid of them
    here. No gradient flows through it.
    """
    value = lax.stop_gradient(value)
    if isinstance(value, jax.Array) and _explicit_axes(jax.typeof(value).sharding.mesh):
        return _reshard(value, _spec())
    return value


def vary_alike(rows: PyTree, tree: Tree) -> Tree:
    """Marks arrays as differing along the mesh axes along which the rows differ.

    ``shard_map`` tells shared values from those of each device by their type, and a
    loop has to start from the type that its body returns.

    Args:
      rows: pytree of arrays, one row per example.
      tree: pytree of arrays to mark.
    """
    axes = frozenset[str]().union(*map(varying_axes, jax.tree.leaves(rows)))

    def mark(array: jax.Array) -> jax.Array:
        missing = tuple(axes - varying_axes(array))
        return lax.pcast(array, missing, to="varying") if missing else array

    if not axes:
        return tree
    marked: Tree = jax.tree.map(mark, tree)
    return marked


def _explicit_axes(mesh: jax.sharding.AbstractMesh) -> tuple[str, ...]:
    explicit = jax.sharding.AxisType.Explicit
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind == explicit)
