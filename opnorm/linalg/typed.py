"""Functions of JAX with the types that JAX does not state."""

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

P = ParamSpec("P")
R = TypeVar("R")

_finfo: Callable[[DTypeLike], Any] = jnp.finfo
_struct: Callable[..., jax.ShapeDtypeStruct] = jax.ShapeDtypeStruct


def jit(
    *, static_argnums: int | Sequence[int] = (), **options: Any
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Returns ``jax.jit`` as a decorator that keeps the signature of its function.

    Args:
      static_argnums: as in ``jax.jit``.
      **options: further options of ``jax.jit``.
    """

    def decorate(fun: Callable[P, R]) -> Callable[P, R]:
        compiled: Callable[P, R] = jax.jit(
            fun, static_argnums=static_argnums, **options
        )
        return compiled

    return decorate


def shape_dtype(shape: Sequence[int], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of an array that is not computed."""
    return _struct(tuple(shape), dtype)


def machine_epsilon(dtype: DTypeLike) -> float:
    """Returns the distance from 1 to the next larger number of a dtype."""
    return float(_finfo(dtype).eps)


def smallest_normal(dtype: DTypeLike) -> float:
    """Returns the smallest positive number of a dtype that has full precision."""
    return float(_finfo(dtype).tiny)
