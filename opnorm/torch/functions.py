"""A PyTorch module as a batch function of JAX."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from opnorm.torch import calls, modules


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TorchNetwork:
    """A PyTorch module as a batch function, made by :func:`from_torch`.

    It is a pytree without leaves, so compiled programs are kept for it, and two
    functions of one module share them. The programs hold the module until
    ``jax.clear_caches()``.

    Attributes:
      module: the ``torch.nn.Module``. Each call uses the weights that it has then.
      channels_first: whether the module takes images as (B, C, H, W).
    """

    module: Any
    channels_first: bool = True

    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes the module's outputs for a batch.

        Args:
          x: ``(B, ...)`` floating; images as (B, H, W, C).

        Returns:
          ``(B, ...)``, float64 for float64 x and float32 otherwise.

        Raises:
          ValueError: for an x that is not a floating batch, a module in training mode,
            or one that fails on such a batch or does not return one tensor with a row
            for each example.
        """
        x = jnp.asarray(x)
        if x.ndim < 1 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"x has shape {x.shape} and dtype {x.dtype}; it must be a floating "
                "batch (B, ...)."
            )
        wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
        host = modules.Host(self.module, self.channels_first)
        shape = host.output_shape(x.shape[1:], wide)
        return calls.call(x.astype(wide), host=host, kind="apply", row_shape=shape)


def from_torch(module: Any, *, channels_first: bool = True) -> TorchNetwork:
    """Returns a PyTorch module as a batch function with exact derivatives.

    Every function of the library takes the result as ``f``. Its values and derivatives
    are computed by PyTorch, which JAX's programs call back on the host::

        f = opnorm.torch.from_torch(module.eval())
        f(images)                                        # (B, K), images (B, H, W, C)
        opnorm.operators.jacobian_norm(f, images, key=jax.random.key(0))
        opnorm.attacks.pga(p=2, epsilon=0.5)(f, images, labels, jax.random.key(0))

    ``jax.vjp``, ``jax.jvp``, ``jax.linearize``, ``jax.jit`` and ``jax.vmap`` work, and
    so do second derivatives, such as Hessian-vector products; third derivatives do not.
    A product with the Jacobian is taken by PyTorch's forward mode, and where an
    operation has none, by two passes of reverse mode.

    The parameters of the module are constants: no gradient reaches them, and functions
    that need a network's layers or parameters do not take the result. For these, and
    for speed, load the weights into a network of this library
    (:func:`opnorm.torch.load_network`). A gradient costs one forward pass more than in
    PyTorch, because no graph is kept between two calls.

    The module may be on any device and have any floating dtype; batches are moved and
    converted to those of its parameters, and results back to float32 (float64 for
    float64 inputs). Several devices of JAX take turns; the axes of their mesh must have
    the type ``jax.sharding.AxisType.Auto``, since JAX has no callbacks on others.

    Args:
      module: a ``torch.nn.Module`` that maps a batch to one floating tensor with a row
        for each example, such as logits (B, K). It must be in evaluation mode with all
        of its parts, and normalise images itself: lengths are in the units of ``x``.
      channels_first: if true, the module takes images as PyTorch does, (B, C, H, W);
        batches with four axes are then (B, H, W, C) for JAX, as everywhere in this
        library, and are transposed. Other batches reach the module as they are. If
        false, so do all.

    Raises:
      ValueError: if the module is not a PyTorch module, is in training mode, or has a
        BatchNorm without running statistics, whose rows depend on each other.
    """
    modules.check(module)
    return TorchNetwork(module, channels_first)
