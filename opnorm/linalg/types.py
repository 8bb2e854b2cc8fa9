"""Names of the types that all rooms share."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

# A tree of arrays. Python cannot state which containers JAX knows, since users register
# their own.
PyTree = Any

# The parameters of a network: a pytree of arrays, such as nested dictionaries.
Params = PyTree

# The collections of a Flax linen module: {"params": ..., "batch_stats": ...}.
Variables = Mapping[str, PyTree]

# Keyword arguments that a function passes on to another one.
Options = Mapping[str, Any]

# A network: any callable f(x), a JAX pytree or a plain function.
Network = Callable[..., Any]

# A network (B, ...) -> (B, d) whose row i depends on row i of its argument alone. A
# loss of each example, (B, ...) -> (B,), is one too.
BatchFunction = Callable[[jax.Array], jax.Array]

# A linear function of the vectors of a batch: (B, *shape) -> (B, *other_shape).
Product = Callable[[jax.Array], jax.Array]

# An array, or the shape and dtype of one where nothing is computed.
ArrayShape = jax.Array | jax.ShapeDtypeStruct
