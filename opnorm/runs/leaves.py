"""The arrays, NumPy scalars and typed keys of a state, by name."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from opnorm.runs.json_values import JsonObject

Leaf: TypeAlias = jax.Array | np.ndarray | np.generic
State = TypeVar("State")


def named(state: object) -> dict[str, Leaf]:
    """Returns the leaves of a pytree by name, such as "params.dense.kernel".

    Raises:
      ValueError: for a leaf that is no array, scalar or key, or a key of a dictionary
        that holds a ".".
    """
    leaves: dict[str, Leaf] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        # Otherwise two leaves could share a name, or `insert` split one.
        if name in leaves or name.count(".") != len(path) - 1:
            raise ValueError(f"state has a key with a '.', or two alike, at {name}.")
        if not hasattr(leaf, "dtype"):
            raise ValueError(
                f"state is a {type(leaf).__name__} at {name}; leaves must be arrays, "
                "numpy scalars or typed keys."
            )
        leaves[name] = leaf
    return leaves


def is_key(leaf: Leaf) -> TypeGuard[jax.Array]:
    """Whether a leaf is a typed key."""
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def on_host(leaf: Leaf) -> np.ndarray:
    """Returns a leaf as a NumPy array; a key as its words."""
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def describe(leaf: np.ndarray) -> JsonObject:
    """Returns shape, dtype and checksum of an array."""
    content = np.ascontiguousarray(leaf).tobytes()
    return {
        "shape": list(leaf.shape),
        "dtype": str(leaf.dtype),
        "checksum": zlib.crc32(content),
    }


def fill(example: State, leaves: Mapping[str, np.ndarray], source: Path) -> State:
    """Returns arrays in the structure, and on the devices, of an example.

    Args:
      example: a state of the same structure, shapes, dtypes and shardings. Leaves that
        are not JAX arrays come back as NumPy's.
      leaves: arrays by name.
      source: the file that an error names.

    Raises:
      ValueError: if names, shapes or dtypes differ.
    """
    names = named(example)
    expected = {name: _shape_and_dtype(leaf) for name, leaf in names.items()}
    found = {name: (leaf.shape, str(leaf.dtype)) for name, leaf in leaves.items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{source} belongs to another run: {name} is {found.get(name)} there "
                f"and {expected.get(name)} here."
            )
    filled = [_like(leaf, leaves[name]) for name, leaf in names.items()]
    state: State = jax.tree.unflatten(jax.tree.structure(example), filled)
    return state


def insert(tree: dict[str, JsonObject], keys: list[str], leaf: np.ndarray) -> None:
    """Puts an array into nested dictionaries."""
    node: JsonObject = tree
    for key in keys[:-1]:
        node = node.setdefault(key, {})
    node[keys[-1]] = leaf


def _like(example: Leaf, value: np.ndarray) -> Leaf:
    if is_key(example):
        words = jnp.asarray(value)
        key = jax.random.wrap_key_data(words, impl=jax.random.key_impl(example))
        return _put(key, example.sharding)
    if isinstance(example, jax.Array):
        # Copied: the state may be donated, and this memory is NumPy's.
        return _put(value, example.sharding, may_alias=False)
    if isinstance(example, np.generic):
        return value[()]
    return value


def _put(
    value: Leaf, sharding: jax.sharding.Sharding, may_alias: bool | None = None
) -> jax.Array:
    placed: jax.Array = jax.device_put(value, sharding, may_alias=may_alias)
    return placed


def _shape_and_dtype(leaf: Leaf) -> tuple[tuple[int, ...], str]:
    if is_key(leaf):
        words = jax.eval_shape(jax.random.key_data, leaf)
        return tuple(words.shape), str(words.dtype)
    return tuple(leaf.shape), str(leaf.dtype)
