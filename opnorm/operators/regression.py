"""The Jacobian by regression on noise, as in Roth et al. 2020."""

import math

import jax
import jax.numpy as jnp

from opnorm import linalg
from opnorm.linalg import BatchFunction
from opnorm.linalg.dtypes import at_least_single
from opnorm.operators import jacobian


def regressed_jacobian(
    f: BatchFunction,
    x: jax.Array,
    *,
    num_samples: int,
    radius: float,
    key: jax.Array,
) -> jax.Array:
    """Estimates Jacobians by least squares, to compare with the exact ones.

    The model ``f(x + z_k) = f(x) + J z_k + c`` is fitted to uniform noise z_k, with a
    free constant c. For all other purposes use :func:`opnorm.operators.dense_jacobian`,
    which is exact and takes d passes. The estimate is wrong in two ways:

    - With N samples it finds J on the N - 1 directions that the centred noise spans,
      and zero on the others. All n directions need N > n, which is 3,073 passes for a
      CIFAR-10 image. With the 10 samples of the papers' code, almost nothing of J is
      found, and its singular values are far too small.
    - Where the noise leaves the linear region of x, the estimate averages over the
      regions around. With a small radius the noise stays inside, but the rounding error
      grows: it is about the rounding of f divided by the radius.

    Args:
      f: batch function ``(B, ...) -> (B, d)`` with independent rows.
      x: ``(B, ...)`` float.
      num_samples: N, the number of passes through f, at least 2.
      radius: the noise is uniform in [-radius, radius] per entry, in [0, 1] pixel
        units, and the same for every example.
      key: typed key of the noise.

    Returns:
      ``(B, d, *x.shape[1:])``, of least norm where the fit is not unique.

    Raises:
      ValueError: for num_samples below 2, a radius that is not positive, a key that is
        not typed, and as :func:`opnorm.operators.jacobian_map`.

    Source: Roth et al. 2020, section 7.9.
    """
    d = jacobian.check(f, x)
    num_samples = linalg.check_count("num_samples", num_samples, 2)
    linalg.check_key(key)
    if not 0 < radius < math.inf:
        raise ValueError(f"radius is {radius}; it must be positive and finite.")
    return _fit(f, x, key, d=d, num_samples=num_samples, radius=radius)


@linalg.network_program
def _fit(
    f: BatchFunction,
    x: jax.Array,
    key: jax.Array,
    *,
    d: int,
    num_samples: int,
    radius: float,
) -> jax.Array:
    batch, shape = len(x), x.shape[1:]
    drawn = linalg.draw(jax.random.uniform, key, (num_samples, *shape), x.dtype)
    noise = radius * (2 * drawn - 1)
    empty = jnp.zeros((num_samples, batch, d), jax.eval_shape(f, x).dtype)
    outputs = linalg.fori_loop(
        num_samples,
        lambda k, found: found.at[k].set(f(x + noise[k][None])),
        empty,
    )
    wide = at_least_single(x.dtype)
    noise = noise.reshape(num_samples, -1).astype(wide)
    outputs = outputs.reshape(num_samples, -1).astype(wide)
    # Subtracting the means fits the free constants.
    noise = noise - jnp.mean(noise, axis=0, keepdims=True)
    outputs = outputs - jnp.mean(outputs, axis=0, keepdims=True)
    slopes, *_ = jnp.linalg.lstsq(noise, outputs)
    return slopes.T.reshape(batch, d, *shape).astype(x.dtype)
