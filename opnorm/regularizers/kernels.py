"""regularizers: the kernels of a parameter tree, by name."""

from typing import Any

import jax


def kernels_of(params: Any) -> dict[str, jax.Array]:
    """Finds the leaves called "kernel" with at least two dimensions, by their path.

    Args:
      params: a Flax parameter tree.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {_path(place): leaf for place, leaf in leaves}
    return {
        path: leaf
        for path, leaf in named.items()
        if path.split("/")[-1] == "kernel" and leaf.ndim >= 2
    }


def replace_kernels(params: Any, kernels: dict[str, jax.Array]) -> Any:
    """Returns the tree with other kernels at the given paths."""
    return jax.tree_util.tree_map_with_path(
        lambda place, leaf: kernels.get(_path(place), leaf), params
    )


def _path(place: Any) -> str:
    return jax.tree_util.keystr(place, simple=True, separator="/")
