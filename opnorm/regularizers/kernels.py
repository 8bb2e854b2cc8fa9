"""The kernels of a parameter tree, by name."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from opnorm import operators
from opnorm.linalg import Params, PyTree
from opnorm.operators.kernel_forms import apply_steps, undo_steps


def kernels_of(params: Params) -> dict[str, jax.Array]:
    """Finds the leaves called "kernel" with at least two dimensions.

    Args:
      params: a Flax parameter tree.

    Returns:
      The kernels, keyed by their paths.
    """
    return {
        path: leaf
        for path, leaf in _leaves(params).items()
        if path.split("/")[-1] == "kernel" and leaf.ndim >= 2
    }


def placed_layers(
    params: Params, layers: Sequence[operators.Layer]
) -> list[operators.Layer]:
    """Returns the convolutions and matrices with the kernels of a tree.

    Args:
      params: the tree; kernels are at the paths of the layers.
      layers: layers of its network. Their kernels are not used.

    Raises:
      ValueError: for no layers, a layer that is called twice, whose kernel is computed
        inside the network, or whose kernel is not in ``params``.
    """
    leaves = _leaves(params)
    placed: list[operators.Layer] = []
    for layer in layers:
        if layer.has_factors:
            continue
        if layer.name in {other.name for other in placed}:
            raise ValueError(
                f"layers has {layer.name!r} twice; a layer must be called once."
            )
        path = path_of(layer, leaves)
        kernel = apply_steps(leaves[path], layer.steps)
        placed.append(dataclasses.replace(layer, kernel=kernel, path=path))
    if not placed:
        raise ValueError("layers has no convolution or dense layer.")
    return placed


def path_of(layer: operators.Layer, leaves: dict[str, jax.Array]) -> str:
    """Returns the path of the kernel of a layer in a tree."""
    if layer.path is None:
        raise ValueError(
            f"layers has {layer.name!r}, whose kernel is computed inside the network; "
            "it must be a parameter."
        )
    named = f"{layer.name}/kernel"
    for path in (layer.path, named):
        if path in leaves:
            return path
    known = [path for path, leaf in leaves.items() if jnp.ndim(leaf) >= 2]
    kernels = sorted(path.removesuffix("/kernel") for path in known)
    raise ValueError(f"layers has {layer.name!r}; params has kernels of {kernels}.")


def replace_kernels(
    params: Params, placed: Sequence[operators.Layer], kernels: Sequence[jax.Array]
) -> Params:
    """Returns the tree with other kernels.

    Args:
      params: the tree.
      placed: layers from :func:`placed_layers`.
      kernels: a kernel for each layer, in its form.
    """
    new = {
        layer.path: (layer.steps, kernel)
        for layer, kernel in zip(placed, kernels, strict=True)
    }

    def replace(place: tuple[jax.tree_util.KeyEntry, ...], leaf: PyTree) -> PyTree:
        if _path(place) not in new:
            return leaf
        steps, kernel = new[_path(place)]
        return undo_steps(kernel, steps, leaf.shape) if steps else kernel

    return jax.tree_util.tree_map_with_path(replace, params)


def _leaves(params: Params) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {_path(place): leaf for place, leaf in leaves}


def _path(place: tuple[jax.tree_util.KeyEntry, ...]) -> str:
    return jax.tree_util.keystr(place, simple=True, separator="/")
