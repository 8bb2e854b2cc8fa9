"""operators: the linear layers of a Flax network, their norms and singular values."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from opnorm import linalg
from opnorm.linalg.convolution import Padding
from opnorm.operators.layer_search import Call, search

BATCH_NORM = ("fold", "separate", "ignore")
FORMS = ("operator", "kernel")


@struct.dataclass
class Layer:
    """A linear layer, without its bias, where it is called. Only the kernel is a leaf.

    Attributes:
      kernel: of a convolution ``(*spatial, C_in / groups, C_out)``, of a dense layer
        ``(C_in, C_out)``, of a BatchNorm what it multiplies the channels by, ``(C,)``.
      name: of the module, ``/`` between its parents' names and its own.
      kind: "convolution", "dense" or "batch_norm".
      input_shape: ``(*spatial, C_in)``, of one example. A dense layer acts on the last
        axis, at every place alike.
      strides, padding, kernel_dilation, groups: of a convolution, as
        :func:`opnorm.linalg.convolution_map`.
      batch_norm: name of the BatchNorm whose factors the kernel contains, or None.
      uncounted: names of what multiplies in the network but is in no kernel: parameters
        such as gains, and layers that normalise by the example. The same for all layers
        of a network.
      ignored: likewise the names of its BatchNorms that were left out.
    """

    kernel: jax.Array
    name: str = struct.field(pytree_node=False)
    kind: str = struct.field(pytree_node=False)
    input_shape: tuple[int, ...] = struct.field(pytree_node=False)
    strides: tuple[int, ...] = struct.field(pytree_node=False, default=())
    padding: Padding = struct.field(pytree_node=False, default="VALID")
    kernel_dilation: tuple[int, ...] = struct.field(pytree_node=False, default=())
    groups: int = struct.field(pytree_node=False, default=1)
    batch_norm: str | None = struct.field(pytree_node=False, default=None)
    uncounted: tuple[str, ...] = struct.field(pytree_node=False, default=())
    ignored: tuple[str, ...] = struct.field(pytree_node=False, default=())

    @property
    def options(self) -> dict[str, Any]:
        """What functions of convolutions in linalg take besides kernel and shape."""
        return {
            "strides": self.strides,
            "padding": self.padding,
            "kernel_dilation": self.kernel_dilation,
            "groups": self.groups,
        }


class LayerNorms(NamedTuple):
    """Spectral norms of L layers, all ``(L,)``.

    Attributes:
      value: of the linear map; a lower bound up to rounding.
      residual: some singular value lies within this of the value; 0 where the value is
        that of a whole decomposition.
      lower: at most the norm, rounding included.
      upper: at least the norm, rounding included.
      kernel_matrix: of the kernel matrix, which bounds a convolution on neither side
        (:func:`opnorm.linalg.kernel_matrix_norm`).
    """

    value: jax.Array
    residual: jax.Array
    lower: jax.Array
    upper: jax.Array
    kernel_matrix: jax.Array


def layers(
    module: nn.Module,
    variables: Any,
    x: Any,
    *,
    batch_norm: str = "fold",
    **call_options: Any,
) -> tuple[Layer, ...]:
    """Finds every nn.Conv, nn.Dense and nn.BatchNorm call of a network, in order.

    The network runs abstractly: nothing is computed but the folded kernels. A module
    that is called twice is there twice. Every parameter of two or more dimensions that
    the network does more with than add is a kernel of some layer. Other parameters that
    multiply are **no layers**, such as gains and the scales of LayerNorm and GroupNorm.
    Their names are in ``uncounted`` of every layer, and functions of the whole network
    (:func:`log_lipschitz_bound`, :func:`log_capacity`,
    :func:`log_spectral_complexity`) refuse them. Pooling, activations and sums are not
    listed either.

    Args:
      module: a Flax linen module (``flax.linen.Module``; nnx is not supported), called
        as ``module(x, **call_options)``.
      variables: its variables, ``{"params": ..., "batch_stats": ...}``.
      x: ``(B, ...)``, an array or a ``jax.ShapeDtypeStruct``.
      batch_norm: what becomes of ``gamma / sqrt(running variance + epsilon)``. "fold":
        multiplied into the kernel whose output the BatchNorm takes directly and alone,
        a layer of its own where it takes something else (a sum in a pre-activation
        residual network) or shares it; "separate": always a layer of its own;
        "ignore": left out, for quantities of the weights alone.
      **call_options: such as ``train=False``; BatchNorm must use running averages.

    Returns:
      The layers in order of their calls.

    Raises:
      ValueError: for a module that is not Flax linen, an unknown ``batch_norm``, a
        network without layers, one that multiplies by a parameter of two or more
        dimensions that belongs to none of them (nn.ConvTranspose, nn.Embed, a matrix of
        its own), one whose kernels are computed inside it (nn.SpectralNorm, a subclass
        of a layer with a ``__call__`` or ``param`` of its own) or whose layers are
        called in a transformation (nn.scan, nn.RNN, nn.remat, nn.vmap; our models are
        cloned with ``rematerialize=False``), and for input dilation, reflected padding,
        or a BatchNorm on batch statistics or on another axis than the last.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"module is {type(module).__name__}; it must be a Flax linen module."
        )
    if batch_norm not in BATCH_NORM:
        raise ValueError(
            f"batch_norm is {batch_norm!r}; it may be {', '.join(BATCH_NORM)}."
        )
    found: list[Layer] = []
    outputs: list[Any] = []
    calls, uncounted = search(module, variables, x, call_options)
    for call in calls:
        if call.kind != "batch_norm":
            found.append(_layer(call))
            outputs.append(call.output if call.num_uses == 1 else None)
            continue
        source = [i for i, output in enumerate(outputs) if output is call.input]
        if batch_norm == "ignore":
            continue
        if batch_norm == "fold" and source:
            before = found[source[0]]
            found[source[0]] = dataclasses.replace(
                before, kernel=before.kernel * call.kernel, batch_norm=call.name
            )
            outputs[source[0]] = None
        else:
            found.append(_layer(call))
            outputs.append(None)
    if not found:
        raise ValueError(
            f"module is {type(module).__name__}; it must call an nn.Conv or nn.Dense."
        )
    norms = [call.name for call in calls if call.kind == "batch_norm"]
    ignored = tuple(norms) if batch_norm == "ignore" else ()
    return tuple(
        dataclasses.replace(layer, uncounted=uncounted, ignored=ignored)
        for layer in found
    )


