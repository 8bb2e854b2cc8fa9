"""operators: the Jacobian as Roth et al. extracted it, by regression on noise."""

import math

import jax
import jax.numpy as jnp

from opnorm import linalg
from opnorm.operators import jacobian
from opnorm.operators.jacobian import BatchFunction


def regressed_jacobian(
    f: BatchFunction,
    x: jax.Array,
    *,
    num_samples: int,
    radius: float,
    key: jax.Array,
) -> jax.Array:
    """Estimates Jacobians by least squares, to compare with the exact ones.

    ``f(x + z_k) = f(x) + J z_k + c`` is fitted to uniform noise z_k, with c free. Use
    :func:`opnorm.operators.dense_jacobian`, which is exact and takes d passes, for
    anything else. This one is wrong in two ways:

    - With N samples it finds J on the N - 1 directions that the centred noise spans and
      zero on the others. All n directions need N > n, 3,073 passes for a CIFAR-10
      picture; with the 10 of the papers' code next to nothing of J is left, and its
      singular values are far too small.
    - Once the noise leaves the linear region of x, it averages over the regions around.
      A small radius keeps inside, until rounding takes over: the error it leaves is
      about the rounding of f over the radius.

    Args:
      f: batch function ``(B, ...) -> (B, d)`` with independent rows.
      x: ``(B, ...)`` float.
      num_samples: N, at least 2; passes through f.
      radius: the noise is uniform in [-radius, radius] per entry, the same for every
        example, in [0, 1] pixel units.
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
    drawn = jax.random.uniform(key, (num_samples, *shape), x.dtype)
    noise = radius * (2 * drawn - 1)
    empty = jnp.zeros((num_samples, batch, d), jax.eval_shape(f, x).dtype)
    outputs = linalg.fori_loop(
        num_samples,
        lambda k, found: found.at[k].set(f(x + noise[k])),
        empty,
    )
    wide = jnp.promote_types(x.dtype, jnp.float32)
    noise = noise.reshape(num_samples, -1).astype(wide)
    outputs = outputs.reshape(num_samples, -1).astype(wide)
    # Free constants are fitted by taking out the means.
    noise = noise - jnp.mean(noise, axis=0)
    outputs = outputs - jnp.mean(outputs, axis=0)
    slopes, *_ = jnp.linalg.lstsq(noise, outputs)
    return slopes.T.reshape(batch, d, *shape).astype(x.dtype)
