"""Searches on arrays that are spread over the devices of a mesh."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from opnorm.linalg.linear_map import varying_axes


def without_explicit_axes(
    search: Callable[[Callable[..., Any], Any], Any],
    f: Callable[..., Any],
    rows: Any,
    x: jax.Array,
    result: Callable[[Any, Any], Any],
) -> Any:
    """Runs ``search(f, rows)`` with the explicit axes of the mesh of x made automatic.

    A search mixes arrays with and without a sharding of their own, which explicit axes
    refuse. The network is still called with explicit axes, since it may close over
    arrays that have them.

    Args:
      search: a function of a network and of arrays with one row per example.
      f: the network.
      rows: pytree of arrays ``(B, ...)``.
      x: ``(B, ...)``, the inputs among them.
      result: makes the shardings of what ``search`` returns from that of arrays like x
        and that of arrays ``(B,)``.
    """
    sharding = jax.typeof(x).sharding
    axes = _explicit_axes(sharding.mesh)
    if not axes:
        return search(f, rows)
    row = jax.NamedSharding(sharding.mesh, jax.P(*sharding.spec[:1]))
    network = jax.sharding.explicit_axes(f, axes=axes, in_sharding=sharding)
    run = jax.sharding.auto_axes(
        lambda rows: search(network, rows),
        axes=axes,
        out_sharding=result(sharding, row),
    )
    return run(rows)


def constant(value: Any) -> Any:
    """An option of an attack, such as epsilon, as a constant of the search.

    A search runs without explicit mesh axes, and an option that has them is rid of them
    here. No gradient flows through it.
    """
    value = lax.stop_gradient(value)
    if isinstance(value, jax.Array) and _explicit_axes(jax.typeof(value).sharding.mesh):
        return jax.sharding.reshard(value, jax.P())
    return value


def vary_alike(rows: Any, tree: Any) -> Any:
    """Arrays marked as differing along the mesh axes along which the rows differ.

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

    return jax.tree.map(mark, tree) if axes else tree


def _explicit_axes(mesh: Any) -> tuple[str, ...]:
    explicit = jax.sharding.AxisType.Explicit
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind == explicit)
