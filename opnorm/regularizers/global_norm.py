"""The data-independent penalty on the spectral norms of the layers."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from opnorm import linalg, operators
from opnorm.linalg import Params
from opnorm.regularizers.kernels import kernels_of, placed_layers

Vectors = dict[str, jax.Array]


class GlobalNorms(NamedTuple):
    """Spectral norms of the kernel matrices of a parameter tree.

    Attributes:
      penalty: scalar, ``sum_l sigma_l^2 / 2``.
      norms: one scalar per kernel, keyed by its path.
      vectors: the refined right vectors, to be passed to the next call; no gradient.
    """

    penalty: jax.Array
    norms: dict[str, jax.Array]
    vectors: Vectors


def init_vectors(
    params: Params,
    key: jax.Array,
    *,
    layers: Sequence[operators.Layer] | None = None,
) -> Vectors:
    """Draws the persistent right vectors of :func:`global_spectral_norm`.

    Args:
      params: a parameter tree.
      key: typed key.
      layers: the layers from :func:`opnorm.operators.find_layers` of a network that is
        the tree. None for a Flax parameter tree: its leaves called "kernel" with at
        least two dimensions count as layers.

    Returns:
      One standard normal vector of ``kh kw C_in`` numbers per kernel, keyed by path;
      by the name of the layer if ``layers`` is given.

    Raises:
      ValueError: if there is no kernel, and for layers that do not fit the tree.
    """
    kernels = _kernels(params, layers)
    if not kernels:
        raise ValueError(
            "params holds no leaf called 'kernel' with 2 dimensions; layers must be "
            "given for other trees."
        )
    keys = jax.random.split(key, len(kernels))
    return {
        path: jax.random.normal(k, (kernel.size // kernel.shape[-1],), kernel.dtype)
        for k, (path, kernel) in zip(keys, sorted(kernels.items()), strict=True)
    }


def global_spectral_norm(
    params: Params,
    vectors: Vectors,
    *,
    num_steps: int = 1,
    layers: Sequence[operators.Layer] | None = None,
) -> GlobalNorms:
    """Computes ``sum_l sigma(W_l)^2 / 2`` by power steps from persistent vectors.

    W_l is the kernel matrix, ``C_out x (kh kw C_in)``. Its norm is the norm of Yoshida
    & Miyato and of the papers' baseline. The norm of the convolution is another number,
    between 1 and ``sqrt(kh kw)`` times as large. One step is

        u = W v / ||W v||,    v = W^T u / ||W^T u||.

    Then ``sigma = u^T W v`` with u and v held constant, so the gradient of
    ``sigma^2 / 2`` is ``sigma u v^T``. Biases and BatchNorm are not counted.

    In Roth et al. 2020, Eq. 5, lambda multiplies this penalty (with its 1/2). Their
    released code has no 1/2, so its lambda is half of the lambda here.

    Args:
      params: a parameter tree.
      vectors: from :func:`init_vectors` or the previous call.
      num_steps: power steps in this call, at least 1.
      layers: as in :func:`init_vectors`.

    Returns:
      The penalty, the norms and the vectors for the next call.

    Raises:
      ValueError: for num_steps < 1, or vectors of other parameters.

    Source: Yoshida & Miyato 2017; Roth et al. 2020, Eqs. 4-5.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; it must be at least 1.")
    kernels = _kernels(params, layers)
    if set(kernels) != set(vectors):
        raise ValueError(
            f"vectors has the layers {sorted(vectors)}; params has {sorted(kernels)}."
        )
    norms, refined = {}, {}
    for path, kernel in kernels.items():
        matrix = kernel.reshape(-1, kernel.shape[-1]).T
        constant = lax.stop_gradient(matrix)
        v = _unit(lax.stop_gradient(vectors[path]))
        for _ in range(num_steps):
            u = _unit(_product(constant, v))
            pulled = _unit(_product(constant.T, u))
            # Some networks begin with a zero kernel, which must not end the search.
            v = jnp.where(jnp.any(pulled != 0), pulled, v)
        norms[path] = _product(u, _product(matrix, v))
        refined[path] = v
    penalty = 0.5 * sum((sigma**2 for sigma in norms.values()), jnp.zeros(()))
    return GlobalNorms(penalty, norms, refined)


def _kernels(
    params: Params, layers: Sequence[operators.Layer] | None
) -> dict[str, jax.Array]:
    if layers is None:
        return kernels_of(params)
    return {layer.name: layer.kernel for layer in placed_layers(params, layers)}


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    # The default of some accelerators rounds float32 factors to 10 bits.
    return jnp.matmul(a, b, precision="highest")


def _unit(vector: jax.Array) -> jax.Array:
    return linalg.dual_map(vector[None], 2.0)[0]
