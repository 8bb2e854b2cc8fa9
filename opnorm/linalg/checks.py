"""Checks of the keys and counts that functions take."""

import operator
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
        raise ValueError(f"key {given}; it must be a typed key (jax.random.key).")
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
