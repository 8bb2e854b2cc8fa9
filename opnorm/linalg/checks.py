"""Checks of the keys, counts, arrays and networks that functions take."""

import operator
import sys
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np


def check_key(key: object, batch_size: int | None = None) -> None:
    """Raises ValueError unless ``key`` is a typed key.

    Args:
      key: the value that was given. The error calls it ``key``.
      batch_size: B where ``(B,)`` keys, one for each example, are allowed too.
    """
    dtype = getattr(key, "dtype", None)
    # A raw key is two numbers, which would pass for the keys of two examples.
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        given = f"is {key!r}" if dtype is None else f"has dtype {dtype}"
        raise ValueError(
            f"key {given}; it must be a typed key, such as jax.random.key(0)."
        )
    shape = getattr(key, "shape", None)
    if shape not in ((), (batch_size,)):
        several = "" if batch_size is None else f" or ({batch_size},)"
        raise ValueError(f"key has shape {shape}; it must be (){several}.")


def check_count(name: str, value: object, least: int, most: int | None = None) -> int:
    """Returns ``value`` as an int, or raises ValueError unless it is one in the range.

    Args:
      name: the name of the argument in the error.
      value: an int of Python or NumPy; counts are static under ``jit``.
      least: the smallest allowed int.
      most: the largest allowed int; None for no limit.
    """
    allowed = f"of {least} or more" if most is None else f"from {least} to {most}"
    try:
        if isinstance(value, bool | np.bool_) or not isinstance(value, SupportsIndex):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        count = least - 1
    if count < least or (most is not None and count > most):
        raise ValueError(f"{name} is {value!r}; it must be an int {allowed}.")
    return count


def check_array(name: str, value: object) -> None:
    """Raises ValueError for a tensor of PyTorch, which JAX does not compute with.

    Args:
      name: the name of the argument in the error.
      value: the value that was given.
    """
    if type(value).__module__.partition(".")[0] == "torch":
        images = " with channels last" if getattr(value, "ndim", 0) > 2 else ""
        raise ValueError(
            f"{name} is a PyTorch tensor; give {name}.detach().cpu().numpy(){images}."
        )


def check_network(f: object) -> None:
    """Raises ValueError for a module of PyTorch, or an NNX module in training mode.

    Dropout draws random numbers in training mode, and BatchNorm mixes the rows of a
    batch, so that the module is no batch function.

    Args:
      f: the network. The frameworks are imported if it is one of theirs.
    """
    torch = sys.modules.get("torch.nn")
    if torch is not None and isinstance(f, torch.Module):
        raise ValueError(
            "f is a PyTorch module; opnorm.torch.from_torch(f) makes a network of it."
        )
    nnx = sys.modules.get("flax.nnx")
    if nnx is None or not isinstance(f, nnx.Module):
        return
    for path, module in nnx.iter_modules(f):
        drops = getattr(module, "rate", getattr(module, "dropout_rate", 0))
        random = drops and getattr(module, "deterministic", None) is False
        if random or getattr(module, "use_running_average", None) is False:
            place = ".".join(map(str, path)) or "the module itself"
            raise ValueError(
                f"f is an NNX module in training mode ({place}: "
                f"{type(module).__name__}); call its method .eval() first, or give "
                "opnorm.network(f)."
            )
