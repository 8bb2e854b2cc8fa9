"""The Jacobians of all examples of a set, stacked into one linear map."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from opnorm import linalg
from opnorm.linalg import BatchFunction
from opnorm.linalg.dtypes import at_least_single
from opnorm.operators import jacobian

_array_shape: Callable[..., jax.ShapeDtypeStruct] = jax.ShapeDtypeStruct


def stacked_jacobian_map(
    f: BatchFunction, images: jax.Array | np.ndarray, *, batch_size: int = 100
) -> linalg.LinearMap:
    """Returns the stacked Jacobians of a set as one linear map.

    The map takes one perturbation v to its first-order effect on every image,

        S v = (J_f(x_1) v, ..., J_f(x_N) v),

    so that ``||S v||_q^q = sum_i ||J_f(x_i) v||_q^q``. Its (p, q) norm is the largest
    effect of a universal perturbation, and its top singular vector is that
    perturbation::

        linalg.operator_norm(stacked, p=math.inf, q=10, key=key)
        linalg.golub_kahan(stacked, k, key=key)  # the top k vectors for p = q = 2

    A product runs through the set batch by batch, and f is linearised anew in each. So
    the memory holds the images (one byte for a pixel of uint8 images), the N d numbers
    of a product, and the activations of one batch. One program serves all batches; the
    last one is filled up with copies, which count as nothing.

    Args:
      f: batch function ``(B, ...) -> (B, d)`` with independent rows: the logits, or an
        inner layer that is flattened to ``(B, d)``.
      images: ``(N, ...)``, float in [0, 1] pixel units, or uint8, which is divided by
        255.
      batch_size: largest number of images in a pass.

    Returns:
      One map, of batch size 1, from ``(1, ...)`` to ``(1, N, d)``.

    Raises:
      ValueError: for a batch_size below 1, and as
        :func:`opnorm.operators.jacobian_map`.

    Source: Khrulkov and Oseledets 2017, "Art of singular vectors and universal
    adversarial perturbations" (arXiv 1709.03582).

    Example:
      The Jacobian of a linear network is the same at both images, so that the stacked
      norm is sqrt(2) times the norm of one:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> from opnorm import linalg, operators
      >>> weights = jnp.array([[3.0, 0.0], [0.0, 1.0]])
      >>> f = jax.tree_util.Partial(lambda w, x: x @ w, weights)
      >>> S = operators.stacked_jacobian_map(f, jnp.zeros((2, 2)))
      >>> S.in_shape, S.out_shape
      ((2,), (2, 2))
      >>> found = linalg.golub_kahan(S, 1, key=jax.random.key(0))
      >>> print(round(float(found.values[0, 0]), 3))
      4.243
    """
    batch_size = linalg.check_count("batch_size", batch_size, 1)
    count, *shape = images.shape
    dtype = jnp.dtype(np.float32) if images.dtype == np.uint8 else images.dtype
    size = max(1, min(batch_size, count))
    d = jacobian.check(f, _array_shape((size if count else 0, *shape), dtype))
    batches = math.ceil(count / size)
    wide = at_least_single(dtype)

    def batch(i: jax.Array) -> jax.Array:
        rows = jnp.minimum(i * size + jnp.arange(size), count - 1)
        found = jnp.asarray(images)[rows]
        return found.astype(dtype) / 255 if images.dtype == np.uint8 else found

    def matvec(v: jax.Array) -> jax.Array:
        tangent = jnp.broadcast_to(v.astype(dtype), (size, *shape))

        def body(i: jax.Array, products: jax.Array) -> jax.Array:
            change = jax.jvp(f, (batch(i),), (tangent,))[1].astype(wide)
            start = (i * size, jnp.zeros_like(i))
            return jax.lax.dynamic_update_slice(products, change, start)

        empty = jnp.zeros((batches * size, d), wide)
        products = linalg.fori_loop(batches, body, empty)
        return products[None, :count].astype(dtype)

    def rmatvec(u: jax.Array) -> jax.Array:
        padding = ((0, batches * size - count), (0, 0))
        rows = jnp.pad(u.reshape(count, d), padding).reshape(batches, size, d)

        def body(i: jax.Array, total: jax.Array) -> jax.Array:
            out, pull = jax.vjp(f, batch(i))
            (gradient,) = pull(rows[i].astype(out.dtype))
            return total + jnp.sum(gradient.astype(wide), axis=0)

        total = linalg.fori_loop(batches, body, jnp.zeros(shape, wide))
        return total[None].astype(dtype)

    return linalg.LinearMap(matvec, rmatvec, 1, tuple(shape), (count, d), dtype)
