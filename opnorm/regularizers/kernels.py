"""The kernels of a parameter tree, by name."""

import jax

from opnorm.linalg import Params


def kernels_of(params: Params) -> dict[str, jax.Array]:
    """Finds the leaves called "kernel" with at least two dimensions.

    Args:
      params: a Flax parameter tree.

    Returns:
      The kernels, keyed by their paths.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {_path(place): leaf for place, leaf in leaves}
    return {
        path: leaf
        for path, leaf in named.items()
        if path.split("/")[-1] == "kernel" and leaf.ndim >= 2
    }


def replace_kernels(params: Params, kernels: dict[str, jax.Array]) -> Params:
    """Returns the tree with the given kernels at their paths."""
    return jax.tree_util.tree_map_with_path(
        lambda place, leaf: kernels.get(_path(place), leaf), params
    )


def _path(place: tuple[jax.tree_util.KeyEntry, ...]) -> str:
    return jax.tree_util.keystr(place, simple=True, separator="/")
