"""Weights of PyTorch networks in the networks of this library."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from opnorm import models
from opnorm.linalg.typed import shape_dtype
from opnorm.torch import names as names_lib

# PyTorch's words for the arrays of a layer, and the collections that hold ours.
_WORDS = {
    "kernel": ("weight", "params"),
    "scale": ("weight", "params"),
    "bias": ("bias", "params"),
    "mean": ("running_mean", "batch_stats"),
    "var": ("running_var", "batch_stats"),
}
# A message lists this many names of a kind.
_MOST_NAMES = 8


class _Leaf(NamedTuple):
    """An array of our network: its place, shape, dtype and name in PyTorch's words."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: Any
    name: str


def load_network(
    module: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    names: Callable[[str], str] | None = None,
    prefix: str = "",
    ignore: Sequence[str] = (),
    entry: str | None = None,
    image_shape: tuple[int, int, int] = (32, 32, 3),
) -> models.Network:
    """Returns a network of this library with the weights of a PyTorch network.

    Every array of the network is set, and every tensor of the file is used, or the call
    fails and names them. The names of common implementations are known for:

    ==============================  ===================================================
    module                          names
    ==============================  ===================================================
    ``CNN7``                        any, if layers are numbered in their order
    ``WideResNet``                  ``block1.layer.0.conv1``; with
                                    ``padding="same"`` those of Gowal et al.,
                                    ``layer.0.block.0.conv_0``
    ``ResNet50``, ``ResNet18``,     torchvision's, and those for CIFAR-10 with
    ``WideResNet50``                ``shortcut`` and ``linear``
    ``ResNeXt34``                   Finlay & Oberman's
    all                             our own, such as ``stage1_block1.conv1.weight``
    ==============================  ===================================================

    The file holds neither the activation, nor the normalisation of images, nor the
    epsilon of BatchNorm: the module must have the activation, ``mean`` and ``std`` of
    the training, and epsilon is PyTorch's default, 1e-5. Example::

        module = models.create(
            "wrn28_gowal",
            activation="swish",
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2471, 0.2435, 0.2616),
        )
        f = opnorm.torch.load_network(module, "cifar10_linf_wrn28-10.pt")

    Args:
      module: the network, with the number of classes and the width of the file.
      source: a file for :func:`opnorm.models.read_arrays`, or the arrays by name, such
        as ``module.state_dict()``.
      names: for other modules or names: turns our name of a tensor, such as
        ``stage1_block1.conv1.weight``, into the file's, without ``prefix``. A linear
        layer after a flattened map must read it in the order (H, W, C).
      prefix: only names that begin with it are read, such as "model."; it is cut off. A
        part that all names begin with, such as "module.", is cut off without it.
      ignore: beginnings of names that are left out, such as "sub_block1.".
      entry: see :func:`opnorm.models.read_arrays`.
      image_shape: (H, W, C) of the images.

    Returns:
      The network in evaluation mode; its arrays have the dtypes of ``module``.

    Raises:
      ValueError: if the file cannot be read, no names are known for the module, or
        tensors are missing, unexpected or of another shape; the message names them.
    """
    if isinstance(source, str | os.PathLike):
        arrays = models.read_arrays(source, entry=entry)
    else:
        arrays = {name: _as_array(value) for name, value in source.items()}
    arrays = _select(arrays, prefix, ignore)
    leaves = _leaves(module, image_shape)
    ours = [leaf.name for leaf in leaves]
    mapping = _mapping(module, names, ours, arrays)
    _check(leaves, mapping, arrays)
    trees: dict[str, dict[str, Any]] = {"params": {}}
    for leaf in leaves:
        node = trees.setdefault(_WORDS[leaf.path[-1]][1], {})
        for part in leaf.path[:-1]:
            node = node.setdefault(part, {})
        array = _our_layout(arrays[mapping[leaf.name]])
        node[leaf.path[-1]] = jnp.asarray(array, leaf.dtype)
    return models.network(module, trees)


def _as_array(value: Any) -> np.ndarray:
    # Tensors with a gradient, on a device or in bfloat16 do not convert themselves.
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    return np.asarray(value)


def _select(
    arrays: Mapping[str, np.ndarray], prefix: str, ignore: Sequence[str]
) -> dict[str, np.ndarray]:
    """The arrays to use, with names that do not all begin with the same part."""
    kept = {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix) and name.split(".")[-1] != "num_batches_tracked"
    }
    if not kept:
        raise ValueError(
            f"prefix is {prefix!r}; no name begins with it: {_listed(arrays)}."
        )
    while len({name.split(".")[0] for name in kept}) == 1 and all(
        name.count(".") > 1 for name in kept
    ):
        kept = {name.partition(".")[2]: array for name, array in kept.items()}
    return {
        name: array
        for name, array in kept.items()
        if not name.startswith(tuple(ignore))
    }


def _leaves(module: nn.Module, image_shape: tuple[int, int, int]) -> list[_Leaf]:
    images = shape_dtype((1, *image_shape), jnp.float32)
    expected = jax.eval_shape(module.init, jax.random.key(0), images)
    leaves = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        parts = tuple(str(key.key) for key in path[1:])
        if parts[-1] not in _WORDS:
            raise ValueError(
                f"module is a {type(module).__name__} with an array {'.'.join(parts)}; "
                f"only {', '.join(_WORDS)} of convolutions, linear layers and "
                "BatchNorm are known."
            )
        name = ".".join([*parts[:-1], _WORDS[parts[-1]][0]])
        leaves.append(_Leaf(parts, leaf.shape, leaf.dtype, name))
    return leaves


def _mapping(
    module: nn.Module,
    names: Callable[[str], str] | None,
    ours: Sequence[str],
    arrays: Mapping[str, np.ndarray],
) -> Mapping[str, str]:
    """The convention that finds most of our arrays."""
    if names is not None:
        return names_lib.by_function(names)(ours, arrays)
    known = names_lib.conventions(module)
    if not known:
        raise ValueError(
            f"module is a {type(module).__name__}, for which no names are known; "
            "names must turn ours, such as "
            f"{', '.join(ours[:3])}, into those of the file."
        )
    found = [convention(ours, arrays) for convention in known]
    return max(found, key=lambda mapping: len(set(mapping.values()) & set(arrays)))


def _check(
    leaves: Sequence[_Leaf],
    mapping: Mapping[str, str],
    arrays: Mapping[str, np.ndarray],
) -> None:
    missing = [
        mapping[leaf.name] for leaf in leaves if mapping[leaf.name] not in arrays
    ]
    used = set(mapping.values())
    unexpected = [name for name in arrays if name not in used]
    ill_shaped = [
        f"{name} {arrays[name].shape} (must be {_their_shape(leaf.shape)})"
        for leaf in leaves
        if (name := mapping[leaf.name]) in arrays
        and arrays[name].shape != _their_shape(leaf.shape)
    ]
    problems = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": ill_shaped,
    }
    if any(problems.values()):
        text = "; ".join(
            f"{what}: {_listed(given)}" for what, given in problems.items() if given
        )
        raise ValueError(f"source does not fit the module. Tensors {text}.")


def _listed(given: Sequence[str] | Mapping[str, Any]) -> str:
    shown = ", ".join(list(given)[:_MOST_NAMES])
    rest = len(given) - _MOST_NAMES
    return f"{shown} and {rest} more" if rest > 0 else shown


def _their_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    return shape[::-1]


def _our_layout(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
