"""regularizers: weights whose layers have at most a given spectral norm.

Two ways to hold a bound on the norm of every convolution and dense layer, as functions
on parameter trees, so that they compose with any network and any loss:

- :func:`spectral_normalize` divides each kernel by what its norm exceeds the bound by.
  It is a part of the network: gradients pass through the division, and the kernels
  underneath are free.
- :func:`clip_spectral_norms` projects the kernels themselves, once in a while.

Both are of the weights alone. BatchNorm behind a layer is scale-free and undoes the
bound; so does a residual sum, whose norm is up to one more than its branch's.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from opnorm import linalg, operators
from opnorm.regularizers.kernels import kernels_of, replace_kernels

FORMS = ("operator", "kernel")


class NormalizedParameters(NamedTuple):
    """A parameter tree whose layers have been divided.

    Attributes:
      params: the tree; what is not the kernel of a layer is untouched.
      norms: of each layer before the division, a scalar, keyed by its name.
      vectors: the refined right vectors, to be passed to the next call; no gradient.
    """

    params: Any
    norms: dict[str, jax.Array]
    vectors: dict[str, jax.Array]


def init_spectral_vectors(
    params: Any,
    layers: Sequence[operators.Layer],
    key: jax.Array,
    *,
    form: str = "operator",
    num_steps: int = 20,
) -> dict[str, jax.Array]:
    """Draws the persistent right vectors of :func:`spectral_normalize`.

    Args:
      params: a Flax parameter tree.
      layers: of :func:`opnorm.operators.layers`; only where they are and what they do
        is used, not their kernels, which may be abstract.
      key: typed key.
      form: as :func:`spectral_normalize`.
      num_steps: power steps to begin with. A random vector underestimates the norm,
        so that the bound would not bind at first.

    Returns:
      One vector for each layer, keyed by its name: ``(1, *input_shape)`` of a
      convolution for "operator", ``(1, taps C_in)`` for "kernel", ``(1, C_in)`` of a
      dense layer; float like the kernel.

    Raises:
      ValueError: as :func:`spectral_normalize`.
    """
    maps = _maps(params, layers, form)
    keys = jax.random.split(key, len(maps))
    drawn = {
        name: jax.random.normal(k, (1, *linear.in_shape), linear.dtype)
        for k, (name, linear) in zip(keys, sorted(maps.items()), strict=True)
    }
    return _refine(maps, drawn, num_steps)


def spectral_normalize(
    params: Any,
    layers: Sequence[operators.Layer],
    vectors: dict[str, jax.Array],
    *,
    bound: float | jax.Array,
    form: str = "operator",
    num_steps: int = 1,
) -> NormalizedParameters:
    """Computes ``W / max(1, sigma(W) / bound)`` for the kernel of every layer.

    sigma is estimated by power steps from persistent vectors, ``u = W v / ||W v||``,
    ``v = W^T u / ||W^T u||``, ``sigma = <u, W v>`` with u and v held constant, from
    below: at the price of about three passes through each layer with one example. Small
    layers are left as they are, and biases always are. Where sigma exceeds the bound,
    the gradient in the kernel has no part along it: the layer's scale is free.

    Args:
      params: a Flax parameter tree.
      layers: of :func:`opnorm.operators.layers` on this network, for the size of
        pictures that is meant; their kernels are not used, those of ``params`` are. A
        BatchNorm among them is left out.
      vectors: from :func:`init_spectral_vectors` or the previous call.
      bound: beta, the largest norm, positive; infinity changes nothing.
      form: whose norm: "operator", that of the layer's linear map on a whole example,
        with its strides and padding; "kernel", that of the kernel matrix ``C_out x
        (taps C_in)`` (Miyato et al. 2018), which leaves a convolution's own norm up to
        the root of the number of taps larger.
      num_steps: power steps in this call, at least 1.

    Returns:
      The divided parameters, the norms and the vectors for the next call.

    Raises:
      ValueError: for a bound that is not positive, an unknown form, ``num_steps`` below
        1, no layers, a layer that is called twice or whose kernel is not in ``params``,
        or vectors of other layers, another form or another size of pictures.

    Source: Farnia et al. 2019, Eq. 9, Algorithm 1 ("operator") and Appendix A.1
    ("kernel").
    """
    linalg.check_length("bound", bound, positive=True)
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; it must be at least 1.")
    constant = _maps(lax.stop_gradient(params), layers, form)
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
    norms, refined, divided = {}, {}, {}
    for layer in _placed(params, layers):
        u, v = _step(constant[layer.name], vectors[layer.name])
        sigma = linalg.inner(u, _map(layer, form).matvec(v))[0]
        norms[layer.name], refined[layer.name] = sigma, v
        divided[_path(layer)] = layer.kernel * (1 / jnp.maximum(1, sigma / bound))
    return NormalizedParameters(replace_kernels(params, divided), norms, refined)


def clip_spectral_norms(
    params: Any,
    layers: Sequence[operators.Layer],
    bound: float,
    *,
    num_iterations: int = 12,
) -> Any:
    """Projects the kernel of every layer to spectral norms of at most ``bound``.

    Of a dense layer the singular values are clipped. Of a convolution those of its
    periodic version with stride 1 on the picture's size, by
    :func:`opnorm.linalg.clip_circular_singular_values`: its kernel's taps cannot hold
    the clipped map exactly, so that clipping and cutting alternate, and what is left
    above the bound is taken away by scaling. Strides only lower the norm; with zeros
    around the picture, instead of its other end, it may be slightly above the bound.

    Args:
      params: a Flax parameter tree.
      layers: as for :func:`spectral_normalize`.
      bound: the largest norm, positive and finite.
      num_iterations: of the alternation, at least 1.

    Returns:
      The parameters with other kernels, where they exceeded the bound.

    Raises:
      ValueError: as :func:`spectral_normalize`, for ``bound`` and ``layers``.

    Source: Sedghi, Gupta & Long 2019; "Towards Understanding the Regularization of
    Adversarial Robustness on Neural Networks" 2020, which does it after every epoch.
    """
    linalg.check_length("bound", bound, positive=True)
    if math.isinf(bound):
        raise ValueError(f"bound is {bound}; it must be finite.")
    clipped = {}
    for layer in _placed(params, layers):
        if layer.kind == "dense":
            kernel = linalg.clip_singular_values(layer.kernel, bound)
        else:
            kernel = linalg.clip_circular_singular_values(
                layer.kernel,
                layer.input_shape[:-1],
                bound,
                num_iterations=num_iterations,
                kernel_dilation=layer.kernel_dilation,
                groups=layer.groups,
            )
        clipped[_path(layer)] = kernel
    return replace_kernels(params, clipped)


def _maps(
    params: Any, layers: Sequence[operators.Layer], form: str
) -> dict[str, linalg.LinearMap]:
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; it may be {', '.join(FORMS)}.")
    return {layer.name: _map(layer, form) for layer in _placed(params, layers)}


def _map(layer: operators.Layer, form: str) -> linalg.LinearMap:
    if form == "operator" and layer.kind == "convolution":
        return operators.layer_map(layer)
    # A dense layer that acts at many places has the norm of one of them.
    return linalg.from_matrix(layer.kernel.reshape(-1, layer.kernel.shape[-1]).T)


def _placed(params: Any, layers: Sequence[operators.Layer]) -> list[operators.Layer]:
    """The layers with kernels, with those of the tree."""
    kernels = kernels_of(params)
    placed: list[operators.Layer] = []
    for layer in layers:
        if layer.kind == "batch_norm":
            continue
        if layer.name in {other.name for other in placed}:
            raise ValueError(
                f"layers has {layer.name!r} twice; a layer must be called once."
            )
        if _path(layer) not in kernels:
            known = sorted(path.removesuffix("/kernel") for path in kernels)
            raise ValueError(
                f"layers has {layer.name!r}; params has kernels of {known}."
            )
        placed.append(dataclasses.replace(layer, kernel=kernels[_path(layer)]))
    if not placed:
        raise ValueError("layers has no convolution or dense layer.")
    return placed


def _path(layer: operators.Layer) -> str:
    """Of its kernel in the tree."""
    return f"{layer.name}/kernel"


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
    # A zero kernel, with which some networks begin, must not end the search for good.
    return u, jnp.where(jnp.any(pulled != 0), pulled, v)
