"""The activations that networks are built with."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


def smooth_relu(x: jax.Array) -> jax.Array:
    """Computes a ReLU whose corner is rounded by a polynomial, twice differentiable.

    The function is::

        max(x, 0)                          where |x| >= 1/2
        (x + 1/2)^3 - (x + 1/2)^4 / 2      elsewhere

    Slope and curvature agree where the pieces meet. The curvature is at most 3/2 (at
    0), the slope grows from 0 to 1, and the value exceeds that of ReLU by at most 3/32
    (at 0). The third derivative jumps at +-1/2.

    Args:
      x: floating, any shape.

    Returns:
      An array with the shape and dtype of ``x``.

    Source: Finlay & Oberman 2019, Remark 2.2.
    """
    inside = jnp.abs(x) < 0.5
    # Elsewhere powers of x may overflow, and their derivatives would become NaN.
    z = jnp.where(inside, x, 0) + 0.5
    return jnp.where(inside, z * z * z * (1 - 0.5 * z), nn.relu(x))


# ELU (Clevert et al. 2016) is x above 0 and exp(x) - 1 below. Its slope is continuous,
# at most 1, and 1-Lipschitz. Swish (Ramachandran et al. 2017) is x sigmoid(x). Its
# slope reaches 1.0998, so bounds from the norms of layers, which suppose 1-Lipschitz
# functions between them, do not hold for it.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "smooth_relu": smooth_relu,
    "elu": nn.elu,
    "swish": nn.swish,
}


def check_activation(activation: str) -> None:
    """Raises a ValueError unless ``activation`` is a name in ``ACTIVATIONS``."""
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation is {activation!r}; it may be {', '.join(ACTIVATIONS)}."
        )
