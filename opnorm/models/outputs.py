"""The outputs of networks, which are the logits alone unless more are asked for."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

OUTPUTS = ("logits", "all")


class Outputs(NamedTuple):
    """Logits with the arrays that lead to them.

    Attributes:
      logits: (B, num_classes), at least float32.
      features: (B, F), the input of the last linear layer (phi^{L-1} in Roth et al.
        2020), in the network's dtype.
      preactivations: the array before each activation in order, (B, ...) each, in the
        network's dtype; a unit of a ReLU is active where it is positive.
    """

    logits: jax.Array
    features: jax.Array
    preactivations: tuple[jax.Array, ...]


def select(
    outputs: str,
    logits: jax.Array,
    features: jax.Array,
    preactivations: Sequence[jax.Array],
) -> jax.Array | Outputs:
    """Returns the logits or all outputs, as ``outputs`` names them."""
    if outputs == "logits":
        return logits
    return Outputs(logits, features, tuple(preactivations))


def check_outputs(outputs: str) -> None:
    """Raises a ValueError unless ``outputs`` is one of the names in ``OUTPUTS``."""
    if outputs not in OUTPUTS:
        raise ValueError(f"outputs is {outputs!r}; it may be 'logits' or 'all'.")


def check_size(name: str, value: int) -> None:
    """Raises a ValueError, with the name, unless ``value`` is an int of 1 or more."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least 1.")


def check_dropout(rate: float) -> None:
    """Raises a ValueError unless ``rate`` is a number in [0, 1)."""
    if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise ValueError(f"dropout is {rate!r}; it must be in [0, 1).")


def check_stage_sizes(stage_sizes: tuple[int, ...]) -> None:
    """Raises a ValueError unless ``stage_sizes`` are ints of 1 or more."""
    if not stage_sizes:
        raise ValueError("stage_sizes is empty; a network has at least one stage.")
    for size in stage_sizes:
        check_size("stage_sizes", size)


def parameter_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Returns the dtype of parameters and logits for a computation in ``dtype``."""
    # The promotion is asked for; it must also hold where JAX refuses implicit ones.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(dtype, jnp.float32)
