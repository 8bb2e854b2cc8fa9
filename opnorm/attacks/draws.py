"""A randomised network at fixed draws, as a search calls it."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from opnorm import linalg


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A batch function made of D draws of a randomised network.

    Its logits are those of one draw for each example, the one that decides whether
    there is success. Its Jacobian is the mean of the Jacobians of all draws.
    :func:`opnorm.attacks.parts.value_and_gradient` also takes the mean of losses that
    are not linear in the logits.

    Attributes:
      f: randomised network ``(B, ...), (B,) keys -> (B, K)``.
      keys: ``(D, B)`` typed keys.
      choose: ``(D, B, K) -> (B,)`` int, the number of the draw that decides.
    """

    f: linalg.Network
    keys: jax.Array
    choose: Callable[[jax.Array], jax.Array]

    def each(self, z: jax.Array) -> jax.Array:
        """Returns the logits of every draw, ``(D, B, K)``."""
        return evaluate(self.f, z, self.keys)

    def decisive(self, logits: jax.Array) -> jax.Array:
        """Returns the logits of the draw that decides, ``(B, K)``."""
        chosen = self.choose(logits)[None, :, None]
        return jnp.take_along_axis(logits, chosen, axis=0)[0]

    def __call__(self, z: jax.Array) -> jax.Array:
        """Returns the logits ``(B, K)`` at z ``(B, ...)``."""
        logits = self.each(z)
        held = lax.stop_gradient(self.decisive(logits))
        # Logits of masked classes are infinite, and have no slope.
        mean = jnp.mean(jnp.where(jnp.isfinite(logits), logits, 0.0), axis=0)
        return held + (mean - lax.stop_gradient(mean))


def evaluate(f: linalg.Network, z: jax.Array, keys: jax.Array) -> jax.Array:
    """Evaluates a randomised network at the same points for each row of keys.

    Args:
      f: ``(B, ...), (B,) keys -> (B, K)``.
      z: ``(B, ...)``.
      keys: ``(D, B)`` typed keys.

    Returns:
      ``(D, B, K)``.
    """
    logits: jax.Array = jax.vmap(f, (None, 0))(z, keys)
    return logits
