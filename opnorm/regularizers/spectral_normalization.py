"""Weights whose layers have at most a given spectral norm.

Two functions of parameter trees bound the norm of every convolution and dense layer.
They work with any network and any loss. The tree may be the network itself, such as an
NNX or Equinox module, with the layers of :func:`opnorm.operators.find_layers`:

- :func:`spectral_normalize` divides each kernel by the factor by which its norm exceeds
  the bound. The division is a part of the network: gradients flow through it, and the
  kernels that are trained have no bound.
- :func:`clip_spectral_norms` projects the kernels, for instance after every epoch.

Both bound the weights only. A BatchNorm after a layer rescales its output and undoes
the bound. A residual sum may have a norm that exceeds the norm of its branch by one.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from opnorm import linalg, operators
from opnorm.linalg import Params
from opnorm.regularizers.kernels import placed_layers, replace_kernels

FORMS = ("operator", "kernel")


class NormalizedParameters(NamedTuple):
    """A parameter tree whose kernels were divided.

    Attributes:
      params: the tree; leaves that are not kernels of layers are unchanged.
      norms: the norm of each layer before the division, a scalar, keyed by the name of
        the layer.
      vectors: the refined right vectors, to be passed to the next call; no gradient.
    """

    params: Params
    norms: dict[str, jax.Array]
    vectors: dict[str, jax.Array]


def init_spectral_vectors(
    params: Params,
    layers: Sequence[operators.Layer],
    key: jax.Array,
    *,
    form: str = "operator",
    num_steps: int = 20,
) -> dict[str, jax.Array]:
    """Draws the persistent right vectors of :func:`spectral_normalize`.

    Args:
      params: a parameter tree.
      layers: the layers from :func:`opnorm.operators.layers`, for a Flax parameter
        tree, or from :func:`opnorm.operators.find_layers`, for the network as the tree.
        Their kernels are not used and may be abstract.
      key: typed key.
      form: as in :func:`spectral_normalize`.
      num_steps: number of first power steps. Without them, a random vector
        underestimates the norm, and the first kernels exceed the bound.

    Returns:
      One vector for each layer, keyed by the name of the layer, in the dtype of the
      kernel. Its shape is ``(1, *input_shape)`` for a convolution and "operator",
      ``(1, taps C_in)`` for a convolution and "kernel", ``(1, C_in)`` for a dense
      layer.

    Raises:
      ValueError: as :func:`spectral_normalize`.
    """
    maps = _maps(params, layers, form)
    keys = jax.random.split(key, len(maps))
    drawn = {
        name: linalg.draw(jax.random.normal, k, (1, *linear.in_shape), linear.dtype)
        for k, (name, linear) in zip(keys, sorted(maps.items()), strict=True)
    }
    return _refine(maps, drawn, num_steps)


def spectral_normalize(
    params: Params,
    layers: Sequence[operators.Layer],
    vectors: dict[str, jax.Array],
    *,
    bound: float | jax.Array,
    form: str = "operator",
    num_steps: int = 1,
) -> NormalizedParameters:
    """Computes ``W / max(1, sigma(W) / bound)`` for the kernel of every layer.

    sigma is estimated from below by power steps from persistent vectors,

        u = W v / ||W v||,    v = W^T u / ||W^T u||,    sigma = <u, W v>,

    with u and v held constant. The cost is about three passes through each layer with
    one example. Kernels with a norm below the bound do not change, nor do biases. Where
    sigma exceeds the bound, the result does not depend on the scale of the kernel, and
    the gradient has no component along it.

    Args:
      params: a parameter tree.
      layers: the layers of this network as in :func:`init_spectral_vectors`, for the
        image size of the bound. The kernels of ``params`` are used instead of the
        kernels of the layers. BatchNorms and other factors are ignored.
      vectors: from :func:`init_spectral_vectors` or the previous call.
      bound: beta, the largest norm, positive; infinity changes nothing.
      form: "operator" bounds the norm of the linear map of the layer on a whole
        example, with its strides and padding. "kernel" bounds the norm of the kernel
        matrix ``C_out x (taps C_in)`` (Miyato et al. 2018); the norm of a convolution
        may then exceed the bound by the root of the number of taps.
      num_steps: power steps in this call, at least 1.

    Returns:
      The divided parameters, the norms and the vectors for the next call.

    Raises:
      ValueError: for a bound that is not positive, an unknown form, ``num_steps`` below
        1, no layers, a layer that is called twice, whose kernel is computed inside the
        network or is not in ``params``, or vectors of other layers, another form or
        another image size.

    Source: Farnia et al. 2019, Eq. 9, Algorithm 1 ("operator") and Appendix A.1
    ("kernel").

    Example:
      A dense layer of norm 4 is divided by 4 to have norm 1.

      >>> import flax.linen as nn
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from opnorm import operators, regularizers
      >>> module = nn.Sequential([nn.Dense(2, use_bias=False)])
      >>> params = {"layers_0": {"kernel": jnp.diag(jnp.array([4.0, 2.0]))}}
      >>> layers = operators.layers(module, {"params": params}, jnp.zeros((1, 2)))
      >>> @jax.jit
      ... def normalize(params, key):
      ...     vectors = regularizers.init_spectral_vectors(params, layers, key)
      ...     return regularizers.spectral_normalize(params, layers, vectors, bound=1.0)
      >>> found = normalize(params, jax.random.key(0))
      >>> print(np.asarray(found.params["layers_0"]["kernel"]).round(3))
      [[1.  0. ]
       [0.  0.5]]
    """
    linalg.check_length("bound", bound, positive=True)
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; it must be at least 1.")
    constant = _maps(params, layers, form)
    if set(constant) != set(vectors):
        raise ValueError(
            f"vectors has the layers {sorted(vectors)}; layers are {sorted(constant)}."
        )
    for name, linear in constant.items():
        if jnp.shape(vectors[name]) != (1, *linear.in_shape):
            raise ValueError(
                f"vectors has shape {jnp.shape(vectors[name])} for {name!r}; for these "
                f"layers and form {form!r} it must be {(1, *linear.in_shape)}."
            )
    vectors = _refine(constant, lax.stop_gradient(vectors), num_steps - 1)
    norms, refined = {}, {}
    placed, divided = placed_layers(params, layers), []
    for layer in placed:
        u, v = _step(constant[layer.name], vectors[layer.name])
        sigma = linalg.inner(u, _map(layer, form).matvec(v))[0]
        norms[layer.name], refined[layer.name] = sigma, v
        divided.append(layer.kernel * (1 / jnp.maximum(1, sigma / bound)))
    return NormalizedParameters(
        replace_kernels(params, placed, divided), norms, refined
    )


def clip_spectral_norms(
    params: Params,
    layers: Sequence[operators.Layer],
    bound: float,
    *,
    num_iterations: int = 12,
    rescale: bool = True,
) -> Params:
    """Projects the kernel of every layer to a spectral norm of at most ``bound``.

    The singular values of a dense layer are clipped. For a convolution,
    :func:`opnorm.linalg.clip_circular_singular_values` clips the singular values of the
    periodic version with stride 1 on the size of the image. The clipped map has more
    taps than the kernel, so clipping and cutting alternate, and a factor removes the
    rest above the bound. Strides only lower the norm. With zero padding the norm may be
    slightly above the bound.

    The published projection is ``num_iterations=1, rescale=False``: one clip, after
    which cutting raises the norm of a convolution above the bound again, such as from 1
    to 1.38 for a random 3 x 3 kernel of norm 5.8.

    Args:
      params: a parameter tree.
      layers: as in :func:`spectral_normalize`.
      bound: the largest norm, positive and finite.
      num_iterations: number of alternations, at least 1.
      rescale: whether a factor removes from a convolution what is above the bound after
        the alternations.

    Returns:
      The parameters, with new kernels for the layers that exceeded the bound.

    Raises:
      ValueError: as :func:`spectral_normalize`, for ``bound`` and ``layers``.

    Source: Sedghi, Gupta & Long 2019; "Towards Understanding the Regularization of
    Adversarial Robustness on Neural Networks" 2020, where kernels are projected after
    every epoch.
    """
    linalg.check_length("bound", bound, positive=True)
    if math.isinf(bound):
        raise ValueError(f"bound is {bound}; it must be finite.")
    placed, clipped = placed_layers(params, layers), []
    for layer in placed:
        if layer.kind != "convolution":
            kernel = linalg.clip_singular_values(layer.kernel, bound)
        else:
            kernel = linalg.clip_circular_singular_values(
                layer.kernel,
                layer.input_shape[:-1],
                bound,
                num_iterations=num_iterations,
                rescale=rescale,
                kernel_dilation=layer.kernel_dilation,
                groups=layer.groups,
            )
        clipped.append(kernel)
    return replace_kernels(params, placed, clipped)


def _maps(
    params: Params, layers: Sequence[operators.Layer], form: str
) -> dict[str, linalg.LinearMap]:
    """The maps of the layers, through which no gradient flows to their kernels."""
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; it may be {', '.join(FORMS)}.")
    return {
        layer.name: _map(
            dataclasses.replace(layer, kernel=lax.stop_gradient(layer.kernel)), form
        )
        for layer in placed_layers(params, layers)
    }


def _map(layer: operators.Layer, form: str) -> linalg.LinearMap:
    if form == "operator" and layer.kind == "convolution":
        return operators.layer_map(layer)
    # A dense layer that acts at many places has the same norm as at one place.
    return linalg.from_matrix(layer.kernel.reshape(-1, layer.kernel.shape[-1]).T)


def _refine(
    maps: dict[str, linalg.LinearMap], vectors: dict[str, jax.Array], num_steps: int
) -> dict[str, jax.Array]:
    """The right vectors after more power steps."""
    return linalg.fori_loop(
        num_steps,
        lambda _, vectors: {n: _step(maps[n], v)[1] for n, v in vectors.items()},
        vectors,
    )


def _step(linear: linalg.LinearMap, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One power step: the unit vectors ``(u, v)``."""
    u = linalg.dual_map(linear.matvec(linalg.dual_map(v, 2.0)), 2.0)
    pulled = linalg.dual_map(linear.rmatvec(u), 2.0)
    # Some networks begin with a zero kernel, which must not end the search.
    return u, jnp.where(jnp.any(pulled != 0), pulled, v)