def check_counted(layers: Sequence[Layer], *, batch_norm: bool = False) -> None:
    """Raises ValueError where a network multiplies by more than its layers' kernels.

    Args:
      layers: of :func:`layers`.
      batch_norm: whether BatchNorms that were left out are refused, too.
    """
    uncounted = {name for layer in layers for name in layer.uncounted}
    if uncounted:
        raise ValueError(
            f"layers are of a network that also multiplies by {sorted(uncounted)}; it "
            "may have no factors but nn.Conv, nn.Dense and nn.BatchNorm."
        )
    ignored = {name for layer in layers for name in layer.ignored}
    if batch_norm and ignored:
        raise ValueError(
            f"layers leave out the BatchNorms {sorted(ignored)}; they must be found "
            "with batch_norm 'fold' or 'separate'."
        )


def layer_map(layer: Layer) -> linalg.LinearMap:
    """Returns a layer as a linear map on one example, ``(1, *input_shape)``.

    Args:
      layer: one of :func:`layers`.

    Returns:
      A map with a batch of one, in the kernel's dtype.
    """
    if layer.kind == "convolution":
        return linalg.convolution_map(layer.kernel, layer.input_shape, **layer.options)
    matrix = jnp.diag(layer.kernel) if layer.kind == "batch_norm" else layer.kernel
    return linalg.LinearMap(
        lambda v: jnp.einsum("...i,io->...o", v, matrix, precision="highest"),
        lambda u: jnp.einsum("...o,io->...i", u, matrix, precision="highest"),
        1,
        layer.input_shape,
        (*layer.input_shape[:-1], matrix.shape[1]),
        matrix.dtype,
    )


def layer_norms(
    layers: Sequence[Layer],
    *,
    num_steps: int = 20,
    method: str = "svd",
    num_iterations: int = 6,
) -> LayerNorms:
    """Computes the spectral norm of each layer as a map, with bounds on both sides.

    Args:
      layers: of :func:`layers`, L of them.
      num_steps: Golub-Kahan steps of a convolution
        (:func:`opnorm.linalg.convolution_norm`); dense layers are decomposed.
      method: of a convolution's upper bound
        (:func:`opnorm.linalg.convolution_upper_bound`).
      num_iterations: of its method "gram_iteration".

    Returns:
      Norms, error bars and bounds, ``(L,)`` each.

    Raises:
      ValueError: as :func:`opnorm.linalg.convolution_norm_bounds`.
    """
    rows = []
    for layer in layers:
        matrix = kernel_values(layer)[0]
        if layer.kind == "convolution":
            found = linalg.convolution_norm_bounds(
                layer.kernel,
                layer.input_shape,
                num_steps=num_steps,
                method=method,
                num_iterations=num_iterations,
                **layer.options,
            )
            rows.append((found.value, found.residual, found.lower, found.upper, matrix))
        else:
            margin = _dense_margin(layer)
            bounds = matrix * (1 - margin), matrix * (1 + margin)
            rows.append((matrix, jnp.zeros_like(matrix), *bounds, matrix))
    return LayerNorms(*map(stack, zip(*rows, strict=True)))


