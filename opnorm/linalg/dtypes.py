"""The dtypes in which results are accumulated."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def at_least_single(dtype: DTypeLike) -> jnp.dtype:
    """Returns the dtype in which numbers of ``dtype`` are summed and compared.

    It is ``float32``, or ``dtype`` where that is wider. The promotion is asked for, so
    it also holds where JAX refuses implicit ones
    (``jax_numpy_dtype_promotion="strict"``).
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(dtype, jnp.float32)
