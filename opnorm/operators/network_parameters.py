"""The parameters among the leaves of a network that is a pytree."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from opnorm.linalg import Network


def choose_parameters(
    f: Network, parameters: Callable[[str], bool] | None = None
) -> tuple[int, ...]:
    """Returns the positions of the parameters among the leaves of a network.

    Args:
      f: a callable pytree.
      parameters: ``path -> bool``, true for the arrays that are parameters; None for
        the variables of the type ``nnx.Param`` of an NNX module, else for the floating
        point arrays below "params" where some path has it, else for all floating point
        arrays.

    Raises:
      ValueError: for a network without floating point arrays, or if none is chosen.
    """
    leaves = jax.tree_util.tree_flatten_with_path(f)[0]
    paths = {
        i: jax.tree_util.keystr(path, simple=True, separator="/")
        for i, (path, leaf) in enumerate(leaves)
        if jnp.issubdtype(getattr(leaf, "dtype", np.bool_), jnp.floating)
    }
    if not paths:
        raise ValueError(
            f"f is a {type(f).__name__} that shows no floating point arrays; it must "
            "be a pytree with its parameters as leaves, such as opnorm.network(module, "
            "variables) or jax.tree_util.Partial(apply, variables)."
        )
    if parameters is None:
        return _usual_parameters(f, paths)
    chosen = tuple(i for i, path in paths.items() if parameters(path))
    if not chosen:
        raise ValueError(
            "parameters chooses none of the floating point arrays of f; their paths "
            f"are {', '.join(paths.values())}."
        )
    return chosen


def take_parameters(f: Network, chosen: Sequence[int]) -> list[jax.Array]:
    """Returns the leaves at the given positions."""
    leaves = jax.tree.leaves(f)
    return [leaves[i] for i in chosen]


def put_parameters(
    f: Network, chosen: Sequence[int], params: Sequence[jax.Array]
) -> Network:
    """Returns the network with other leaves at the given positions."""
    leaves, treedef = jax.tree.flatten(f)
    for i, leaf in zip(chosen, params, strict=True):
        leaves[i] = leaf
    network: Network = jax.tree.unflatten(treedef, leaves)
    return network


def _usual_parameters(f: Network, paths: dict[int, str]) -> tuple[int, ...]:
    nodes = jax.tree.leaves(f, is_leaf=lambda node: isinstance(node, nnx.Variable))
    trained = [
        isinstance(node, nnx.Param) for node in nodes for _ in jax.tree.leaves(node)
    ]
    if any(trained):
        return tuple(i for i in paths if trained[i])
    below = tuple(i for i, path in paths.items() if "params" in path.split("/"))
    return below or tuple(paths)