def layer_singular_values(layer: Layer, *, form: str = "operator") -> jax.Array:
    """Computes all distinct singular values of a layer.

    Args:
      layer: one of :func:`layers`.
      form: "kernel", those of the kernel matrix ``C_out x (taps C_in)``; "operator",
        for a convolution those of its periodic version on the picture's size, rounded
        up to a multiple of the strides (Sedghi et al. 2019). Other layers have one
        form.

    Returns:
      ``(k,)``, largest first, at least float32. A dense layer that acts at many places
      has each of them as many times; they are listed once.

    Raises:
      ValueError: for an unknown form.
    """
    check_form(form)
    if form == "kernel" or layer.kind != "convolution":
        return kernel_values(layer)
    sizes = [
        -(-size // stride) * stride
        for size, stride in zip(layer.input_shape, layer.strides, strict=False)
    ]
    return linalg.circular_singular_values(
        layer.kernel,
        sizes,
        strides=layer.strides,
        kernel_dilation=layer.kernel_dilation,
        groups=layer.groups,
    )


def singular_value_std(layers: Sequence[Layer], *, form: str = "operator") -> jax.Array:
    """Computes the standard deviation of each layer's singular values.

    The paper does not say which form it takes; its context suggests "operator".

    Args:
      layers: of :func:`layers`, L of them; with ``batch_norm="ignore"`` for the paper's
        quantity.
      form: as :func:`layer_singular_values`.

    Returns:
      ``(L,)``, the population's standard deviation.

    Raises:
      ValueError: for an unknown form.

    Source: "Towards Understanding the Regularization of Adversarial Robustness on
    Neural Networks", 2020, Figs. 1 and 5.
    """
    values = [layer_singular_values(layer, form=form) for layer in layers]
    return stack([_std(v) for v in values])


def _std(values: jax.Array) -> jax.Array:
    """The population's standard deviation; values of any size, gradient 0 at 0."""
    away = (values - jnp.mean(values))[None]
    return linalg.norm(away, 2.0)[0] / math.sqrt(values.size)


def log_lipschitz_bound(
    layers: Sequence[Layer],
    *,
    input_scale: float | Sequence[float] = 1.0,
    method: str = "svd",
    num_iterations: int = 6,
) -> jax.Array:
    """Computes the log of an upper bound of a chain's l2 Lipschitz constant.

    The sum of the logs of upper bounds of the layers' norms, rounding included. It
    bounds a network that is a chain of these layers with 1-Lipschitz functions between
    them: ReLU, max- or average-pooling without overlap, flattening. Networks with
    parameters that multiply elsewhere, or with LayerNorm and its like, are refused. The
    bound is **not valid for residual networks** or other branches, nor for overlapping
    max-pooling (3x3 windows with stride 2 have constant 2), and constants that multiply
    are not seen, but for ``input_scale``.

    Args:
      layers: all of the chain, of :func:`layers` with ``batch_norm`` "fold" (tighter)
        or "separate".
      input_scale: what the network multiplies pixels by first, ``1 / std`` (2 for the
        models here with their default std of 0.5): one number, or one per channel. The
        bound is then in [0, 1] pixel units.
      method, num_iterations: of :func:`opnorm.linalg.convolution_upper_bound`.

    Returns:
      A scalar.

    Raises:
      ValueError: for a network that multiplies by what is in no kernel, BatchNorms that
        were left out, and as :func:`opnorm.linalg.convolution_upper_bound`.
    """
    check_counted(layers, batch_norm=True)
    bounds = stack([_upper_bound(layer, method, num_iterations) for layer in layers])
    largest = jnp.max(jnp.abs(jnp.asarray(input_scale, bounds.dtype)))
    logs = jnp.append(jnp.log(bounds), jnp.log(largest))
    # Rounding of the logs and of their sum; not of -inf, the log of a zero layer.
    size = jnp.sum(jnp.where(jnp.isneginf(logs), 0.0, jnp.abs(logs)))
    return jnp.sum(logs) + float(jnp.finfo(logs.dtype).eps) * len(logs) * size


def _upper_bound(layer: Layer, method: str, num_iterations: int) -> jax.Array:
    if layer.kind != "convolution":
        return kernel_values(layer)[0] * (1 + _dense_margin(layer))
    return linalg.convolution_upper_bound(
        layer.kernel,
        layer.input_shape,
        method=method,
        num_iterations=num_iterations,
        **layer.options,
    )


def kernel_values(layer: Layer) -> jax.Array:
    """Singular values of a layer's kernel matrix, largest first."""
    if layer.kind != "batch_norm":
        return linalg.kernel_matrix_singular_values(layer.kernel)
    wide = jnp.promote_types(layer.kernel.dtype, jnp.float32)
    return jnp.sort(jnp.abs(layer.kernel.astype(wide)), descending=True)


def _dense_margin(layer: Layer) -> float:
    """Relative rounding error of a decomposition."""
    eps = jnp.finfo(jnp.promote_types(layer.kernel.dtype, jnp.float32)).eps
    return float(eps) * (2 * sum(layer.kernel.shape) + 20)


def check_form(form: str) -> None:
    """Raises ValueError for an unknown form of matrices."""
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; it may be {', '.join(FORMS)}.")


def stack(scalars: Sequence[jax.Array]) -> jax.Array:
    """One scalar per layer as an array; ValueError if there is no layer."""
    if not scalars:
        raise ValueError("layers is empty; it must have at least one layer.")
    return jnp.stack(scalars)


def _layer(call: Call) -> Layer:
    return Layer(call.kernel, call.name, call.kind, call.input_shape, **call.options)
